"""A model as skops keeps it: nothing is unpickled, and only trusted names are imported."""

import json
import warnings
from collections.abc import Sequence
from typing import Any

from sklearn.exceptions import InconsistentVersionWarning

from dpipe.errors import BundleError
from dpipe.families.registry import Estimator
from dpipe.families.torch_types import TORCH_TYPES

# What fitted scikit-learn models hold, and skops does not know by itself. All of it is data, or a
# function of arrays. Trees are left out on purpose: a forged one can make predict crash.
# Boosters are their library's own format, which it reads as data.
_SAFE_TYPES = frozenset(
    {
        "collections.OrderedDict",
        "lightgbm.basic.Booster",
        "lightgbm.sklearn.LGBMClassifier",
        "lightgbm.sklearn.LGBMRanker",
        "lightgbm.sklearn.LGBMRegressor",
        "numpy.dtype",
        "sklearn._loss.loss.HalfTweedieLoss",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.compose._column_transformer.make_column_selector",
        "sklearn.feature_selection._mutual_info.mutual_info_classif",
        "sklearn.feature_selection._mutual_info.mutual_info_regression",
        "sklearn.feature_selection._univariate_selection.chi2",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.feature_selection._univariate_selection.f_oneway",
        "sklearn.feature_selection._univariate_selection.f_regression",
        "sklearn.feature_selection._univariate_selection.r_regression",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "xgboost.core.Booster",
        "xgboost.sklearn.XGBClassifier",
        "xgboost.sklearn.XGBRFClassifier",
        "xgboost.sklearn.XGBRFRegressor",
        "xgboost.sklearn.XGBRanker",
        "xgboost.sklearn.XGBRegressor",
        *TORCH_TYPES,
    }
)


def skops_io() -> Any:
    """Give skops, imported when it is first needed: it looks through all of scikit-learn, and so imports torch."""
    import skops.io

    return skops.io


def unknown_types(content: bytes, trusted: Sequence[str] = ()) -> list[str]:
    """List the types in a skops file that are neither trusted nor known to be harmless."""
    used = skops_io().get_untrusted_types(data=content)
    return [name for name in used if name not in _SAFE_TYPES and name not in trusted]


def check_model(model: Estimator) -> None:
    """Check that a model, fitted or not, can be kept: worth knowing before it is trained.

    Raises
    ------
    BundleError
        If skops cannot keep it, or it uses a function that another process could not import.
    """
    dump_model(model)


def dump_model(model: Estimator) -> bytes:
    """Give a model as the content of a skops file that has been opened once.

    Raises
    ------
    BundleError
        As `check_model` does.
    """
    name = type(model).__name__
    try:
        content = bytes(skops_io().dumps(model))
        used = skops_io().get_untrusted_types(data=content)
    except Exception as err:
        raise BundleError(
            f"skops cannot keep this {name}: {type(err).__name__}: {err} Leave that part out of the model."
        ) from err
    local = [kind for kind in used if "<" in kind or kind.startswith("__main__.")]
    if local:
        raise BundleError(
            f"The model uses {', '.join(local)}, which no other process could import. Move it to the top "
            "level of a module, and build the model with what you import from there."
        )
    _opened(content, used, f"this {name}")
    return content


def open_model(content: bytes, trusted: Sequence[str], where: str) -> Estimator:
    """Build a model from the content of a skops file.

    Parameters
    ----------
    content : bytes
    trusted : sequence of str
        Full names of functions and classes, beside those that are known to be safe.
    where : str
        What to call it in errors.

    Raises
    ------
    BundleError
        If it is no skops file, or needs what is not trusted or cannot be imported.
    """
    try:
        used = skops_io().get_untrusted_types(data=content)
    except Exception as err:
        raise BundleError(
            f"The model of {where} is not a skops file: {type(err).__name__}: {err}. Nothing of it was run; "
            "dpipe does not open pickles. Deploy the model again."
        ) from err
    unknown = [name for name in used if name not in _SAFE_TYPES and name not in trusted]
    if unknown:
        raise BundleError(
            f"The model of {where} uses {', '.join(unknown)}, which dpipe does not know to be harmless. "
            f"If you do, pass trusted={json.dumps([*trusted, *unknown])}, or to the command line "
            f"{' '.join(f'--trust {name}' for name in [*trusted, *unknown])}. Nothing of it was imported or run."
        )
    return _opened(content, used, where)


def _opened(content: bytes, trusted: Sequence[str], where: str) -> Estimator:
    try:
        with warnings.catch_warnings():
            # a bundle says this once, for the whole model
            warnings.simplefilter("ignore", InconsistentVersionWarning)
            return skops_io().loads(content, trusted=list(trusted))
    except (ImportError, AttributeError) as err:
        extra = next((name for name in ("xgboost", "lightgbm", "torch") if name in str(err)), None)
        package = "its package" if extra is None else f"it, with pip install 'dpipe[{extra}]'"
        raise BundleError(
            f"The model of {where} needs something that cannot be imported: {err}. Install {package}, or "
            "put its folder on PYTHONPATH."
        ) from err
    except Exception as err:
        raise BundleError(
            f"The model of {where} cannot be opened by skops: {type(err).__name__}: {err}. Deploy it again."
        ) from err
