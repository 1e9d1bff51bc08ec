"""Published gates, a file each."""
