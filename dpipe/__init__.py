"""Write plain scikit-learn. Run it on data larger than memory. Get plain scikit-learn back."""

from dpipe import fields
from dpipe.cluster.cluster import Cluster
from dpipe.collect.arrow_files import read_arrow
from dpipe.collect.contract import Contract
from dpipe.collect.csv import read_csv
from dpipe.collect.drift import drift
from dpipe.collect.grib import open_grib
from dpipe.collect.join import merge
from dpipe.collect.leaks import check_leaks
from dpipe.collect.netcdf import open_netcdf
from dpipe.collect.parquet import read_parquet
from dpipe.collect.quarantine import quarantined
from dpipe.collect.regroup import repartition, shuffle
from dpipe.collect.split import folds, split
from dpipe.collect.zarr_store import open_zarr
from dpipe.deploy.apply import predict, transform
from dpipe.deploy.bundle import load
from dpipe.deploy.grids import inverse_transform, patterns
from dpipe.errors import DpipeError
from dpipe.families.catalog import estimators
from dpipe.families.epochs import Epoch, Epochs
from dpipe.families.registry import register
from dpipe.outputs.append import append_zarr
from dpipe.outputs.manifest import verify
from dpipe.outputs.parquet import write_parquet
from dpipe.outputs.rechunk import plan_rechunk, rechunk
from dpipe.outputs.zarr import write_zarr
from dpipe.pipeline.pipeline import Pipeline
from dpipe.train.fit import fit, plan
from dpipe.train.loading.loader import Loader
from dpipe.train.networks.data_parallel import DataParallel
from dpipe.train.networks.model_parallel import ModelParallel
from dpipe.train.quantile import quantile
from dpipe.tuning.cross_validate import cross_validate
from dpipe.tuning.search import Search, search
from dpipe.validate.score import score

__all__ = [
    "Cluster",
    "Contract",
    "DataParallel",
    "DpipeError",
    "Epoch",
    "Epochs",
    "Loader",
    "ModelParallel",
    "Pipeline",
    "Search",
    "append_zarr",
    "check_leaks",
    "cross_validate",
    "drift",
    "estimators",
    "fields",
    "fit",
    "folds",
    "inverse_transform",
    "load",
    "merge",
    "open_grib",
    "open_netcdf",
    "open_zarr",
    "patterns",
    "plan",
    "plan_rechunk",
    "predict",
    "quantile",
    "quarantined",
    "read_arrow",
    "read_csv",
    "read_parquet",
    "rechunk",
    "register",
    "repartition",
    "score",
    "search",
    "shuffle",
    "split",
    "transform",
    "verify",
    "write_parquet",
    "write_zarr",
]
