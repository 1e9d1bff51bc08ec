"""Attention whose past fits into a matrix: chunked in training and prefill, a recurrence in decoding."""

from regard.kernels.scan.constant import decayed, flops, powers
from regard.kernels.scan.gated import Inputs, Segment, gated_flops, scan, segment

__all__ = ["Inputs", "Segment", "decayed", "flops", "gated_flops", "powers", "scan", "segment"]
