"""Passes as Dask graphs: one fused task a block, a tree of merges of fixed shape, ordered windows."""
