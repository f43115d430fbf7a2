"""Kernels on one block in memory: Arrow, NumPy, pandas, sparse; never Dask."""
