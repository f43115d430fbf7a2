"""Fitting: the planner's passes, run."""
