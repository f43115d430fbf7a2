"""Benchmarks: dpipe and its peers on the same files, side by side in one run."""
