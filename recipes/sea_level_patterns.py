"""Find the patterns and the regimes of the sea level, from many NetCDF files to maps."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline

import dpipe
from recipes.made_sea_level import made_sea_level


def pattern_model(modes: int = 3, regimes: int = 4, random_state: int = 0) -> Pipeline:
    """Build the model, from weighted anomalies to a regime: plain scikit-learn."""
    return make_pipeline(
        SimpleImputer(strategy="constant", fill_value=0.0, keep_empty_features=True),  # land takes no part
        PCA(modes),
        KMeans(regimes, n_init=10, random_state=random_state),
    )


def root_of_area(fields: Any) -> Any:
    """Give the root of the area of each cell, by its latitude, so that squares are weighted by area."""
    lat = next((dim for dim in fields.dims if str(dim).lower().startswith("lat")), None)
    if lat is None:
        raise dpipe.DpipeError(
            f"The fields have the dims {', '.join(map(str, fields.dims))}, of which none is a latitude. Name it lat."
        )
    return np.sqrt(np.cos(np.deg2rad(fields[lat])).clip(0.0))


def weighted_anomalies(fields: xr.DataArray) -> xr.DataArray:
    """Take the season out, month by month, and weight each cell by the root of its area."""
    anomalies = dpipe.fields.anomalies(fields, dpipe.fields.climatology(fields, "month"))
    return (anomalies * root_of_area(fields)).astype(fields.dtype).rename("anomaly")


def maps(model: Pipeline, anomalies: xr.DataArray) -> xr.Dataset:
    """Draw what was learned: patterns (EOFs) and their strengths, regimes and the mean field of each.

    Parameters
    ----------
    model : sklearn.pipeline.Pipeline
        That of `pattern_model`, fitted.
    anomalies : xarray.DataArray
        From `weighted_anomalies`, of time and two dims of space.

    Returns
    -------
    xarray.Dataset
        Of CF metadata; what goes along time is lazy. Patterns are of the unit of the field.
    """
    root, without_clusters, clusters = root_of_area(anomalies), model[:-1], model[-1]
    land = anomalies.isel(time=0, drop=True).isnull()
    patterns = dpipe.patterns(without_clusters, anomalies, sample_dims="time").where(~land) / root
    centres = xr.DataArray(clusters.cluster_centers_, dims=("regime", "component"))
    means = (patterns * centres.assign_coords(component=patterns["component"])).sum("component", skipna=False)
    strengths = dpipe.transform(without_clusters, anomalies, sample_dims="time")
    days = dpipe.predict(model, anomalies, sample_dims="time")
    units = {"units": str(anomalies.attrs.get("units", "m"))}
    made = {
        "pattern": patterns.drop_attrs(deep=False).assign_attrs(
            units, long_name="empirical orthogonal function"
        ),
        "strength": strengths.drop_attrs(deep=False).assign_attrs(
            long_name="strength of a pattern", units="1"
        ),
        "regime_of_day": days.assign_attrs(long_name="regime of a day"),
        "regime_mean": means.drop_attrs(deep=False).assign_attrs(units, long_name="mean anomaly in a regime"),
    }
    return xr.Dataset(
        made, attrs={"Conventions": "CF-1.11", "title": "Patterns and regimes of the sea level"}
    )


def sea_level_patterns(
    source: str | os.PathLike[str] | Sequence[str] | None = None,
    *,
    variable: str = "sla",
    days: int = 3650,
    modes: int = 3,
    regimes: int = 4,
    workdir: str = "runs/sea-level-patterns",
    random_state: int = 0,
) -> dpipe.Pipeline:
    """Find the patterns and the regimes of the sea level.

    Parameters
    ----------
    source : path, glob, folder or a sequence of them, optional
        NetCDF files, or a Zarr store, of a field of time, latitude and longitude. Without them the recipe makes fields
        of its own, once for each size, with known patterns.
    variable : str, default "sla"
        The field in these files.
    days : int, default 3650
        How many days to make.
    modes, regimes : int, default 3 and 4
        How many patterns, and how many regimes.
    workdir : str, default "runs/sea-level-patterns"
        Results: the store of the fields, that of the anomalies, the maps, report and bundle.
    random_state : int, default 0
        Seeds the made fields and the clusters.

    Returns
    -------
    dpipe.Pipeline
        Lazy: of the files only headers and coordinates have been read.
    """
    files = made_sea_level(days, seed=random_state) if source is None else source
    pipe = dpipe.Pipeline("sea-level-patterns", workdir=workdir)
    fields = pipe.collect(files, columns=[variable], store=True)
    anomalies = pipe.preprocess(fields[variable], weighted_anomalies, store=True)
    model = pipe.train(pattern_model(modes, regimes, random_state), anomalies, sample_dims="time")
    pipe.write(maps, model, anomalies, to="maps.zarr")
    pipe.deploy(model)
    return pipe
