"""Carry a pipeline out, stage after stage, and keep its books."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distributed import Client

from dpipe.cluster.local import running
from dpipe.collect.source import open_source
from dpipe.deploy.bundle import write_bundle
from dpipe.errors import DpipeError, MemoryLimitError, RequirementError
from dpipe.families.registry import Estimator
from dpipe.ledger.book import Ledger
from dpipe.monitor.record import CurveRecord, StageRecord
from dpipe.monitor.session import Session
from dpipe.pipeline.arrays import is_array, needs_after, read_elsewhere, rebound
from dpipe.pipeline.conservation import check_flows, rows_taken, with_rows, with_samples
from dpipe.pipeline.delayed import write_maps
from dpipe.pipeline.stages import Stage, bundle_input, columns_of, fit_arguments
from dpipe.pipeline.stores import planned_stores
from dpipe.run.recorded import Recorded
from dpipe.sizes import format_rows
from dpipe.train.fit import n_rows_read, run_fit
from dpipe.train.prepare import OwnFit, Prepared, prepare
from dpipe.validate.score import Scores, score_source


class Runner:
    """One run of a pipeline, stage after stage."""

    def __init__(
        self,
        pipe: Any,
        session: Session,
        ledger: Ledger,
        memory: int | None,
        client: Client | None,
        workers: int | None,
    ) -> None:
        self.pipe, self.session, self.ledger = pipe, session, ledger
        self.memory, self.client, self.workers = memory, client, workers
        self.given_client = client
        self.stages, stores = planned_stores(pipe.stages, None, memory, client)
        """As they are with what has been written so far; before, with what is going to be."""
        self.given: dict[str, Any] = {}
        for note in read_elsewhere(pipe.stages, self.stages) if stores else ():
            session.note(note)
        self.models: dict[int, Estimator] = {}
        self.scores: dict[int, dict[str, float]] = {}
        self.rows: dict[int, int] = {}
        """Rows of collections, as far as they are known or were counted."""
        self.model: Estimator | None = None
        self.bundle: Path | None = None

    @contextlib.contextmanager
    def one_cluster(self) -> Iterator[None]:
        """Keep one embedded cluster, and one dashboard, for all stages, where a cluster is ours to start."""
        places = [
            self._prepared(stage).place for stage in self.stages if stage.kind == "train" and not self.client
        ]
        if not places or not all(place.embedded for place in places):
            yield
            return
        # as many threads as every plan allows: a running cluster cannot be made smaller
        with running(min(places, key=lambda place: place.threads)) as client:
            self.client = client
            yield

    def _prepared(self, stage: Stage) -> Prepared:
        data, options = fit_arguments(stage.settings)
        return prepare(
            *data,
            **options,
            memory=self.memory,
            client=self.client,
            workers=self.workers,
        )

    def carry_out(self, i: int) -> None:
        """Do what the stage at a position says, and record it."""
        begun = time.perf_counter()
        place = len(self.session.stages)
        stage = self.stages[i]
        try:
            if stage.settings.get("store") is not None:
                rows_in, rows_out, note = None, None, self._stored(i)
            else:
                rows_in, rows_out, note = getattr(self, f"_{stage.kind}")(stage)
        except DpipeError:
            seconds = time.perf_counter() - begun
            self.session.stages.insert(
                place, StageRecord(stage.name, stage.kind, seconds, None, None, "failed")
            )
            raise
        self.session.stages.insert(
            place,
            StageRecord(
                stage.name, stage.kind, time.perf_counter() - begun, rows_in, rows_out, note or stage.says
            ),
        )

    def count_rows(self) -> None:
        """Fill in how many rows the lazy stages gave, which only the passes after them have counted."""
        for stage in reversed(self.stages):
            sides = [self.rows.get(id(side)) for side in stage.outputs]
            if stage.kind == "split" and None not in sides and not stage.settings["drops"]:
                self.rows.setdefault(id(stage.inputs[0]), sum(n for n in sides if n is not None))
        for stage in self.stages:  # what a later stage took is what the one before it gave
            taken = rows_taken(stage, self.session.flows)
            if taken is not None and stage.inputs:
                self.rows.setdefault(id(stage.inputs[0]), taken)
        records = [
            with_rows(stage, record, self.session.flows, self.rows)
            for stage, record in zip(self.stages, self.session.stages, strict=True)
        ]
        self.session.stages[:] = with_samples(self.stages, records)

    def _stored(self, i: int) -> str:
        """Write the arrays of a stage to its store, which later stages read from here on."""
        # those before it read what has been written, and not what the plan said
        stage = rebound(self.pipe.stages, self.given, self.memory)[i]
        needs = needs_after(self.pipe.stages, i)
        store = stage.settings["store"]
        found, did = store.written(stage.outputs[0], needs, self.ledger, self.memory, self.client)
        self.given[stage.name] = found
        self.stages[i + 1 :] = rebound(self.pipe.stages, self.given, self.memory)[i + 1 :]
        return f"{stage.says}; {did}"

    def _collect(self, stage: Stage) -> tuple[int | None, int | None, str]:
        if is_array(stage.outputs[0]):
            return None, None, stage.says
        source = open_source(stage.outputs[0])
        rows = None if source.may_skip else source.n_rows  # what can be left out is counted when it is read
        if rows is not None:
            self.rows[id(stage.outputs[0])] = rows
        return rows, rows, stage.says if rows is None else f"{stage.says}, {format_rows(rows)} rows"

    def _split(self, stage: Stage) -> tuple[int | None, int | None, str]:
        return self.rows.get(id(stage.inputs[0])), None, ""

    def _preprocess(self, stage: Stage) -> tuple[int | None, int | None, str]:
        return self.rows.get(id(stage.inputs[0])), None, ""

    def _train(self, stage: Stage) -> tuple[int | None, int | None, str]:
        prepared = self._prepared(stage)
        recorded = prepared.recorded(self.ledger, stage.name, self.session.note)
        self.model, tallies = run_fit(prepared, self.session.listener, self.session.started, recorded)
        self.session.add_passes(stage.name, prepared.plan, tallies)
        self.models[id(stage.outputs[0])] = self.model
        rows = n_rows_read(prepared, tallies)
        if isinstance(prepared, OwnFit):
            rows = prepared.n_rows_of(tallies)
        if rows is not None:
            self.rows[id(stage.settings["frame"])] = rows
        return rows, rows, ""

    def _validate(self, stage: Stage) -> tuple[int | None, int | None, str]:
        settings = stage.settings
        metrics, curves, rows = self._scored(stage, self.models[id(settings["model"])])
        self.rows[id(settings["frame"])] = rows
        self.scores[id(stage.outputs[0])] = metrics
        self.session.metrics.update(metrics)
        self.session.curves += curves
        self.session.required.update(settings["require"])
        if settings["reference"] is not None:
            self.session.references.update(self._scored(stage, settings["reference"], reference=True)[0])
        check_flows(self.stages, self.session.flows)
        self._check_required(settings["require"], metrics)
        return rows, rows, ""

    def _scored(
        self, stage: Stage, model: Estimator, *, reference: bool = False
    ) -> tuple[dict[str, float], tuple[CurveRecord, ...], int]:
        """Score on the test rows; a reference may look at all of their columns."""
        settings = stage.settings
        features = None if reference else settings["features"]
        X, y, _ = columns_of(settings["frame"], settings["target"], features, None, settings["samples"])
        name = f"{stage.name} of the reference" if reference else stage.name
        found = self._score(name, model, X, y, settings["scoring"])
        self.session.add_pass(
            stage.name,
            f"Score {type(model).__name__}",
            "score",
            found.tally,
            collects=tuple(found.metrics),
            reason="reads the test rows once",
            projected_nbytes=found.projected_nbytes or 0,
        )
        return found.metrics, found.curves, found.tally.rows

    def _score(self, name: str, model: Estimator, X: Any, y: Any, scoring: list[str]) -> Scores:
        arguments = {
            "scoring": scoring,
            "memory": self.memory,
            "workers": self.workers,
            "scratch": self.pipe.workdir / "scratch",
            "listener": self.session.listener,
            "started": self.session.started,
            "recorded": lambda parts: Recorded(self.ledger, name, parts, self.session.note),
        }
        try:
            return score_source(model, X, y, client=self.client, **arguments)
        except MemoryLimitError:
            if self.client is self.given_client:
                raise
            # our own cluster has too many threads for this model; one of its own may have fewer
            return score_source(model, X, y, client=None, **arguments)

    def _check_required(self, require: Mapping[str, float], metrics: Mapping[str, float]) -> None:
        missed = [
            f"{name} is {metrics[name]:.4f}, not {least:g}"
            for name, least in require.items()
            if not metrics[name] >= least
        ]
        if missed:
            raise RequirementError(
                f"The model misses what validation requires: {'; '.join(missed)}. Nothing was deployed; see "
                f"{self.pipe.workdir / 'report.html'}, then change the model, the data or the requirement."
            )

    def _deploy(self, stage: Stage) -> tuple[int | None, int | None, str]:
        settings = stage.settings
        if "function" in settings:
            given = [self.models.get(id(value), value) for value in settings["given"]]
            write_maps(settings["function"], given, settings["folder"], self.memory, self.client)
            return None, None, ""
        trained = self.pipe._stage_of(settings["model"], "train")
        metrics = self.scores.get(id(settings["report"]), {})
        model = self.models[id(settings["model"])]
        schema, target = bundle_input(trained)
        self.bundle = write_bundle(
            settings["folder"], model, schema=schema, target=target, metrics=metrics, name=self.pipe.name
        )
        return None, None, ""
