"""Static supports: which entries of A may be non-zero, from positions alone."""
