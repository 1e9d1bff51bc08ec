"""Networks that describe images: attention over a grid or over regions, at every word."""
