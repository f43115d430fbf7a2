"""Readers, schemas and splits: data becomes a lazy Dask collection of blocks."""
