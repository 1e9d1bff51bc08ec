"""What papers say, measured: the cells of every claim of the atlas, and the code that says whether it holds.

A file holds the claims of one entry or of a few that belong together; an entry names its own by ``module.name`` in its
declaration. `book` keeps the results, `declared` finds what is to be measured, `figures` is what ``holds`` is given.
"""
