"""What learns in order, block after block, by `partial_fit`: SGD, perceptrons, mini-batches."""

import copy
import itertools
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.base import clone, is_classifier
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import IncrementalPCA, MiniBatchDictionaryLearning, MiniBatchNMF
from sklearn.linear_model import Perceptron, SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor

from dpipe.blocks.matrix import RowOrder
from dpipe.blocks.rows import Rows
from dpipe.blocks.statistics import LabelCounts
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse
from dpipe.families.learner_calls import check_labels, learn_rows, takes
from dpipe.families.registry import Estimator, Meta, Way, add

#: Learners whose order of visits is known; the others are left to their own `partial_fit`.
_ORDERED = (SGDClassifier, SGDRegressor)


def _check(estimator: Estimator) -> None:
    if getattr(estimator, "class_weight", None) == "balanced":
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(class_weight='balanced') cannot be learned in order: the weights "
            "depend on all labels. Pass them as a dict, {label: weight}."
        )
    if getattr(estimator, "early_stopping", False):
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(early_stopping=True) cannot be learned block after block. "
            "Use early_stopping=False, and choose the number of epochs."
        )


def start(
    estimator: Estimator, stats: Sequence[Any], classes: Sequence[Any] | None = None
) -> tuple[Estimator, np.ndarray | None]:
    """Give an unfitted learner and the classes that it will meet: those that are given, or that were found.

    Raises
    ------
    InputError
        If the labels of a classifier are missing in some rows, or are all the same.
    """
    learner = clone(estimator, safe=False)  # what is no estimator of scikit-learn is copied
    if not takes(estimator, "classes"):
        return learner, None
    if classes is not None:
        return learner, np.unique(np.asarray(classes))
    labels: LabelCounts = stats[0]
    name = type(estimator).__name__
    refuse.unlabelled(estimator, labels.n_missing)
    if len(labels.counts) < 2:
        only = ", ".join(map(repr, labels.counts))
        raise InputError(
            f"{name} needs at least two classes, but every label of y is {only}. "
            "Check the target column, or how the rows were chosen."
        )
    return learner, labels.classes


def learn(
    learner: Estimator,
    classes: np.ndarray | None,
    rows: Rows,
    position: tuple[int, int],
    *,
    batch_size: int = 32,
    check_classes: bool = False,
) -> Estimator:
    """Learn one block, as `partial_fit` does, and give the new learner; the old one is left as it was.

    With `random_state=None` each block is shuffled by a seed of its own, made from `position`
    (epoch, block), so that a run can be repeated; an integer seeds every block alike, as it does when
    `partial_fit` is called by hand.
    """
    where = f"{type(learner).__name__}, epoch {position[0] + 1}, block {position[1]}"
    learner = copy.deepcopy(learner)
    given = learner.get_params(deep=False) if hasattr(learner, "get_params") else {}
    kept = {name: given[name] for name in ("shuffle", "random_state") if name in given}
    if rows.ordered:
        learner.shuffle = False
    elif kept.get("random_state", 0) is None:
        # learners that begin apart begin with the same weights
        learner.random_state = _seed((0, 0) if _draws_weights(learner) else position)
    try:
        if check_classes and classes is not None and rows.y is not None:
            check_labels(rows.y, classes)
        with single_threaded_blas():
            learn_rows(learner, rows, classes, batch_size)
    except ValueError as err:
        said = textwrap.shorten(str(err), 300, placeholder=" ...")  # scikit-learn may print a whole block
        said += "" if said.endswith(".") else "."
        raise InputError(f"{where}: {said}{_advice(str(err))}") from err
    return learner.set_params(**kept) if kept else learner


def _draws_weights(learner: Estimator) -> bool:
    return isinstance(learner, MLPClassifier | MLPRegressor) and not hasattr(learner, "coefs_")


#: What scikit-learn, and dpipe, say of a learner that has diverged.
_DIVERGED = ("under-/overflow", "non-finite parameter weights", "no longer finite", "its loss is ")


def _advice(said: str) -> str:
    if not any(sign in said for sign in _DIVERGED):
        return ""
    return (
        " It has diverged: standardise its columns (StandardScaler), or take smaller steps (eta0, "
        "learning_rate_init)."
    )


def learner_nbytes(estimator: Estimator, width: int) -> int:
    """Estimate what a learner of so many columns takes while it learns, in bytes: its weights, and copies of them.

    Classes are found later, so that one output is counted; of what is not known, nothing is.
    """
    if isinstance(estimator, MLPClassifier | MLPRegressor):
        hidden = np.atleast_1d(estimator.hidden_layer_sizes).tolist()
        layers = [width, *hidden, 1]
        # beside the weights: gradients, updates and two moments of each
        n_floats = 5 * sum((a + 1) * b for a, b in itertools.pairwise(layers))
    else:
        rows = getattr(estimator, "n_clusters", None) or getattr(estimator, "n_components", None)
        n_floats = (width + 1) * (rows if isinstance(rows, int) else 1)
    # each step learns on a copy, and leaves the learner that it was given
    return 8 * 2 * n_floats


def _seed(position: tuple[int, int]) -> int:
    return int(np.random.SeedSequence(position).generate_state(1)[0] // 2)


def learning_order(
    learner: Estimator,
    classes: np.ndarray | None,
    n_rows: int,
    position: tuple[int, int],
    foreseen: RowOrder | None,
) -> RowOrder | None:
    """Give the order in which `learn` would visit the rows of a block; None to leave it to `partial_fit`.

    Visiting the rows of a large block at random misses the processor's caches at every step: on half a
    million rows of 24 entries it takes four times as long as visiting them one after another. Rows
    that are put in order beforehand, by another worker, are learned with the same result to the bit.
    """
    several = classes is not None and len(classes) > 2  # each class has an order of its own then
    if type(learner) not in _ORDERED or not learner.shuffle or several or n_rows < 2:
        return None
    if learner.random_state is None:
        return RowOrder(np.random.default_rng(_seed(position)).permutation(n_rows))
    return foreseen


def foresees(estimator: Estimator, n_rows: int) -> bool:
    """Tell whether the order of learning is the same for all blocks of a length."""
    if type(estimator) not in _ORDERED:
        return False
    seeded = isinstance(estimator.random_state, int | np.integer)
    return bool(estimator.shuffle and seeded and n_rows >= 2)


def foreseen_order(estimator: Estimator, n_rows: int) -> RowOrder:
    """Find the order of scikit-learn's own shuffle, by watching a learner.

    Each row gets a feature of its own, and the step size falls with the time of the visit: what was
    learned of a feature then tells when its row was visited.
    """
    each = np.arange(n_rows, dtype=np.int32)
    X = sp.csr_matrix((np.ones(n_rows), each, np.arange(n_rows + 1, dtype=np.int32)), shape=(n_rows, n_rows))
    classifies = is_classifier(estimator)
    watched = (SGDClassifier if classifies else SGDRegressor)(
        loss="hinge" if classifies else "squared_error",
        penalty=None,
        learning_rate="invscaling",
        eta0=1.0,
        power_t=1.0,
        fit_intercept=False,
        random_state=int(estimator.random_state),
    )
    if classifies:
        watched.partial_fit(X, each % 2, classes=[0, 1])
    else:
        watched.partial_fit(X, np.ones(n_rows))
    return RowOrder(np.rint(1 / np.abs(watched.coef_.reshape(-1))).astype(np.int64) - 1)


def finish_learner(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    """Give the learner, which has learned all."""
    return stats[0]


def check_learner(estimator: Estimator) -> None:
    """Refuse parameters that need all rows at once.

    Raises
    ------
    UnsupportedEstimatorError
        With what to use instead.
    """
    _check(estimator)
    if getattr(estimator, "solver", "sgd") not in ("sgd", "adam"):
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(solver={estimator.solver!r}) cannot be learned block after block. "
            "Use solver='adam' or 'sgd'."
        )


def _components(estimator: Estimator, meta: Meta) -> Meta:
    wanted = getattr(estimator, "n_clusters", None) or getattr(estimator, "n_components", None)
    return Meta(n_columns=wanted if isinstance(wanted, int) else None, dtype=meta.dtype)


EXACT = "as partial_fit by hand on the same blocks"
add(
    SGDClassifier,
    Way("stream", finish_learner, lambda est: (LabelCounts,), check=_check, needs_y=True, exact=EXACT),
)
add(SGDRegressor, Way("stream", finish_learner, check=_check, needs_y=True, exact=EXACT))
for _classifier in (Perceptron, MLPClassifier):
    add(
        _classifier,
        Way(
            "stream",
            finish_learner,
            lambda est: (LabelCounts,),
            check=check_learner,
            needs_y=True,
            exact=EXACT,
        ),
    )
add(MLPRegressor, Way("stream", finish_learner, check=check_learner, needs_y=True, exact=EXACT))
for _unsupervised in (MiniBatchKMeans, IncrementalPCA, MiniBatchNMF, MiniBatchDictionaryLearning):
    add(_unsupervised, Way("stream", finish_learner, output=_components, exact=EXACT))
