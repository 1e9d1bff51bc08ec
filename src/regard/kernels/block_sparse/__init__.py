"""Block-sparse attention: a cover of blocks as a plan of fused calls, and as lists for Triton."""
