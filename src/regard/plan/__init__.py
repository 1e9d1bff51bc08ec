"""What decoding will cost before anything is run: rooflines, test-time budgets, and einsum cascades on an array."""
