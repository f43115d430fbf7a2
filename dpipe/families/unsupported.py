"""Why an estimator of scikit-learn cannot be fitted block by block, and what would do instead."""

from collections.abc import Mapping
from typing import NamedTuple


class Refusal(NamedTuple):
    """Why there is no way, and what to use in its place; either may be empty."""

    why: str
    instead: str


_PAIRS = "it compares all pairs of rows"
_OTHERS = "it fits other estimators many times"
_MANY_PASSES = "it would read the data many times"

#: By the second part of the module's name.
_BY_MODULE: Mapping[str, Refusal] = {
    "cluster": Refusal("it needs the distances between rows, or many passes", "KMeans or MiniBatchKMeans"),
    "covariance": Refusal(_MANY_PASSES, "EmpiricalCovariance, LedoitWolf, OAS or GraphicalLasso"),
    "cross_decomposition": Refusal(_MANY_PASSES, "PCA, then LinearRegression"),
    "decomposition": Refusal(_MANY_PASSES, "PCA, TruncatedSVD, IncrementalPCA or MiniBatchNMF"),
    "ensemble": Refusal(
        "it needs all rows at each split of a tree",
        "XGBClassifier, XGBRegressor, LGBMClassifier or LGBMRegressor",
    ),
    "feature_extraction": Refusal("it takes pieces out of images, row after row", "a FunctionTransformer"),
    "feature_selection": Refusal(_OTHERS, "SelectKBest or VarianceThreshold"),
    "gaussian_process": Refusal(_PAIRS, "Ridge after an RBFSampler"),
    "impute": Refusal("it models each column on the others", "SimpleImputer"),
    "isotonic": Refusal("it sorts all rows", "LinearRegression"),
    "kernel_approximation": Refusal("it takes a sample of the rows as its basis", "RBFSampler"),
    "kernel_ridge": Refusal(_PAIRS, "Ridge after an RBFSampler"),
    "linear_model": Refusal(
        _MANY_PASSES, "Ridge, LassoCV, ElasticNetCV, or an SGD estimator of the same loss"
    ),
    "manifold": Refusal(_PAIRS, "PCA"),
    "mixture": Refusal(_MANY_PASSES, "GaussianMixture"),
    "model_selection": Refusal(_OTHERS, "one fit for each candidate, and dpipe.score"),
    "multiclass": Refusal("it draws random codes for the classes", "OneVsRestClassifier"),
    "multioutput": Refusal(
        "each of its fits needs what the one before predicts", "MultiOutputClassifier or MultiOutputRegressor"
    ),
    "neighbors": Refusal("it keeps all rows and searches them", "NearestCentroid, or SGDClassifier"),
    "neural_network": Refusal(_MANY_PASSES, "MLPClassifier or MLPRegressor"),
    "preprocessing": Refusal("it takes a kernel matrix, of all pairs of rows", "StandardScaler"),
    "semi_supervised": Refusal(_PAIRS, "SGDClassifier on the rows that have labels"),
    "svm": Refusal(_PAIRS, "SGDClassifier(loss='hinge') or SGDRegressor(loss='epsilon_insensitive')"),
    "tree": Refusal("it needs all rows at each of its splits", "XGBClassifier or XGBRegressor"),
}
_BY_NAME: Mapping[str, Refusal] = {
    **{
        f"Bagging{what}": Refusal("it draws rows anew for each of its estimators", f"Voting{what}")
        for what in ("Classifier", "Regressor")
    },
    "LogisticRegressionCV": Refusal(_OTHERS, "one LogisticRegression for each candidate, and dpipe.score"),
}


def refusal_of(cls: type) -> Refusal:
    """Look up why a class has no way.

    Examples
    --------
    >>> from sklearn.svm import SVC
    >>> refusal_of(SVC).why
    'it compares all pairs of rows'
    """
    package, _, rest = cls.__module__.partition(".")
    if package in ("xgboost", "lightgbm") and "dask" in rest:
        own = cls.__name__.removeprefix("Dask")
        return Refusal(
            "it wants all data in the memory of a cluster", f"{own}, which dpipe.fit trains out of core"
        )
    if package != "sklearn":
        return Refusal("", "")
    return _BY_NAME.get(cls.__name__, _BY_MODULE.get(rest.partition(".")[0], Refusal("", "")))
