"""Cost and quality of mechanisms, side by side."""
