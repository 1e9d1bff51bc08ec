"""How next tokens are proposed, scored and accepted, beyond one run of the model: strategies of decoding."""

from regard.decoding.attention_buckets import AttentionBuckets
from regard.decoding.base import Mixture, Strategy
from regard.decoding.contrast import Contrast
from regard.decoding.hicd import HICD
from regard.decoding.lookback_decoding import LookbackDecoding
from regard.decoding.monitoring import MonitoringDecoding

__all__ = ["HICD", "AttentionBuckets", "Contrast", "LookbackDecoding", "Mixture", "MonitoringDecoding", "Strategy"]
