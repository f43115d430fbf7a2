"""Preprocess gridded data: functions from xarray to xarray, lazy, block by block."""

from dpipe.fields.climate import anomalies, climatology
from dpipe.fields.trends import detrend, moments, standardise, trend
from dpipe.fields.windows import coarsen, lags, rolling

__all__ = [
    "anomalies",
    "climatology",
    "coarsen",
    "detrend",
    "lags",
    "moments",
    "rolling",
    "standardise",
    "trend",
]
