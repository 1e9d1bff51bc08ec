"""Records: what a model attended to in one text, as a folder of plain files."""
