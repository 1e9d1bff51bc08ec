"""Every model family of the installed Transformers under `regard.watch` and `regard.swap`: `python -m families`.

From the top: `catalogue` says which families there are, `shrink` makes a tiny configuration of each, `inputs` what its
forward pass wants, `truth` has the weights that the model itself computes, `checks` compares, `__main__` runs all of
it, one process a family, and `table` writes the page.
"""
