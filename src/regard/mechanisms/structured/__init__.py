"""Attention where something else than order says who may see whom: graphs and trees."""
