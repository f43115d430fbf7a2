"""Batches for networks, read at the speed of decoding."""
