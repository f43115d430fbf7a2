"""LightGBM, fed from scratch through `lightgbm.Sequence`: its bins are in memory, a byte a value.

The parameters and the fitted object are those of LightGBM's own scikit-learn interface.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import clone

from dpipe.errors import InputError
from dpipe.families.boosting import Start, is_ranker, rounds_of, stops_early
from dpipe.families.registry import Estimator, Meta
from dpipe.train.boosting.batches import Batches, Kept
from dpipe.train.boosting.libraries import imported
from dpipe.train.boosting.progress import STRETCH, Progress, Watched, best_round, seed_of

_WATCHED = "valid_0"
#: Rows that are handed over at a time.
_ROWS_AT_A_TIME = 16_384
_STOPPING = ("early_stopping_round", "early_stopping_rounds", "early_stopping", "n_iter_no_change")
_ROUNDS = ("num_iterations", "num_iteration", "n_iter", "num_tree", "num_trees", "num_round", "num_rounds")
#: LightGBM would choose the way it adds up by trying out which is faster, and the last bits with it.
_ORDERED = {"deterministic": True, "force_col_wise": True}
_SEEDS = ("bagging_seed", "feature_fraction_seed", "extra_seed", "objective_seed")


class LightGBMModel:
    """A booster of LightGBM that learns round after round; see `XGBoostModel` for the parameters."""

    resumable: bool

    def __init__(
        self,
        estimator: Estimator,
        start: Start,
        meta: Meta,
        train: Batches,
        held_out: Batches | None,
        begun: Progress,
        folder: str | None,
        threads: int | None,
    ) -> None:
        lightgbm = imported("lightgbm")
        self._lightgbm = lightgbm
        self._estimator = estimator
        with _explained(estimator):
            shell = _shell(estimator, start, meta, train.width)
        self._params = _params(estimator, shell)
        if threads is not None and estimator.n_jobs is None:
            self._params["num_threads"] = threads
        self.history = list(begun.history)
        self._blocks = [_Values(each) for each in train.blocks()]
        self._watched_blocks = [] if held_out is None else [_Values(each) for each in held_out.blocks()]
        self._scores: list[Any] = [None, None]
        self._booster: Any = None
        with _explained(estimator):
            y, w, groups = _targets(estimator, start, train)
            options = _feature_options(start, meta)
            self._train = lightgbm.Dataset(
                _sequences(self._blocks), y, weight=w, group=groups, params=self._params, **options
            )
            self._train.construct()
            self._held_out = None
            if held_out is not None:
                y, w, groups = _targets(estimator, start, held_out)
                self._held_out = self._train.create_valid(
                    _sequences(self._watched_blocks), y, weight=w, group=groups, params=self._params
                )
                self._held_out.construct()
            if start.categories:
                self._train.pandas_categorical = [list(start.categories[j]) for j in sorted(start.categories)]
            settings = _settings(lightgbm.Booster(self._params, self._train).model_to_string())
            self.sampled, self.resumable = _is_sampled(settings), _is_resumable(settings)
            self._done = begun.model.decode()
            self._renew(begun.n_rounds)

    def _renew(self, i: int) -> None:
        """Begin a booster with round `i`, which goes on from what the trees so far predict.

        Its scores are added up stretch by stretch, or all at once where no stretch is begun anew: in the order in
        which training adds them, so that their last bits are the same.
        """
        if i:
            old = self._lightgbm.Booster(model_str=self._done)
            step = STRETCH if self.sampled else i
            first = 0 if self._scores[0] is None else i - step
            for which, blocks in enumerate((self._blocks, self._watched_blocks)):
                for begin in range(first, i, step):
                    more = _predicted(old, blocks, begin, step)
                    scores = self._scores[which]
                    self._scores[which] = more if scores is None else scores + more
            self._train.set_init_score(self._scores[0])
            if self._held_out is not None:
                self._held_out.set_init_score(self._scores[1])
        params = self._params
        if i and self.sampled:
            seeds = np.random.SeedSequence(seed_of(self._seed, i)).generate_state(len(_SEEDS)) // 2
            params = {**params, **dict(zip(_SEEDS, seeds.tolist(), strict=True))}
        self._booster = self._lightgbm.Booster(params, self._train)
        if self._held_out is not None:
            self._booster.add_valid(self._held_out, _WATCHED)

    @property
    def _seed(self) -> Any:
        return self._params.get("random_state")

    def update(self, i: int) -> None:
        """Learn round `i`, counted from 0."""
        with _explained(self._estimator):
            if (
                self.sampled
                and self.resumable
                and i
                and i % STRETCH == 0
                and self._booster.current_iteration()
            ):
                self._done = self._text()
                self._renew(i)
            self._booster.update()
            if self._held_out is not None:
                found = self._booster.eval_valid()
                self.history.append(
                    tuple(
                        Watched(each.metric_name, float(each.metric_value), each.maximize) for each in found
                    )
                )

    def stop(self, i: int) -> bool:
        """Tell whether training ends after round `i`."""
        if i + 1 >= rounds_of(self._estimator):
            return True
        return bool(self.history) and _stopped(self._estimator, self.history)[0]

    def model(self) -> bytes:
        """Give all rounds so far as LightGBM's own text."""
        return self._text().encode()

    def _text(self) -> str:
        new = self._booster.model_to_string(num_iteration=-1)
        return _joined(self._done, new) if self._done else new


def fitted(estimator: Estimator, start: Start, meta: Meta, progress: Progress) -> Estimator:
    """Give the estimator as its own `fit` would leave it."""
    lightgbm = imported("lightgbm")
    booster = lightgbm.Booster(model_str=progress.model.decode())
    made = _shell(estimator, start, meta, booster.num_feature())
    booster.best_iteration = 0
    best = None
    if progress.history and stops_early(estimator):
        best = _stopped(estimator, progress.history, last=True)[1]
        booster.best_iteration = best + 1
    if progress.history:
        at = progress.history[-1 if best is None else best]
        booster.best_score = {_WATCHED: {watched.metric: watched.value for watched in at}}
        names = [watched.metric for watched in progress.history[0]]
        made._evals_result = {
            _WATCHED: {name: [each[j].value for each in progress.history] for j, name in enumerate(names)}
        }
    made._Booster = booster
    made._best_iteration, made._best_score = booster.best_iteration, booster.best_score
    return made


def _stopped(estimator: Estimator, history: Any, *, last: bool = False) -> tuple[bool, int]:
    """Tell whether training stops after a round, and which one was the best: the rule of LightGBM."""
    given = estimator.get_params()
    rounds = stops_early(estimator)
    first_only = bool(given.get("first_metric_only", False))
    least = float(given.get("early_stopping_min_delta") or 0.0)
    name = history[0][0].metric
    chosen = [j for j, each in enumerate(history[0]) if not first_only or each.metric == name]
    bests = [
        best_round([each[j].value for each in history], maximize=history[0][j].maximize, least=least)
        for j in chosen
    ]
    if rounds is None:
        return False, bests[0]
    for best in bests:
        if len(history) - 1 - best >= rounds:
            return True, best
    return last, bests[0]


class _Values:
    """The matrix of one block, mapped while it is used."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self.n_rows = kept.shape[0]

    def matrix(self) -> Any:
        """Map it."""
        return self._kept.block.rows().X


def _sequences(blocks: Sequence[_Values]) -> list[Any]:
    """Give blocks as LightGBM reads them; only one is mapped at a time, for mappings are few."""
    held: list[Any] = [None, None]

    class FromScratch(imported("lightgbm").Sequence):  # type: ignore[misc]
        """One block."""

        batch_size = _ROWS_AT_A_TIME

        def __init__(self, values: _Values) -> None:
            self._values = values

        def __len__(self) -> int:
            return self._values.n_rows

        def __getitem__(self, rows: Any) -> np.ndarray:
            if held[0] is not self:
                held[:] = self, self._values.matrix()
            return _dense(held[1], rows)

    return [FromScratch(each) for each in blocks]


def _dense(matrix: Any, rows: Any) -> np.ndarray:
    found = matrix[rows]
    if not sp.issparse(found):
        dense: np.ndarray = found
        return dense
    return found.toarray() if isinstance(rows, slice) else found.toarray().ravel()


def _predicted(booster: Any, blocks: Sequence[_Values], begin: int, n_rounds: int) -> np.ndarray | None:
    """Give what some rounds add to the score of each row, in the order in which they were trained."""
    if not blocks:
        return None
    return np.concatenate(
        [
            booster.predict(
                each.matrix(), raw_score=True, start_iteration=begin, num_iteration=n_rounds, num_threads=0
            )
            for each in blocks
        ]
    )


def _targets(
    estimator: Estimator, start: Start, batches: Batches
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Give labels as codes, weights times those of their classes, and the sizes of groups."""
    y, w, groups = batches.targets()
    if start.classes is None:
        return y, w, groups
    codes = np.minimum(np.searchsorted(start.classes, y), len(start.classes) - 1)
    unknown = start.classes[codes] != y
    if unknown.any():
        raise InputError(
            f"{type(estimator).__name__}: label {y[unknown][0]!r} of the rows that are held out is none of the "
            f"{len(start.classes)} labels of the others."
        )
    if estimator.class_weight is not None:
        of_class = _class_weights(estimator.class_weight, start)[codes]
        w = of_class if w is None else w * of_class
    return codes, w, groups


def _class_weights(class_weight: Any, start: Start) -> np.ndarray:
    assert start.classes is not None
    assert start.counts is not None
    if class_weight == "balanced":
        return start.counts.sum() / (len(start.classes) * start.counts)
    return np.array([class_weight.get(label, 1.0) for label in start.classes.tolist()], dtype=np.float64)


def _feature_options(start: Start, meta: Meta) -> dict[str, Any]:
    names: Any = "auto" if meta.frame is None else [str(name) for name in meta.frame.columns]
    categorical: Any = sorted(start.categories) if start.categories else "auto"
    return {"feature_name": names, "categorical_feature": categorical}


def _shell(estimator: Estimator, start: Start, meta: Meta, width: int) -> Estimator:
    """Fit a clone on some made-up rows: it then knows classes, columns and parameters as LightGBM keeps them."""
    given = estimator.get_params()
    shell = clone(estimator)
    for name in ("n_estimators", *_ROUNDS):
        if name in given:
            shell.set_params(**{name: 1})
    shell.set_params(**{name: 0 for name in _STOPPING if name in given}, verbose=-1)
    n = 20 if start.classes is None else max(20, 2 * len(start.classes))
    y: Any = np.ones(n) if start.classes is None else start.classes[np.arange(n) % len(start.classes)]
    shell.fit(
        _made_up(start, meta, n, width), y.astype(int) if is_ranker(estimator) else y, **_group(estimator, n)
    )
    for name in ("n_estimators", "verbose", *_ROUNDS, *_STOPPING):
        if name in given:
            setattr(shell, name, given[name])
    if "verbose" not in given:
        del shell.verbose
    # `set_params` keeps a second copy there of all that it was given
    shell._other_params = clone(estimator)._other_params
    return shell


def _group(estimator: Estimator, n: int) -> dict[str, Any]:
    return {"group": [n]} if is_ranker(estimator) else {}


def _made_up(start: Start, meta: Meta, n: int, width: int) -> Any:
    if meta.frame is None:
        return np.zeros((n, width))
    categories = start.categories or {}
    columns = {}
    for j, name in enumerate(meta.frame.columns):
        columns[name] = np.zeros(n)
        if j in categories:
            columns[name] = pd.Categorical.from_codes(np.zeros(n, dtype=int), categories=list(categories[j]))
    return pd.DataFrame(columns)


def _params(estimator: Estimator, shell: Estimator) -> dict[str, Any]:
    """Give the booster's parameters, as the scikit-learn interface makes them."""
    given = estimator.get_params()
    left_out = {"num_iterations", *_ROUNDS, *_STOPPING, "categorical_column"}
    if not {"verbose", "verbosity"} & set(given):
        left_out.add("verbose")
    params = {name: value for name, value in shell.booster_.params.items() if name not in left_out}
    if "verbose" in given:
        params["verbose"] = given["verbose"]
    if not {"deterministic", "force_col_wise", "force_row_wise"} & set(given):
        params |= _ORDERED
    return params


def _settings(text: str) -> dict[str, str]:
    """Read all parameters of a model, by LightGBM's own names for them."""
    lines = text.partition("\nparameters:\n")[2].partition("\nend of parameters")[0].splitlines()
    pairs = (line.strip("[]").partition(": ") for line in lines)
    return {name.rstrip(":"): value for name, _, value in pairs}


def _is_sampled(settings: dict[str, str]) -> bool:
    """Tell whether any round draws rows, columns, thresholds or roundings."""
    shares = ("bagging_fraction", "pos_bagging_fraction", "neg_bagging_fraction")
    rows = int(settings["bagging_freq"]) > 0 and any(float(settings[name]) < 1 for name in shares)
    columns = any(float(settings[name]) < 1 for name in ("feature_fraction", "feature_fraction_bynode"))
    drawn = any(settings[name] == "1" for name in ("extra_trees", "use_quantized_grad"))
    return rows or columns or drawn or settings["objective"].startswith("rank_xendcg")


def _is_resumable(settings: dict[str, str]) -> bool:
    # sampling by gradients begins some rounds late, counted from the first one of a booster
    return settings["data_sample_strategy"] != "goss" and settings["boosting"] != "goss"


class _Parts(NamedTuple):
    """A model as LightGBM writes it."""

    head: str
    trees: list[str]
    tail: str


def _parts(text: str) -> _Parts:
    before, _, rest = text.partition("\nTree=")
    trees, _, tail = rest.partition("\nend of trees\n")
    return _Parts(before, [each.partition("\n")[2].strip("\n") for each in trees.split("\nTree=")], tail)


def _joined(first: str, second: str) -> str:
    """Append the trees of a model to those of another, as LightGBM would write both."""
    one, two = _parts(first), _parts(second)
    trees = [f"Tree={i}\n{tree}\n\n\n" for i, tree in enumerate([*one.trees, *two.trees])]
    head = [
        f"tree_sizes={' '.join(str(len(tree)) for tree in trees)}" if line.startswith("tree_sizes=") else line
        for line in one.head.splitlines()
    ]
    return "\n".join(head) + "\n\n" + "".join(trees) + "end of trees\n" + one.tail


@contextmanager
def _explained(estimator: Estimator) -> Iterator[None]:
    """Say what LightGBM refuses."""
    try:
        yield
    except imported("lightgbm").basic.LightGBMError as err:
        said = str(err).partition(" at /")[0].rstrip(". ")
        raise InputError(
            f"{type(estimator).__name__}: {said}. Check its parameters and the values of X and y."
        ) from err
