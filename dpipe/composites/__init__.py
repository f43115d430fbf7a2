"""Estimators around other estimators: how their parts see the rows, and how they are put together."""
