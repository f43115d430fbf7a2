"""Preprocess gridded data: functions from xarray to xarray, lazy, block by block."""

from dpipe.fields.climate import anomalies, climatology
from dpipe.fields.trends import detrend, moments, standardise, trend

__all__ = ["anomalies", "climatology", "detrend", "moments", "standardise", "trend"]
