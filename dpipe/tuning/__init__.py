"""Hyperparameter search: many candidates learn from the same readings of the data."""
