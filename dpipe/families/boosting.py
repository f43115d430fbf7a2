"""Gradient boosting by XGBoost and LightGBM: which of their estimators can be trained out of core, and from what.

Neither library is imported here: an estimator of theirs is known by its module and the name of its class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.base import is_classifier

from dpipe.blocks.rows import Rows
from dpipe.blocks.statistics import LabelCounts, ValueCounts
from dpipe.blocks.table import Block, codes, columns_of_numbers, n_columns, n_rows, numbers, select
from dpipe.errors import InputError, MemoryLimitError, UnsupportedEstimatorError
from dpipe.families import refuse
from dpipe.families.expression import Columns, Expression
from dpipe.families.registry import Estimator, Meta, Way, add_named
from dpipe.sizes import MIB, counted, format_bytes

#: Bytes that XGBoost takes for a row: labels, weights, the row's place in the tree; and for each output a gradient, its
#: second derivative and a prediction. Measured with XGBoost 3.2 and LightGBM 4.7, rounded up.
_ROW_NBYTES, _OUTPUT_NBYTES, _TARGET_NBYTES = 40, 20, 16
#: Bytes of a binned value: XGBoost keeps it by rows and by columns.
_BINNED = {"xgboost": 2.7, "lightgbm": 1.2}
#: While the bins are found, XGBoost keeps a summary of each column.
_SUMMARY_NBYTES = 3 * MIB
#: A bin of a histogram: the sums of gradients and of second derivatives.
_BIN_NBYTES = 16
#: XGBoost's own limit of histograms that it has at a time.
_MOST_HISTOGRAMS = 65_536
#: A batch of transformed rows that is handed to the library at a time; a larger block is a batch of its own.
BATCH_NBYTES = 32 * MIB
#: Batches that XGBoost has in memory at a time when they are cached on disk.
_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class Start:
    """What the first pass has found for a boosted model."""

    classes: np.ndarray | None = None
    counts: np.ndarray | None = None
    """How many rows are of each class."""
    categories: Mapping[int, tuple[Any, ...]] | None = None
    """For each categorical column, by position, its categories in the order of their codes."""


def library_of(estimator: Estimator) -> str:
    """Name the package that an estimator is of: "xgboost" or "lightgbm"."""
    return type(estimator).__module__.partition(".")[0]


def is_ranker(estimator: Estimator) -> bool:
    """Tell whether an estimator ranks the rows of groups."""
    return type(estimator).__name__.endswith("Ranker")


def rounds_of(estimator: Estimator) -> int:
    """Count the boosting rounds that an estimator asks for."""
    if library_of(estimator) == "xgboost":
        return int(estimator.get_num_boosting_rounds())
    given = estimator.get_params()
    # the names that LightGBM takes for the same thing
    aliases = (
        "num_iterations",
        "num_iteration",
        "n_iter",
        "num_tree",
        "num_trees",
        "num_round",
        "num_rounds",
    )
    return int(next((given[name] for name in aliases if given.get(name) is not None), given["n_estimators"]))


def stops_early(estimator: Estimator) -> int | None:
    """Give the rounds without progress after which training ends; None if it does not."""
    if library_of(estimator) == "xgboost":
        return estimator.early_stopping_rounds
    given = estimator.get_params()
    aliases = ("early_stopping_round", "early_stopping_rounds", "early_stopping", "n_iter_no_change")
    found = next((given[name] for name in aliases if given.get(name) is not None), None)
    return int(found) if found is not None and int(found) > 0 else None


def value_dtype(estimator: Estimator) -> np.dtype[Any]:
    """Give the type of numbers that a library finds its bins in."""
    return np.dtype(np.float32 if library_of(estimator) == "xgboost" else np.float64)


@dataclass(frozen=True)
class Footprint:
    """Bytes that training takes, beside what a process takes by itself."""

    in_memory: int
    on_disk: int | None
    """With the bins cached on disk; None where the library cannot."""
    cache_nbytes: int
    """Of those bins."""

    @property
    def least(self) -> int:
        """What it takes in any case."""
        return self.in_memory if self.on_disk is None else min(self.on_disk, self.in_memory)

    def fits(self, room: int | None) -> bool:
        """Tell whether the bins are kept in memory, where training may take so many bytes."""
        return self.on_disk is None or room is None or self.in_memory <= room

    @classmethod
    def of(cls, estimator: Estimator, rows: int, width: int, *, n_outputs: int = 1) -> "Footprint":
        """Project them for some rows of some columns."""
        library = library_of(estimator)
        binned = rows * width * _BINNED[library]
        growing = rows * (_ROW_NBYTES + _OUTPUT_NBYTES * n_outputs) + histograms_nbytes(
            estimator, rows, width
        )
        batch = 2.5 * BATCH_NBYTES
        if library == "lightgbm":
            # bins are found in a sample of the rows, which Python holds two and a half times
            sample = 20 * min(estimator.subsample_for_bin, rows) * width
            return cls(int(max(sample, binned + growing) + batch), None, 0)
        # first the bins are found, of which labels and weights are there; then gradients and predictions come
        finding = batch + _SUMMARY_NBYTES * width * _bins(estimator) / 256 + rows * _TARGET_NBYTES
        ahead = min(_BATCHES_AHEAD * BATCH_NBYTES / 4 * _BINNED[library], binned)
        kept = max(finding + binned, binned + growing)
        return cls(int(kept), int(max(finding, ahead + growing)), int(binned))


def _bins(estimator: Estimator) -> int:
    """Count the bins of a column."""
    if library_of(estimator) == "xgboost":
        return int(estimator.max_bin or 256)
    given = estimator.get_params()
    return int(given.get("max_bin") or given.get("max_bins") or 255)


def histograms_nbytes(estimator: Estimator, rows: int, width: int) -> int:
    """Project the histograms of a tree that grows: of each node that may be split, one of all bins."""
    given = estimator.get_params()
    if library_of(estimator) == "lightgbm":
        # there is room for all of them from the beginning
        return min(int(given["num_leaves"]), rows) * width * _bins(estimator) * _BIN_NBYTES
    depth = 6 if given.get("max_depth") is None else int(given["max_depth"])
    nodes = 2 ** min(depth, 30) - 1 if depth else _MOST_HISTOGRAMS
    if given.get("max_leaves"):
        nodes = min(nodes, 2 * int(given["max_leaves"]))
    return min(nodes, _MOST_HISTOGRAMS, rows) * width * _bins(estimator) * _BIN_NBYTES


class Shape(Protocol):
    """What of the data training depends on, as the planner knows it."""

    @property
    def n_rows(self) -> int | None:
        """Rows to learn from."""

    @property
    def held_out(self) -> tuple[int | None, ...]:
        """Rows of each block to be watched on."""


class Room(Protocol):
    """What a run may use, as the planner knows it."""

    @property
    def workers(self) -> int:
        """Processes that may take part."""

    @property
    def shares(self) -> int:
        """Into how many shares the rows are dealt."""

    @property
    def memory(self) -> int | None:
        """The budget of a worker."""

    @property
    def reserved(self) -> int:
        """What a worker takes by itself."""

    @property
    def available(self) -> int | None:
        """What is free where the run takes place."""

    @property
    def scratch(self) -> str:
        """The folder for what is kept on disk."""

    @property
    def scratch_free(self) -> int | None:
        """What is free there."""


def room_of(resources: Room) -> int | None:
    """Give the bytes that a learner may take; None if that is found out where it runs."""
    if resources.memory is not None:
        return (resources.memory - resources.reserved) // _side_by_side(resources)
    return None if resources.available is None else resources.available // 2 // resources.shares


def _side_by_side(resources: Room) -> int:
    """Count the learners in one process."""
    return -(-resources.shares // resources.workers)


def _footprint(estimator: Estimator, shape: Shape, width: int, resources: Room) -> tuple[Footprint, int]:
    """Project what a learner takes, and give the rows of its share."""
    rows = -(-(_all_rows(shape) or 0) // resources.shares)
    return Footprint.of(estimator, rows, width), rows


def _all_rows(shape: Shape) -> int | None:
    rows = (shape.n_rows, *shape.held_out)
    return None if any(n is None for n in rows) else sum(n or 0 for n in rows)


def projected(estimator: Estimator, shape: Shape, width: int, resources: Room) -> int:
    """Project the bytes that training takes; with unknown rows, those that do not depend on them.

    Raises
    ------
    MemoryLimitError
        If that is more than the budget leaves.
    """
    footprint, rows = _footprint(estimator, shape, width, resources)
    room = room_of(resources)
    if resources.memory is not None and room is not None:
        check_room(estimator, footprint, (rows, width), room)
    taken = footprint.in_memory if footprint.fits(room) else footprint.least
    return taken * _side_by_side(resources)


def check_room(estimator: Estimator, footprint: Footprint, shape: tuple[int, int], room: int) -> None:
    """Refuse to train on so many rows and columns in too little memory.

    Raises
    ------
    MemoryLimitError
        With the figures, and what would do.
    """
    if footprint.least <= room:
        return
    more = "" if footprint.on_disk is not None else ", or use XGBoost, which keeps its bins on disk"
    raise MemoryLimitError(
        f"{type(estimator).__name__}: training on {shape[0]:,} rows of {shape[1]:,} columns needs "
        f"{format_bytes(footprint.least)} beside what the process takes by itself, and {format_bytes(max(room, 0))} "
        f"are left. Give {format_bytes(footprint.least - room)} more memory=..., fewer rows or columns, fewer "
        f"leaves or bins{more}."
    )


def scratch(estimator: Estimator, shape: Shape, width: int, resources: Room) -> tuple[str, int | None]:
    """Say what training keeps on disk, and how much that is.

    Raises
    ------
    InputError
        If there is no room for it.
    """
    folder, free = resources.scratch, resources.scratch_free
    room = "" if free is None else f" ({format_bytes(free)} free)"
    rows = _all_rows(shape)
    if rows is None:
        return f"scratch: transformed blocks are kept, blocks of unknown size in {folder}{room}", None
    footprint, _ = _footprint(estimator, shape, width, resources)
    values = int(rows * (width * value_dtype(estimator).itemsize + 16))
    cached = 0 if footprint.fits(room_of(resources)) else footprint.cache_nbytes * resources.shares
    if free is not None and values + cached > 0.9 * free:
        raise InputError(
            f"{type(estimator).__name__} needs up to {format_bytes(values + cached)} of scratch for its transformed "
            f"rows, but {format_bytes(free)} are free in {folder}. Make room there, or name a larger folder in the "
            "environment variable TMPDIR."
        )
    says = f"scratch: transformed blocks are kept, up to {format_bytes(values)} in {folder}{room}"
    if cached:
        return f"{says}; bins are cached there, up to {format_bytes(cached)}", values + cached
    return f"{says}; bins are kept in memory", values


def describe(estimator: Estimator, resources: Room) -> str:
    """Say what training does once the rows are kept."""
    stops = stops_early(estimator)
    watched = f", until {stops} bring no progress" if stops else ""
    together = ""
    if resources.shares > 1:
        where = counted(min(resources.workers, resources.shares), "worker")
        together = f", by {resources.shares} learners together, each of its share of the rows, on {where}"
    return f"{rounds_of(estimator):,} boosting rounds over a binned copy{watched}{together}"


def start(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Start:
    """Check what the first pass has found, and give what training needs of it.

    Raises
    ------
    InputError
        If labels are missing, all the same, or not what the library takes.
    """
    stats = list(stats)
    classes = counts = None
    if is_classifier(estimator):
        labels: LabelCounts = stats.pop(0)
        classes, counts = _checked_classes(estimator, labels)
    return Start(classes, counts, _categories(meta, stats[0] if stats else None))


def _checked_classes(estimator: Estimator, labels: LabelCounts) -> tuple[np.ndarray, np.ndarray]:
    name = type(estimator).__name__
    refuse.unlabelled(estimator, labels.n_missing)
    classes = labels.classes
    if len(classes) < 2:
        only = ", ".join(map(repr, labels.counts))
        raise InputError(
            f"{name} needs at least two classes, but every label of y is {only}. "
            "Check the target column, or how the rows were chosen."
        )
    expected = np.arange(len(classes))
    if library_of(estimator) == "xgboost" and not (
        classes.dtype.kind in "iufb" and bool((classes == expected).all())
    ):
        raise InputError(
            f"{name} takes the labels 0 to {len(classes) - 1}, but y holds {_few(classes)}. Map them, as by "
            "y.map({label: number}); LGBMClassifier takes any labels."
        )
    return classes, np.array([labels.counts[label] for label in classes.tolist()], dtype=np.int64)


def _few(classes: np.ndarray) -> str:
    shown = ", ".join(map(repr, classes[:5].tolist()))
    return f"{shown}, ... ({len(classes):,} in all)" if len(classes) > 5 else shown


def _categorical(meta: Meta) -> dict[int, pd.CategoricalDtype]:
    """Give the categorical columns of an input, by position."""
    if meta.frame is None:
        return {}
    kinds = enumerate(meta.frame.dtypes)
    return {j: kind for j, kind in kinds if isinstance(kind, pd.CategoricalDtype)}


def _is_known(kind: pd.CategoricalDtype) -> bool:
    # the mark that Dask puts in place of categories which it has not seen
    return "__UNKNOWN_CATEGORIES__" not in list(kind.categories)


def _categories(meta: Meta, found: ValueCounts | None) -> dict[int, tuple[Any, ...]]:
    categories: dict[int, tuple[Any, ...]] = {}
    unknown = 0
    for j, kind in _categorical(meta).items():
        if _is_known(kind):
            categories[j] = tuple(kind.categories.tolist())
            continue
        assert found is not None
        values = list(found.counts[unknown])
        unknown += 1
        try:
            categories[j] = tuple(sorted(values))
        except TypeError:  # values of several types have no order but that of their appearance
            categories[j] = tuple(values)
    return categories


def _wants(estimator: Estimator, meta: Meta, source: Expression) -> tuple[tuple[Any, Expression], ...]:
    """Ask for labels, and for the categories that metadata does not tell."""
    _check_columns(estimator, meta)
    wants: list[tuple[Any, Expression]] = []
    if is_classifier(estimator):
        wants.append((LabelCounts, source))
    unknown = tuple(j for j, kind in _categorical(meta).items() if not _is_known(kind))
    if unknown:
        wants.append((ValueCounts, Columns(source, unknown)))
    return tuple(wants)


def _check_columns(estimator: Estimator, meta: Meta) -> None:
    """Refuse columns that are neither numbers nor categories."""
    name = type(estimator).__name__
    categorical = _categorical(meta)
    if categorical and library_of(estimator) == "xgboost" and not estimator.enable_categorical:
        column = repr(meta.names[next(iter(categorical))])
        raise InputError(
            f"{name}: {column} is categorical. Say {name}(enable_categorical=True), or put a OneHotEncoder before it."
        )
    if meta.frame is None:
        if meta.dtype.kind not in "iufb":
            raise InputError(
                f"{name} takes numbers, but X is of type {meta.dtype}. Put an encoder before it."
            )
        return
    for column, kind in meta.frame.dtypes.items():
        if not isinstance(kind, pd.CategoricalDtype) and not pd.api.types.is_numeric_dtype(kind):
            more = ", enable_categorical=True" if library_of(estimator) == "xgboost" else ""
            raise InputError(
                f"{name}: {column!r} is of type {kind}; it takes numbers and categories. Make it a category, as by "
                f"X.astype({{{column!r}: 'category'}}){more and f' with {name}({more[2:]})'}, or put a OneHotEncoder "
                "before it."
            )


def as_matrix(value: Block, categories: Mapping[int, tuple[Any, ...]], dtype: np.dtype[Any]) -> Block:
    """Give a block as a library takes it: row-major or CSR, categories as their codes and missing as NaN."""
    if not isinstance(value, pa.Table | pd.DataFrame):
        matrix = numbers(value)
        if not isinstance(matrix, np.ndarray):
            return matrix.tocsr().astype(dtype)
        return np.ascontiguousarray(matrix, dtype=dtype)
    out = np.empty((n_rows(value), n_columns(value)), dtype=dtype)
    plain = [j for j in range(out.shape[1]) if j not in categories]
    # one column after another: a second copy of all of them would take twice their memory
    for j, column in zip(plain, columns_of_numbers(select(value, plain))[1], strict=True):
        found, gaps, _ = column.minus(0.0)
        out[:, j] = found
        out[gaps, j] = np.nan
    for j, values in categories.items():
        encoded = codes(value, j)
        code_of = {category: float(code) for code, category in enumerate(values)}
        lookup = np.array([*(code_of.get(category, np.nan) for category in encoded.values), np.nan])
        out[:, j] = lookup[encoded.codes]  # what is missing is -1: the last
    return out


def check_rows(estimator: Estimator, rows: Rows) -> None:
    """Check the targets and weights of a block.

    Raises
    ------
    InputError
        If a target is missing, or a weight is missing or negative.
    """
    name = type(estimator).__name__
    y = rows.y
    if not is_classifier(estimator) and y is not None:
        absent = ~np.isfinite(np.asarray(y, dtype=np.float64))
        if absent.any():
            raise InputError(
                f"{name}: {np.count_nonzero(absent):,} values of y are NaN or infinite in a block. Drop those rows "
                "first."
            )
    if rows.w is not None:
        w = np.asarray(rows.w, dtype=np.float64)
        if not bool((np.isfinite(w) & (w >= 0)).all()):
            raise InputError(
                f"{name}: sample_weight holds NaN, infinity or a negative weight. Weights must be at least 0."
            )


def _refused(estimator: Estimator, parameter: str, value: Any, instead: str) -> UnsupportedEstimatorError:
    return UnsupportedEstimatorError(
        f"{type(estimator).__name__}({parameter}={value!r}) cannot be trained out of core. {instead}"
    )


def _check_common(estimator: Estimator) -> dict[str, Any]:
    # before anything else: XGBoost draws from it whenever it is asked for its parameters
    if not isinstance(estimator.random_state, int | np.integer | None):
        raise InputError(
            f"{type(estimator).__name__}: random_state is a {type(estimator.random_state).__name__}, which could not "
            "be drawn from again by a run that goes on. Give an integer."
        )
    given: dict[str, Any] = estimator.get_params()
    if callable(given.get("objective")):
        raise _refused(
            estimator, "objective", "a function", "Name one of the objectives that the library has."
        )
    rounds = rounds_of(estimator)
    if rounds < 1:
        raise InputError(f"n_estimators must be at least 1, got {rounds}.")
    return given


def _check_xgboost(estimator: Estimator) -> None:
    given = _check_common(estimator)
    for parameter, allowed in (
        ("booster", (None, "gbtree")),
        ("tree_method", (None, "auto", "hist")),
        ("device", (None, "cpu")),
        ("feature_weights", (None,)),
    ):
        if given[parameter] not in allowed:
            said = ", ".join(repr(value) for value in allowed[-1:])
            raise _refused(estimator, parameter, given[parameter], f"Use {parameter}={said}.")
    metrics = given["eval_metric"] if isinstance(given["eval_metric"], list) else [given["eval_metric"]]
    if any(map(callable, metrics)):
        raise _refused(
            estimator, "eval_metric", "a function", "Name one of the metrics that the library has."
        )
    if given["callbacks"]:
        raise _refused(
            estimator, "callbacks", given["callbacks"], "Use early_stopping_rounds=..., or leave them out."
        )
    for parameter in ("updater", "process_type"):
        if parameter in given:
            raise _refused(estimator, parameter, given[parameter], "Leave it out.")


def _check_lightgbm(estimator: Estimator) -> None:
    given = _check_common(estimator)
    for parameter in ("boosting_type", "boosting", "boost"):
        if given.get(parameter) not in (None, "gbdt", "gbrt", "goss"):
            raise _refused(estimator, parameter, given[parameter], f"Use {parameter}='gbdt'.")
    for parameter in ("linear_tree", "linear_trees"):
        if given.get(parameter):
            raise _refused(
                estimator, parameter, given[parameter], "It needs the raw values in memory; leave it out."
            )
    for parameter in ("device_type", "device"):
        if given.get(parameter) not in (None, "cpu"):
            raise _refused(estimator, parameter, given[parameter], f"Use {parameter}='cpu'.")


def _never_finished(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    raise AssertionError("boosted models come out of their rounds")


def _takes_weights(estimator: Estimator) -> bool:
    return True


_XGBOOST = ("XGBClassifier", "XGBRegressor", "XGBRanker", "XGBRFClassifier", "XGBRFRegressor")
_LIGHTGBM = ("LGBMClassifier", "LGBMRegressor", "LGBMRanker")
_EXACT = "its own bins, found batch after batch; the same trees without sampling"
for _package, _names, _check in (
    ("xgboost", _XGBOOST, _check_xgboost),
    ("lightgbm", _LIGHTGBM, _check_lightgbm),
):
    for _name in _names:
        add_named(
            f"{_package}.sklearn",
            _name,
            Way(
                "boost",
                _never_finished,
                wants_of=_wants,
                check=_check,
                needs_y=True,
                exact=_EXACT,
                takes_weights=_takes_weights,
            ),
        )
