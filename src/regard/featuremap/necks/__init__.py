"""Published necks, a file each."""
