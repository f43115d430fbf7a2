"""Searches beside each other, at equal budget: `python -m benchmarks.search`.

A budget is a number of calls of `partial_fit`, each of one block: as many as Hyperband makes. One Markdown table gives
seconds, calls, blocks that were read, and the score of each result on rows that no search has seen. What random search
would have to do for the score of Hyperband is the expected best of k candidates that are trained to the end.
"""

import math
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import mean
from typing import Any

import dask.array as da
import numpy as np
import scipy.stats
from sklearn.base import clone
from sklearn.neural_network import MLPClassifier

import dpipe
from benchmarks.fit_and_score import conditions

FEATURES = 6
SPACE: dict[str, Any] = {
    "hidden_layer_sizes": [(4,), (8,), (16,), (32,), (8, 8), (16, 16)],
    "alpha": scipy.stats.loguniform(1e-6, 1e2),
    "learning_rate_init": scipy.stats.loguniform(1e-5, 1e0),
    "batch_size": [32, 64, 128, 256, 512],
    "activation": ["relu", "tanh", "logistic"],
}


@dataclass(frozen=True)
class Data:
    """Rows to search with, in blocks, and rows to compare the results by."""

    X: np.ndarray
    y: np.ndarray
    test: tuple[np.ndarray, np.ndarray]
    block_rows: int
    max_iter: int
    seed: int

    @property
    def lazy(self) -> tuple[da.Array, da.Array]:
        """The rows as Dask arrays."""
        return (
            da.from_array(self.X, chunks=(self.block_rows, FEATURES)),
            da.from_array(self.y, chunks=self.block_rows),
        )

    def score(self, model: Any) -> float:
        """Score a result on the rows that no search has seen."""
        return float(model.score(*self.test))


@dataclass(frozen=True)
class Result:
    """What one search has cost and given."""

    seconds: float
    calls: int
    blocks: int
    score: float
    work_of_random: float = float("nan")
    """Calls that random search makes for the same score, for each call of this one."""


def made(rows: int, block_rows: int, max_iter: int, seed: int) -> Data:
    """Rings around the origin in two features, two classes by turns; the other features are noise."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows + 20_000, FEATURES))
    y = (np.floor(1.1 * np.hypot(X[:, 0], X[:, 1])) % 2).astype(int)
    flipped = rng.random(len(y)) < 0.05
    y[flipped] = 1 - y[flipped]
    return Data(X[:rows], y[:rows], (X[rows:], y[rows:]), block_rows, max_iter, seed)


def model() -> MLPClassifier:
    """What is searched."""
    return MLPClassifier(random_state=0)


def budget_of(data: Data) -> int:
    """Calls that Hyperband makes."""
    metadata = dpipe.Search(model(), SPACE, max_iter=data.max_iter).metadata
    assert metadata is not None
    return int(metadata["partial_fit_calls"])


def hyperband(data: Data) -> Result:
    """`dpipe.search`, and what random search would take for the same score on the same held-out rows."""
    began = time.perf_counter()
    found = dpipe.search(model(), SPACE, *data.lazy, max_iter=data.max_iter, random_state=data.seed)
    seconds = time.perf_counter() - began
    calls = found.metadata_["partial_fit_calls"]
    n_pool = 2 * calls * 3 // data.max_iter
    pool = dpipe.search(
        model(),
        SPACE,
        *data.lazy,
        method="random",
        n_initial_parameters=n_pool,
        max_iter=data.max_iter,
        random_state=data.seed + 1000,
    )
    scores = np.sort(np.nan_to_num(pool.cv_results_["test_score"]))
    n_needed = next((k for k in range(1, n_pool) if expected_best(scores, k) >= found.best_score_), n_pool)
    score = data.score(found.best_estimator_)
    return Result(seconds, calls, found.read_.blocks, score, n_needed * data.max_iter / calls)


def expected_best(scores: np.ndarray, k: int) -> float:
    """Give the expected best of k of these scores, which are in ascending order.

    Examples
    --------
    >>> expected_best(np.array([1.0, 2.0, 3.0]), 3), expected_best(np.array([1.0, 3.0]), 1)
    (3.0, 2.0)
    """
    n = len(scores)
    return float(sum(score * comb(i, k - 1) for i, score in enumerate(scores)) / comb(n, k))


def random_search(data: Data) -> Result:
    """`dpipe.search` with as many candidates, trained to the end, as the budget allows."""
    n = max(budget_of(data) // data.max_iter, 1)
    began = time.perf_counter()
    found = dpipe.search(
        model(),
        SPACE,
        *data.lazy,
        method="random",
        n_initial_parameters=n,
        max_iter=data.max_iter,
        random_state=data.seed,
    )
    seconds = time.perf_counter() - began
    return Result(seconds, n * data.max_iter, found.read_.blocks, data.score(found.best_estimator_))


def halving_in_memory(data: Data) -> Result:
    """scikit-learn's HalvingRandomSearchCV on all rows in memory: candidates see more rows from round to round."""
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingRandomSearchCV, ShuffleSplit

    epochs = max(data.max_iter * data.block_rows // len(data.X), 1)
    search = HalvingRandomSearchCV(
        model().set_params(max_iter=epochs, tol=0.0, n_iter_no_change=10**6),
        SPACE,
        n_candidates=_halving_candidates(data, epochs),
        min_resources="exhaust",
        cv=ShuffleSplit(1, test_size=0.2, random_state=data.seed),
        random_state=data.seed,
    )
    began = time.perf_counter()
    search.fit(data.X, data.y)
    seconds = time.perf_counter() - began
    learned = (
        0.8
        * epochs
        * sum(n * rows for n, rows in zip(search.n_candidates_, search.n_resources_, strict=True))
    )
    learned += epochs * len(data.X)  # the best one, on all rows
    blocks = round(learned / data.block_rows)
    return Result(seconds, blocks, blocks, data.score(search.best_estimator_))


def _halving_candidates(data: Data, epochs: int) -> int:
    """Give the most candidates that halving can begin with in the budget."""
    whole = epochs * len(data.X) / data.block_rows
    n = 3
    while True:
        rounds = 1 + int(math.log(n + 1, 3))
        last = sum(0.8 * whole * math.ceil((n + 1) / 3**i) / 3 ** (rounds - 1 - i) for i in range(rounds))
        if last + whole > budget_of(data):
            return n
        n += 1


def optuna_pruned(data: Data) -> Result:
    """Optuna with its own sampler and Hyperband's pruner: one trial after another, each a stream of its own."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    learned, held = _split(data)
    budget, calls, best = budget_of(data), 0, (-1.0, model())

    def objective(trial: Any) -> float:
        nonlocal calls, best
        estimator = model().set_params(
            hidden_layer_sizes=tuple(
                map(
                    int,
                    trial.suggest_categorical(
                        "hidden", [_text(s) for s in SPACE["hidden_layer_sizes"]]
                    ).split(),
                )
            ),
            alpha=trial.suggest_float("alpha", 1e-6, 1e2, log=True),
            learning_rate_init=trial.suggest_float("learning_rate_init", 1e-5, 1e0, log=True),
            batch_size=trial.suggest_categorical("batch_size", SPACE["batch_size"]),
            activation=trial.suggest_categorical("activation", SPACE["activation"]),
        )
        for call in range(data.max_iter):
            estimator.partial_fit(*learned[call % len(learned)], classes=[0, 1])
            calls += 1
            if call + 1 in (1, 3, 9, 27, 81):
                score = estimator.score(*held)
                best = max(
                    best, (score, clone(estimator) if score < best[0] else estimator), key=lambda b: b[0]
                )
                trial.report(score, call + 1)
                if trial.should_prune():
                    raise optuna.TrialPruned
            if calls >= budget:
                trial.study.stop()
                break
        return float(estimator.score(*held))

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=data.seed),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=data.max_iter),
    )
    began = time.perf_counter()
    study.optimize(objective, n_trials=budget)
    return Result(time.perf_counter() - began, calls, calls, data.score(best[1]))


def _text(sizes: Sequence[int]) -> str:
    return " ".join(map(str, sizes))


def _split(data: Data) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[np.ndarray, np.ndarray]]:
    """Hold a fifth of the rows out, and cut the others into as many blocks."""
    n_held = len(data.X) // 5
    order = np.random.default_rng(data.seed).permutation(len(data.X))
    held, rest = order[:n_held], order[n_held:]
    blocks = np.array_split(rest, len(data.X) // data.block_rows)
    return [(data.X[rows], data.y[rows]) for rows in blocks], (data.X[held], data.y[held])


CONTENDERS: dict[str, Callable[[Data], Result]] = {
    function.__name__: function for function in (hyperband, random_search, halving_in_memory, optuna_pruned)
}


def row(name: str, runs: Sequence[Result]) -> str:
    """Draw one row of the table: means over the seeds.

    Examples
    --------
    >>> row("mine", [Result(1.0, 10, 4, 0.5)])
    '| mine | 1.0 s | 10 | 4 | 0.5000 |  |'
    """
    more = mean(run.work_of_random for run in runs)
    cells = [
        name,
        f"{mean(run.seconds for run in runs):.1f} s",
        f"{mean(run.calls for run in runs):,.0f}",
        f"{mean(run.blocks for run in runs):,.0f}",
        f"{mean(run.score for run in runs):.4f}",
        "" if np.isnan(more) else f"{more:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data, run the searches in turns, print the table.

    Returns
    -------
    int
        Exit status: 0.
    """
    parser = ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--rows", type=int, default=48_000, help="rows to search with (48_000)")
    parser.add_argument("--block-rows", type=int, default=2_000, help="rows of a block (2_000)")
    parser.add_argument("--max-iter", type=int, default=81, help="the most calls of a candidate (81)")
    parser.add_argument("--repeat", type=int, default=3, help="seeds (3)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="which (%(default)s)")
    arguments = parser.parse_args(argv)
    chosen = arguments.contenders.split(",")
    runs: dict[str, list[Result]] = {name: [] for name in chosen}
    for seed in range(arguments.repeat):
        data = made(arguments.rows, arguments.block_rows, arguments.max_iter, seed)
        for name in chosen:
            runs[name].append(CONTENDERS[name](data))
    print(conditions(arguments.rows, arguments.repeat), end="\n\n")
    print(
        "| search | seconds | calls | blocks read | score | work of random search |\n|---|---|---|---|---|---|"
    )
    for name in chosen:
        print(row(name, runs[name]), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
