"""Pipeline: the five stages, from collected data to a deployed model, as one lazy object."""

import html
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import dask.dataframe as dd
from dask.delayed import Delayed, delayed
from distributed import Client

from dpipe.cluster.cluster import Cluster, takes_cluster
from dpipe.collect.join import merge
from dpipe.collect.regroup import shuffle
from dpipe.collect.source import open_source
from dpipe.collect.split import split as split_rows
from dpipe.errors import InputError
from dpipe.families.epochs import Epochs
from dpipe.families.registry import Estimator
from dpipe.ledger.book import Ledger
from dpipe.monitor.diagram import diagram
from dpipe.monitor.session import Session, make_workdir
from dpipe.pipeline.arrays import array_function, array_split, is_array, names_arrays
from dpipe.pipeline.collecting import (
    Contracted,
    begin_collect,
    collected,
    collected_arrays,
    count_refused,
)
from dpipe.pipeline.conservation import mapped
from dpipe.pipeline.delayed import Held, bundle_delayed, maps_stage, score_delayed
from dpipe.pipeline.planning import planned
from dpipe.pipeline.runner import Runner
from dpipe.pipeline.stages import (
    PipelinePlan,
    PipelineRun,
    Stage,
    bundle_input,
    columns_of,
    edges,
    fit_arguments,
)
from dpipe.pipeline.stores import ArrayStore
from dpipe.sizes import parse_bytes
from dpipe.train.fit import delayed_fit
from dpipe.train.prepare import prepare
from dpipe.validate.score import check_scoring


class Pipeline:
    """The five stages of an AI pipeline, each lazy until `run`.

    Each method adds a stage and gives a genuine Dask collection or `Delayed`, which later stages take,
    and which you may use in Dask code of your own. Building reads metadata only.

    Parameters
    ----------
    name : str
        Shown in plans and reports.
    workdir : path, optional
        Folder of the results: ``run.json``, ``report.html``, bundles. Default ``runs/<name>``.

    Raises
    ------
    InputError
        If the name is empty.

    Examples
    --------
    >>> import tempfile, pandas as pd, dask.dataframe as dd
    >>> from sklearn.linear_model import LinearRegression
    >>> frame = dd.from_pandas(pd.DataFrame({"x": range(100), "y": range(100)}), npartitions=4)
    >>> pipe = Pipeline("line", workdir=tempfile.mkdtemp())
    >>> rows = pipe.collect(frame)
    >>> train, test = pipe.split(rows, test_size=0.3)
    >>> model = pipe.train(LinearRegression(), train, target="y")
    >>> report = pipe.validate(model, test, scoring="r2")
    >>> round(pipe.run(progress=False).metrics["r2"], 6)
    1.0
    """

    def __init__(self, name: str, *, workdir: str | os.PathLike[str] | None = None) -> None:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"A pipeline needs a name, got {name!r}.")
        self.name = name
        self.workdir = Path(workdir) if workdir is not None else Path("runs") / name
        self.stages: list[Stage] = []

    def collect(
        self,
        source: Any,
        *,
        columns: Sequence[str] | None = None,
        schema: Any = None,
        on_violation: str = "raise",
        block_nbytes: int | str | None = None,
        storage_options: dict[str, Any] | None = None,
        on_corrupt: str = "raise",
        store: bool | str | os.PathLike[str] = False,
        chunks: Mapping[str, int] | None = None,
        access: str | Sequence[str] | None = None,
        chunk_nbytes: int | str | None = None,
    ) -> Any:
        """Bring data in.

        Parameters
        ----------
        source : dask DataFrame or Array, xarray Dataset or DataArray, or what `read_parquet` takes
            Paths that end in ``.csv`` are read by `read_csv`, NetCDF and HDF5 files by `open_netcdf`, a Zarr store by
            `open_zarr`.
        columns, block_nbytes, storage_options, on_corrupt
            As in `read_parquet`. Columns are chosen after the contract was checked; of arrays they are variables.
        schema : pyarrow.Schema, Contract, pandera DataFrameSchema or "infer", optional
            The contract of the source, held against each block by the task that reads it. A PyArrow schema gives
            the types to read, as in `read_parquet`, and ``nullable=False`` is kept. "infer" takes names, types and
            nullability from the metadata; the first run freezes them in ``workdir/contracts``, and later ones
            must keep them: delete that file to infer anew.
        store : bool or path, default False
            Of arrays: the run writes them to one Zarr store, ``workdir/stores/collect.zarr`` or another folder, which
            later stages read in their place: those that were given the result, or variables of it as they are. A run
            that was stopped goes on; a source that is longer along time is appended, any other change is written anew.
        chunks, access, chunk_nbytes
            Of the store, as for `dpipe.rechunk`. Default: chunks with those dimensions whole that models take as
            features, or that functions of `preprocess` need in one block, as `plan` tells.
        on_violation : {"raise", "quarantine", "coerce"}, default "raise"
            Raise an error that names the block, the column, the rule and examples; set the rows that break the
            contract apart, under ``workdir/quarantine`` (see `dpipe.quarantined`); or cast where no value changes,
            or as pandera casts, and raise where that cannot be done.

        Returns
        -------
        dask.dataframe.DataFrame, dask.array.Array, xarray.Dataset or xarray.DataArray
            Lazy.

        Raises
        ------
        SourceError, InputError
            As `read_parquet`, `open_netcdf` and `open_zarr` do.
        ContractError
            If metadata shows that the source breaks its contract.
        """
        name = self._next_name("collect")
        written = ArrayStore.of(name, self.workdir, store, chunks, access, chunk_nbytes)
        if names_arrays(source):
            asked = {"schema": schema is not None, "on_corrupt": on_corrupt != "raise"}
            arrays, says = collected_arrays(source, columns, block_nbytes, storage_options, asked)
            self._add("collect", says, (), (arrays,), {"store": written})
            return arrays
        if written is not None:
            raise InputError(
                "store: only labelled arrays are written to a store. Give an xarray object, NetCDF or HDF5 files, or a "
                "Zarr store; Parquet and CSV files are read as they are."
            )
        contracted = Contracted(
            name,
            self.workdir,
            schema,
            on_violation,
            block_nbytes,
            storage_options,
            on_corrupt,
        )
        collection, says = collected(source, columns, contracted)
        if contracted.quarantine is not None:
            says += "; rows that break the contract are set apart"
        self._add("collect", says, (), (collection,), {"contracted": contracted})
        return collection

    def split(
        self,
        frame: Any,
        *,
        test_size: float = 0.2,
        by: str | Sequence[str] | None = None,
        stratify: str | None = None,
        time: str | None = None,
        test_from: Any = None,
        gap: Any = None,
        block: Any = None,
        random_state: int = 0,
    ) -> tuple[Any, Any]:
        """Split rows into train and test by a hash of a key, or by time; see `dpipe.split`.

        Rows with the same values in the columns `by` fall on the same side, whatever the blocks, and
        also when data is appended. Labelled arrays are split by blocks of the dims `by`, or by `time`, default
        "time": see `dpipe.fields.split`.
        """
        if is_array(frame):
            if stratify is not None:
                raise InputError(
                    f"stratify={stratify!r} is for frames: arrays are split by blocks of their dims."
                )
            options = {"test_size": test_size, "test_from": test_from, "block": block, "gap": gap}
            way = {**options, "random_state": random_state}
            return self._add_arrays(array_split(frame, time or by or "time", way))
        if block is not None:
            raise InputError(f"block={block!r} is for xarray objects, but frame is a {type(frame).__name__}.")
        ways = {"stratify": stratify, "time": time, "test_from": test_from, "gap": gap}
        name = self._next_name("split")
        train, test = split_rows(
            frame, test_size=test_size, by=by, random_state=random_state, name=name, **ways
        )
        if time is not None:
            says = f"rows from {test_from} on to test, by {time}" + (
                f", {gap} apart" if gap is not None else ""
            )
        else:
            key = "all columns" if by is None else by if isinstance(by, str) else ", ".join(by)
            within = "" if stratify is None else f" within each {stratify}"
            says = f"{test_size:.0%} of the rows to test{within}, by {key}"
        self._add("split", says, (frame,), (train, test), {"drops": time is not None})
        return train, test

    def preprocess(
        self, frame: Any, function: Callable[..., Any], *, store: bool = False, **options: Any
    ) -> Any:
        """Apply a function to each block, or to labelled arrays as a whole.

        Parameters
        ----------
        frame : dask.dataframe.DataFrame, dask.array.Array, xarray.Dataset or xarray.DataArray
        function : callable ``(block, **options) -> block``
            From pandas frame to frame, or array to array. It is called on an empty block at once, to learn
            the columns it gives; rows may be dropped. Of labelled arrays it is given all, and stays lazy, as those of
            `dpipe.fields` do.
        store : bool, default False
            Of labelled arrays: the run writes the result to a Zarr store in the workdir, in chunks for what follows;
            worth it where models read it several times.

        Returns
        -------
        dask.dataframe.DataFrame, dask.array.Array, xarray.Dataset or xarray.DataArray
            Lazy.

        Raises
        ------
        InputError
            If the function fails on an empty block, or computes what should stay lazy.
        """
        name = getattr(function, "__name__", repr(function))
        stage = self._next_name("preprocess")
        written = ArrayStore.of(stage, self.workdir, store, None, None, None)
        if is_array(frame):
            return self._add_arrays(array_function(frame, function, options, {"store": written}))[0]
        if written is not None:
            raise InputError(f"store=True is for xarray objects, but frame is a {type(frame).__name__}.")
        made = mapped(frame, function, options, stage)
        self._add("preprocess", name, (frame,), (made,))
        return made

    def merge(
        self, left: dd.DataFrame, right: Any, on: str | Sequence[str] | None = None, **options: Any
    ) -> dd.DataFrame:
        """Join two frames and count every row; see `dpipe.merge`, whose options it takes.

        The report tells how many rows came in and went out, and why they differ.
        """
        made = merge(left, right, on, **{"name": self._next_name("preprocess"), **options})
        keys = options["left_on"] if on is None else on
        names = keys if isinstance(keys, str) else ", ".join(keys)
        says = f"{options.get('how', 'inner')} join on {names}"
        self._add("preprocess", says, (left, right) if isinstance(right, dd.DataFrame) else (left,), (made,))
        return made

    def shuffle(self, frame: dd.DataFrame, by: str | Sequence[str], **options: Any) -> dd.DataFrame:
        """Bring all rows of a key into one block; see `dpipe.shuffle`, whose options it takes."""
        made = shuffle(frame, by, **options)
        self._add(
            "preprocess", f"shuffle by {by if isinstance(by, str) else ', '.join(by)}", (frame,), (made,)
        )
        return made

    def train(
        self,
        estimator: Estimator,
        frame: Any,
        *,
        target: Any = None,
        features: Sequence[str] | None = None,
        sample_weight: Any = None,
        epochs: int | Epochs = 1,
        validation: Any = None,
        qid: str | None = None,
        shares: int | None = None,
        sample_dims: Any = None,
        missing: str = "all",
    ) -> Delayed:
        """Fit an estimator; see `dpipe.fit`.

        Parameters
        ----------
        estimator : scikit-learn estimator or pipeline
        frame : dask.dataframe.DataFrame, dask.array.Array, xarray.DataArray or Dataset
        target : str or collection, optional
            A column (or variable) of `frame`, or a series or array of the same blocks.
        features : sequence of str, optional
            Columns that the model is given; default all but the target and the weights.
        sample_weight : str or collection, optional
        epochs : int or Epochs, default 1
        validation : dask.dataframe.DataFrame, tuple or float, optional
            Rows to watch a boosted model on: a frame with the columns of `frame`, or what `dpipe.fit` takes.
        qid : str, optional
            For rankers: the column of `frame` that numbers the groups.
        shares : int, optional
            For XGBoost: into how many shares the rows are dealt, each with a learner of its own.
        sample_dims, missing
            For xarray objects: as for `dpipe.fit`.

        Returns
        -------
        dask.delayed.Delayed
            Of the fitted estimator.

        Raises
        ------
        DpipeError
            As `dpipe.fit` does for what metadata can tell.
        """
        if features is None and qid is not None and isinstance(frame, dd.DataFrame):
            taken = [name for name in (target, sample_weight, qid) if isinstance(name, str)]
            features = [name for name in frame.columns if name not in taken]
        settings = {
            "estimator": estimator,
            "frame": frame,
            "target": target,
            "features": None if features is None else tuple(features),
            "sample_weight": sample_weight,
            "epochs": epochs,
            "validation": validation,
            "qid": qid,
            "shares": shares,
            "samples": None if sample_dims is None else {"sample_dims": sample_dims, "missing": missing},
        }
        data, options = fit_arguments(settings)
        model = delayed_fit(prepare(*data, **options))
        self._add("train", type(estimator).__name__, (frame,), (model,), settings)
        return model

    def validate(
        self,
        model: Delayed,
        frame: Any,
        *,
        target: Any = None,
        scoring: str | Sequence[str] | None = None,
        require: Mapping[str, float] | None = None,
        reference: Estimator | None = None,
    ) -> Delayed:
        """Score a trained model on rows that it has not seen, in one pass.

        Parameters
        ----------
        model : Delayed
            From `train`.
        frame : dask.dataframe.DataFrame or dask.array.Array
            The test rows.
        target : str or collection, optional
            Default: the target of the training.
        scoring : str or sequence of str, optional
            Scikit-learn's names; default: accuracy for classifiers, r2 for regressors.
        require : mapping of str to float, optional
            The least that each metric must reach; else the run fails, after its report is written, and
            deploys nothing.
        reference : fitted estimator, optional
            Scored on the same rows, for comparison; it is given all columns but the target.

        Returns
        -------
        dask.delayed.Delayed
            Of a dict of metrics.

        Raises
        ------
        InputError
            If `model` is not of this pipeline, or a metric is unknown.
        """
        trained = self._stage_of(model, "train")
        target = trained.settings["target"] if target is None else target
        names = check_scoring(scoring, trained.settings["estimator"], [*(require or {})])
        settings = {
            "model": model,
            "frame": frame,
            "target": target,
            "features": trained.settings["features"],
            "scoring": names,
            "require": dict(require or {}),
            "reference": reference,
            "samples": trained.settings["samples"],
        }
        X, y, _ = columns_of(frame, target, settings["features"], None, settings["samples"])
        open_source(X, y)
        metrics = delayed(score_delayed, pure=False)(model, Held(X), Held(y), names)
        wanted = ", ".join(f"{name} >= {least:g}" for name, least in settings["require"].items())
        says = ", ".join(names) + (f"; requires {wanted}" if wanted else "")
        self._add("validate", says, (model, frame), (metrics,), settings)
        return metrics

    def deploy(self, model: Delayed, report: Delayed | None = None, *, to: str = "bundle") -> Delayed:
        """Write the trained model as a bundle: skops model, input schema, metrics, versions.

        The bundle takes what the model takes: steps of `preprocess` are not part of it. What new data needs,
        too, belongs into the model, as a FunctionTransformer.

        Parameters
        ----------
        model : Delayed
            From `train`.
        report : Delayed, optional
            From `validate`; its metrics go into the bundle, and its requirements must be met.
        to : str, default "bundle"
            Folder under the workdir.

        Returns
        -------
        dask.delayed.Delayed
            Of the path.

        Raises
        ------
        InputError
            If `model` or `report` is not of this pipeline, or `to` leaves the workdir.
        """
        trained = self._stage_of(model, "train")
        if report is not None:
            self._stage_of(report, "validate")
        folder = self._inside(to)
        settings = {"model": model, "report": report, "folder": folder}
        schema, target = bundle_input(trained)
        written = delayed(bundle_delayed, pure=False)(model, report, str(folder), self.name, schema, target)
        self._add("deploy", f"to {folder}", (model, report), (written,), settings)
        return written

    def write(self, function: Callable[..., Any], *given: Any, to: str = "maps.zarr") -> Delayed:
        """Write what a function makes of trained models and of labelled arrays as a Zarr store: maps, time series.

        Parameters
        ----------
        function : callable ``(*given) -> xarray.Dataset or DataArray``
            Called by the run, with fitted models and lazy arrays; what it gives may be lazy, as by `dpipe.predict`.
        *given : Delayed from `train`, xarray objects
        to : str, default "maps.zarr"
            Folder under the workdir; it appears whole or not at all, with a manifest.

        Returns
        -------
        dask.delayed.Delayed
            Of the path.

        Raises
        ------
        InputError
            If a model is not of this pipeline, or `to` leaves the workdir.
        """
        for model in given:
            if isinstance(model, Delayed):
                self._stage_of(model, "train")
        return self._add_arrays(maps_stage(function, given, self._inside(to)))[0]

    def plan(
        self,
        *,
        memory: int | str | None = None,
        client: Client | Cluster | None = None,
        workers: int | None = None,
    ) -> PipelinePlan:
        """Tell what `run` would do, and what earlier runs have done of it already; computes nothing.

        Raises
        ------
        MemoryLimitError
            If the budget cannot be kept.
        OutputError
            If the disk has no room for what a store needs.
        """
        workdir = self.workdir if self.workdir.is_dir() else None
        return planned(self.name, self.stages, memory, client, workers, workdir)

    @takes_cluster
    def run(
        self,
        *,
        memory: int | str | None = None,
        client: Client | Cluster | None = None,
        workers: int | None = None,
        progress: bool | None = None,
    ) -> PipelineRun:
        """Carry the pipeline out, and leave results, record and report under the workdir.

        What an earlier run has recorded in the workdir's ledger is not done again: a run that was stopped goes on,
        and of a source that has grown only the new files are read, where a fit can be merged.

        Parameters
        ----------
        memory : int or str, optional
            Budget, such as "2 GiB": of the whole run on this machine, per worker on a cluster.
        client : distributed.Client or Cluster, optional
            Default: the current client; else an embedded cluster of threads, closed at the end.
        workers : int, optional
            Threads of the embedded cluster; default one a processor.
        progress : bool, optional
            Show bars and the dashboard's address; default: in a terminal and in Jupyter.

        Raises
        ------
        RequirementError
            If a metric misses what `validate` requires; the report is written all the same.
        DpipeError
            For input, files, budget and workdir that do not do.
        """
        if not self.stages:
            raise InputError(f"Pipeline {self.name!r} has no stages. Start with pipe.collect(...).")
        planned(self.name, self.stages, memory, client, workers, None)  # what cannot be done leaves no trace
        workdir = make_workdir(self.workdir)
        budget = None if memory is None else parse_bytes(memory)
        started = time.perf_counter()
        with (
            Ledger(workdir) as ledger,
            Session(self.name, workdir, show=progress, budget_nbytes=budget) as session,
        ):
            carried = Runner(self, session, ledger, budget, cast("Client | None", client), workers)
            with carried.one_cluster():
                for i in range(len(self.stages)):
                    begin_collect(carried.stages[i], session)
                    carried.carry_out(i)
            carried.count_rows()
            count_refused(carried.stages, session, carried.rows)
        return PipelineRun(
            self.name,
            time.perf_counter() - started,
            carried.model,
            session.metrics,
            session.references,
            workdir,
            workdir / "report.html",
            carried.bundle,
        )

    def visualize(self, filename: str | os.PathLike[str] | None = None) -> Any:
        """Draw the stages and what flows between them.

        Parameters
        ----------
        filename : path, optional
            Write the drawing as SVG.

        Returns
        -------
        Diagram
            Shown as a picture in Jupyter.
        """
        drawing = diagram([(stage.name, stage.says) for stage in self.stages], edges(self.stages))
        if filename is not None:
            Path(filename).write_text(drawing.svg, encoding="utf-8")
        return drawing

    def __repr__(self) -> str:
        """Name the stages."""
        lines = [f"Pipeline {self.name!r} (lazy; results in {self.workdir})"]
        lines += [f"  {i}. {stage.name:12s} {stage.says}" for i, stage in enumerate(self.stages, start=1)]
        return "\n".join(lines if self.stages else [*lines, "  no stages yet; start with pipe.collect(...)"])

    def _repr_html_(self) -> str:
        return f"<h4>Pipeline {html.escape(self.name)}</h4>{self.visualize().svg}"

    def _add(
        self,
        kind: str,
        says: str,
        inputs: tuple[Any, ...],
        outputs: tuple[Any, ...],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.stages.append(Stage(kind, self._next_name(kind), says, inputs, outputs, settings or {}))

    def _add_arrays(self, stage: Stage) -> Any:
        self.stages.append(replace(stage, name=self._next_name(stage.kind)))
        return stage.outputs

    def _next_name(self, kind: str) -> str:
        same = sum(stage.kind == kind for stage in self.stages)
        return kind if not same else f"{kind}-{same + 1}"

    def _inside(self, to: str) -> Path:
        folder, workdir = self.workdir / to, self.workdir.resolve()
        if folder.resolve() == workdir or not folder.resolve().is_relative_to(workdir):
            raise InputError(f"to={to!r} does not lie inside of the workdir. Give the name of a folder.")
        return folder

    def _stage_of(self, output: Any, kind: str) -> Stage:
        for stage in self.stages:
            if stage.kind == kind and any(output is given for given in stage.outputs):
                return stage
        raise InputError(
            f"{output!r} was not given by pipe.{kind}(...) of pipeline {self.name!r}. Pass what that call returned."
        )
