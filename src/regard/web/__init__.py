"""The view: the self-contained page of a record, and the same page served live.

The page itself is TypeScript (`web/` at the root of the repository); its built bundle lies in `bundle/`, so that no
Node is needed here.
"""
