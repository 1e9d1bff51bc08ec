"""Studies: theorems and small experiments of single papers. Nothing imports them."""
