"""Gradient boosting out of core: transformed blocks in scratch, rounds of a library over them, checkpoints."""
