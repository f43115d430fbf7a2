"""Estimators around estimators, varied."""

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import StackingClassifier, StackingRegressor, VotingClassifier, VotingRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MinMaxScaler,
    OneHotEncoder,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)

from tests.families.conformance import ARRAYS, CSR, FRAMES, Case, each
from tests.kernel_cases import awkward_frame

SCALED = ("plain", "small", "positive", "flag")


def classes():
    variants = [OneVsRestClassifier(LogisticRegression()), OneVsRestClassifier(GaussianNB())]
    yield from each(variants, (SCALED, FRAMES + ARRAYS), y="text", rtol=1e-6)
    yield from each(variants, (SCALED, ("frame", "array")), y="flag", rtol=1e-6)
    yield Case(OneVsRestClassifier(LogisticRegression()), SCALED, CSR, y="label", rtol=1e-6)
    scaled = make_pipeline(StandardScaler(), LogisticRegression())
    yield Case(OneVsRestClassifier(scaled), SCALED, ("frame", "array"), y="text", rtol=1e-6)
    variants = [OneVsOneClassifier(LogisticRegression()), OneVsOneClassifier(GaussianNB())]
    yield from each(variants, (SCALED, ("frame", "parquet", *ARRAYS)), y="text", rtol=1e-6)


def targets():
    variants = [
        MultiOutputRegressor(Ridge()),
        MultiOutputRegressor(make_pipeline(StandardScaler(), Ridge(0.1))),
    ]
    yield from each(variants, (SCALED, FRAMES + ARRAYS), y="two")
    yield Case(MultiOutputRegressor(Ridge()), SCALED, ("frame", "array"), y="two", weighted=True)
    variants = [MultiOutputClassifier(LogisticRegression()), MultiOutputClassifier(GaussianNB())]
    yield from each(variants, (SCALED, ("frame", "array")), y="two labels", rtol=1e-6)


def votes():
    parts = [("bayes", GaussianNB()), ("line", make_pipeline(StandardScaler(), LogisticRegression()))]
    columns = make_column_transformer((StandardScaler(), ["plain"]), (OneHotEncoder(), ["small"]))
    variants = [
        VotingClassifier(parts),
        VotingClassifier([*parts, ("none", "drop")], voting="soft", weights=[1, 2, 9]),
    ]
    yield from each(variants, (SCALED, FRAMES + ARRAYS), y="text", rtol=1e-6)
    mixed = VotingClassifier([("columns", make_pipeline(columns, LogisticRegression())), *parts])
    yield Case(mixed, SCALED, ("frame", "parquet"), y="label", rtol=1e-6)
    plain = [("bayes", GaussianNB()), ("line", LogisticRegression())]
    yield Case(VotingClassifier(plain), SCALED, ("frame", "array"), y="label", weighted=True, rtol=1e-6)
    parts = [("line", LinearRegression()), ("ridge", Ridge())]
    yield from each(
        [VotingRegressor(parts), VotingRegressor(parts, weights=[1, 3])], (SCALED, FRAMES), y="number"
    )


def transformed_targets():
    variants = [
        TransformedTargetRegressor(),
        TransformedTargetRegressor(Ridge(), transformer=StandardScaler()),
        TransformedTargetRegressor(Ridge(), func=np.cbrt, inverse_func=lambda y: y**3),
        TransformedTargetRegressor(make_pipeline(MinMaxScaler(), Ridge()), transformer=PowerTransformer()),
        TransformedTargetRegressor(transformer=QuantileTransformer(n_quantiles=15), check_inverse=False),
    ]
    yield from each(variants, (SCALED, FRAMES + ARRAYS), y="number", rtol=1e-5)
    yield Case(variants[1], SCALED, ("frame", "array"), y="two")
    yield Case(variants[1], SCALED, ("frame", "array"), y="number", weighted=True)
    positive = TransformedTargetRegressor(PoissonRegressor(), func=np.square, inverse_func=np.sqrt)
    yield Case(positive, SCALED, ("frame",), y="weight", rtol=1e-5)


def same_folds(ours, theirs):
    """scikit-learn puts a random state into the splitter that it was given."""
    assert type(ours.cv) is type(theirs.cv)
    theirs.cv = ours.cv


def stacks():
    parts = [("bayes", GaussianNB()), ("line", make_pipeline(StandardScaler(), LogisticRegression()))]
    variants = [
        StackingClassifier(parts, cv=3),
        StackingClassifier(parts, cv=KFold(4), stack_method="predict", passthrough=True),
        StackingClassifier(
            parts, final_estimator=GaussianNB(), cv=StratifiedKFold(3, shuffle=True, random_state=1)
        ),
    ]
    yield from each(
        variants, (SCALED, ("frame", "parquet", "array", "numpy")), y="text", rtol=1e-5, align=same_folds
    )
    yield from each(variants[:2], (SCALED, ("frame",)), y="flag", rtol=1e-5, align=same_folds)
    parts = [
        ("line", LinearRegression()),
        ("ridge", make_pipeline(StandardScaler(), Ridge())),
        ("none", "drop"),
    ]
    variants = [
        StackingRegressor(parts, final_estimator=Ridge(), cv=3),
        StackingRegressor(parts, cv=3),
        StackingRegressor(
            parts, final_estimator=Ridge(), cv=KFold(3, shuffle=True, random_state=0), passthrough=True
        ),
    ]
    yield from each(variants, (SCALED, ("frame", "parquet", "array", "numpy")), y="number", rtol=1e-6)


def calibrations():
    variants = [
        CalibratedClassifierCV(LogisticRegression(), cv=3),
        CalibratedClassifierCV(GaussianNB(), cv=3, ensemble=False),
        CalibratedClassifierCV(make_pipeline(StandardScaler(), GaussianNB()), cv=KFold(3)),
        CalibratedClassifierCV(GaussianNB(), cv=3, method="isotonic"),
        CalibratedClassifierCV(LogisticRegression(), cv=3, method="isotonic", ensemble=False),
        CalibratedClassifierCV(GaussianNB(), cv=3, method="temperature", ensemble=False),
        CalibratedClassifierCV(LogisticRegression(C=1e-4), cv=3, method="temperature"),
    ]
    yield from each(variants, (SCALED, ("frame", "parquet", "array", "numpy")), y="text", rtol=1e-4)
    yield from each(variants, (SCALED, ("frame", "array")), y="flag", rtol=1e-4)
    weighted = (variants[0], variants[4], variants[5])
    yield from each(weighted, (SCALED, ("frame", "array")), y="flag", weighted=True, rtol=1e-4)
    frame = awkward_frame()
    fitted = FrozenEstimator(GaussianNB().fit(frame[list(SCALED)], frame["plain"] > 0))
    frozen = [CalibratedClassifierCV(fitted, cv=3), CalibratedClassifierCV(fitted, cv=3, ensemble=True)]
    yield from each(frozen, (SCALED, ("frame", "parquet")), y="flag", rtol=1e-4)


TRANSFORMERS = ()
PREDICTORS = (stacks, calibrations, classes, targets, votes, transformed_targets)
