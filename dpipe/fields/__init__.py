"""Preprocess gridded data: functions from xarray to xarray, lazy, block by block."""

from dpipe.fields.climate import anomalies, climatology
from dpipe.fields.patching import patches
from dpipe.fields.plans import FieldPlan, plan
from dpipe.fields.regridding import regrid
from dpipe.fields.splits import check_leaks, folds, split
from dpipe.fields.trends import detrend, moments, standardise, trend
from dpipe.fields.unpatching import unpatch
from dpipe.fields.windows import coarsen, lags, rolling

__all__ = [
    "FieldPlan",
    "anomalies",
    "check_leaks",
    "climatology",
    "coarsen",
    "detrend",
    "folds",
    "lags",
    "moments",
    "patches",
    "plan",
    "regrid",
    "rolling",
    "split",
    "standardise",
    "trend",
    "unpatch",
]
