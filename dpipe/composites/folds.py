"""Folds for the parts of a composite: scikit-learn's own, told block by block."""

from collections.abc import Sequence

from sklearn.model_selection import KFold, StratifiedKFold

from dpipe.blocks.folds import Folds, KFolds, LabelPlaces, StratifiedFolds
from dpipe.composites.views import InFold, View
from dpipe.errors import UnsupportedEstimatorError
from dpipe.families.asking import Asking
from dpipe.families.registry import Estimator


def check_folds(estimator: Estimator, *, classifies: bool) -> None:
    """Refuse folds that cannot be told from the places and labels of the rows.

    Raises
    ------
    UnsupportedEstimatorError
        For other splitters than KFold and StratifiedKFold, and for shuffling without an integer seed.
    """
    cv = estimator.cv
    known = cv is None or (isinstance(cv, int) and not isinstance(cv, bool))
    known = known or type(cv) is KFold or (type(cv) is StratifiedKFold and classifies)
    if known and getattr(cv, "shuffle", False) and not isinstance(cv.random_state, int):
        known = False
    if not known:
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(cv={cv!r}) cannot be fitted block by block. Use a number of folds, or KFold "
            "or StratifiedKFold, shuffled with an integer random_state if at all."
        )


def folds_of(estimator: Estimator, *, classifies: bool) -> Asking:
    """Give the folds and their number; what is stratified takes a reading to learn where each label stands."""
    cv = estimator.cv
    n_splits = 5 if cv is None else cv if isinstance(cv, int) else cv.n_splits
    seed = cv.random_state if getattr(cv, "shuffle", False) else None
    if type(cv) is KFold or not (classifies or type(cv) is StratifiedKFold):
        return KFolds(n_splits, seed), n_splits
    (places,) = yield (LabelPlaces,)
    return StratifiedFolds(places, n_splits, seed), n_splits


def outside(folds: Folds, n_splits: int, then: View | None) -> Sequence[View]:
    """Give the training rows of each fold."""
    return [InFold(folds, fold, inside=False, then=then) for fold in range(n_splits)]
