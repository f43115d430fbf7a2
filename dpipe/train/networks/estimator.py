"""What a network offers as a scikit-learn estimator, however it was trained."""

import os
import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
from distributed import Client
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import ClassifierTags, RegressorTags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from dpipe.cluster.cluster import Cluster
from dpipe.errors import InputError
from dpipe.train.fit import fit
from dpipe.train.loading.loader import Loader
from dpipe.train.loading.matrices import prepared_matrix
from dpipe.train.networks.frozen import frozen, thawed

#: Attributes that hold a torch.nn.Module.
_MODULES = ("module", "module_")
#: Attributes that come of calls of `partial_fit` only.
_OF_CALLS = ("n_calls_", "optimizer_state_")


def _is_classifier(estimator: Any) -> bool:
    return estimator.classes is not None


class NetworkEstimator(BaseEstimator):  # type: ignore[misc]
    """A network that takes rows of numbers; a subclass says how it is trained.

    Its parameters `module`, `classes`, `validation` and those of the loader are used here, and its fitted attribute
    `module_`.
    """

    module: Any
    classes: Any
    batch_size: int
    shuffle: Any
    mix: int
    shares: int
    validation: Any
    module_: Any

    def __sklearn_tags__(self) -> Any:
        """Be a classifier with `classes`, else a regressor."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        if self.classes is None:
            tags.estimator_type, tags.regressor_tags = "regressor", RegressorTags()
        else:
            tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags()
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Give what it is without torch's own objects, so that bundles can keep it."""
        state: dict[str, Any] = dict(super().__getstate__())
        if state.get("classes") is not None:
            state["classes"] = [int(label) for label in state["classes"]]
        return state | {name: frozen(state[name]) for name in _MODULES if hasattr(state.get(name), "modules")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take it back."""
        super().__setstate__(
            state | {name: thawed(state[name]) for name in _MODULES if hasattr(state.get(name), "modules")}
        )

    @property
    def classes_(self) -> np.ndarray:
        """Labels, in the order of the outputs; there are none without `classes`."""
        if self.classes is None:
            raise AttributeError("there are no classes_: the network was given no classes=[...]")
        return np.asarray(self.classes)

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        memory: int | str | None = None,
        client: Client | Cluster | None = None,
        workdir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Learn; `dpipe.fit` gives a fitted clone instead, and takes the same arguments.

        Returns
        -------
        DataParallel or ModelParallel
            Itself.

        Raises
        ------
        DpipeError
            As `dpipe.fit` does.
        InputError
            If the module cannot be split, or the loss is no longer finite.
        MemoryLimitError
            If no cut keeps to the memory of the workers.
        ClusterError
            If the processes of group after group die.
        """
        self.take(fit(self, X, y, memory=memory, client=client, workdir=workdir))
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Learn some rows in memory once, batch after batch in random order; go on from the last call, or from `fit`.

        `DataParallel` does so in this process, `ModelParallel` in processes of this machine: they begin anew in each
        call, which takes some seconds, so give many rows at a time. An optimizer goes on with what it remembers of the
        last call; of `fit` it remembers nothing.

        Parameters
        ----------
        X, y
            Of shape (n_samples, n_features) and (n_samples,).
        classes : sequence, optional
            Those of `classes`, as scikit-learn's classifiers are told them.

        Returns
        -------
        DataParallel or ModelParallel
            Itself.

        Raises
        ------
        InputError
            If `classes` are others than the parameter says, or the loss is no longer finite.
        """
        self.check_classes(classes)
        calls = getattr(self, "n_calls_", 0)
        self.n_features_in_, self.optimizer_state_ = self.learn_once(X, y, calls)
        self.n_calls_ = calls + 1
        return self

    @abstractmethod
    def learn_once(self, X: Any, y: Any, calls: int) -> tuple[int, bytes]:
        """Learn some rows after so many calls; give their number of columns, and what the optimizer remembers."""

    def loaders(self, X: Any, y: Any, seed: int, **how: Any) -> tuple[Loader, Loader | None]:
        """Give what loads the rows to learn from, and those of `validation`, if there are any.

        Raises
        ------
        InputError
            If a parameter does not do.
        """
        how |= {"batch_size": self.batch_size, "shares": self.shares}
        loader = Loader(X, y, random_state=seed, shuffle=self.shuffle, mix=self.mix, **how)
        if self.validation is None:
            return loader, None
        if not isinstance(self.validation, tuple) or len(self.validation) != 2:
            raise InputError(f"validation must be rows of their own, (X, y), got {self.validation!r}.")
        return loader, Loader(*self.validation, shuffle=None, **how)

    def check_classes(self, classes: Any) -> None:
        """Refuse classes of `partial_fit` that are others than the parameter says.

        Raises
        ------
        InputError
            If they are.
        """
        if classes is not None and (self.classes is None or not set(np.unique(classes)) <= set(self.classes)):
            raise InputError(
                f"classes={list(classes)!r}, but the network was given classes={self.classes!r}."
            )

    def take(self, fitted: "NetworkEstimator") -> None:
        """Take over what another one has learned."""
        for name in _OF_CALLS:
            self.__dict__.pop(name, None)
        for name, value in vars(fitted).items():
            if name.endswith("_"):
                setattr(self, name, value)

    def outputs(self, X: Any) -> np.ndarray:
        """Give what the module gives for rows in memory.

        Parameters
        ----------
        X : array-like, frame or CSR matrix of shape (n_samples, n_features)

        Returns
        -------
        numpy.ndarray of shape (n_samples, ...)
        """
        check_is_fitted(self, "module_")
        import torch

        rows = prepared_matrix(X if hasattr(X, "shape") else np.asarray(X), None, np.dtype("float32"))
        self.module_.eval()
        with torch.inference_mode():
            parts = [
                self.module_(
                    torch.from_numpy(np.ascontiguousarray(rows[i : i + self.batch_size], np.float32))
                )
                for i in range(0, len(rows), self.batch_size)
            ]
        return torch.cat(parts).float().numpy() if parts else np.empty(0, dtype=np.float32)

    def predict(self, X: Any) -> np.ndarray:
        """Predict labels of `classes`; without them, give what the module gives.

        Parameters
        ----------
        X : array-like, frame or CSR matrix of shape (n_samples, n_features)

        Returns
        -------
        numpy.ndarray of shape (n_samples,), or (n_samples, ...) without `classes`
        """
        if self.classes is None:
            return self.outputs(X)
        return self.classes_[np.argmax(self._logits(X), axis=1)]

    @available_if(_is_classifier)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> np.ndarray:
        """Give the probability of each class; shape (n_samples, n_classes)."""
        logits = self._logits(X)
        parts = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
        return parts / parts.sum(axis=1, keepdims=True)

    def _logits(self, X: Any) -> np.ndarray:
        """Give an output for each class, of two classes also where the module has one for both."""
        found = self.outputs(X).astype(np.float64)
        n = len(self.classes_)
        if n == 2 and found.size == len(found):
            return np.column_stack([np.zeros(len(found)), found.reshape(-1)])
        return found.reshape(-1, n)

    def score(self, X: Any, y: Any) -> float:
        """Give the accuracy with `classes`, else R squared, of rows in memory."""
        compare = r2_score if self.classes is None else accuracy_score
        return float(compare(np.asarray(y), self.predict(X)))

    def state_dict(self) -> dict[str, Any]:
        """Give the learned weights, by name, as plain torch tensors."""
        check_is_fitted(self, "module_")
        return dict(self.module_.state_dict())

    def export_onnx(self, path: str | os.PathLike[str]) -> Path:
        """Write the network as ONNX, for any number of rows of float32.

        Parameters
        ----------
        path : path

        Returns
        -------
        pathlib.Path

        Raises
        ------
        InputError
            If onnx is not installed, or torch cannot translate the module.
        """
        check_is_fitted(self, "module_")
        import torch

        path, rows = Path(path), torch.zeros(2, self.n_features_in_)
        batch = torch.export.Dim("rows")
        names: dict[str, Any] = {
            "input_names": ["X"],
            "output_names": ["output"],
            "dynamic_shapes": ({0: batch},),
        }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what torch does with its own parts
                torch.onnx.export(self.module_.eval(), (rows,), path, verbose=False, **names)
        except ImportError as err:
            raise InputError(f"ONNX needs more packages: {err}. pip install onnx onnxscript") from err
        except Exception as err:
            raise InputError(
                f"torch cannot write this module as ONNX: {type(err).__name__}: {err} Keep state_dict() instead."
            ) from err
        return path


def checked_labels(classes: Any) -> tuple[int, ...] | None:
    """Take the labels of a classifier; None where there are none.

    Raises
    ------
    InputError
        If they are no different integers.
    """
    if classes is None:
        return None
    labels = np.asarray(classes)
    if labels.ndim != 1 or labels.dtype.kind not in "iub" or len(set(labels.tolist())) < max(len(labels), 2):
        raise InputError(
            f"classes must be two or more different integers, in the order of the outputs, got {classes!r}. "
            "Encode other labels first, as by y.map({label: number})."
        )
    return tuple(int(label) for label in labels)
