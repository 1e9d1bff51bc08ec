"""How ``A v`` is computed without forming A."""
