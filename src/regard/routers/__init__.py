"""Routers: which keys, or blocks of them, each query attends to, chosen from the queries and keys themselves."""
