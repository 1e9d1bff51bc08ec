"""What other libraries compute, where they are installed."""
