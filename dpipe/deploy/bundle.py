"""Bundles: a fitted model in a folder, with what it takes, how good it was, and what wrote it.

``model.skops`` is opened by ``skops.io.load`` without dpipe, ``schema.json`` and ``manifest.json`` by
people. The checksums find damage, not malice; what keeps foreign code out is that nothing is ever
unpickled, and that only types are built which scikit-learn needs or the caller has named.
"""

import base64
import hashlib
import html
import json
import math
import os
import platform
import shutil
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dpipe.deploy.apply import check_present, predict, transform
from dpipe.deploy.results import check_applicable
from dpipe.errors import BundleError, InputError
from dpipe.families.fitted import input_names
from dpipe.families.model_file import dump_model, open_model
from dpipe.families.registry import Estimator

FORMAT_VERSION = 1
MODEL, SCHEMA, MANIFEST = "model.skops", "schema.json", "manifest.json"
_PACKAGES = ("dpipe", "scikit-learn", "skops", "numpy", "pyarrow")


@dataclass(frozen=True, eq=False, repr=False)
class Bundle:
    """A deployed model, opened by `load`."""

    model: Estimator
    """Plain scikit-learn, fitted."""
    schema: pa.Schema | None
    """The columns that it takes; None if it was trained on an array."""
    target: str | None
    """What the column that it predicts was called."""
    metrics: dict[str, float]
    manifest: dict[str, Any]
    path: Path

    @property
    def name(self) -> str:
        """What the bundle was called."""
        return str(self.manifest["name"])

    @property
    def method(self) -> str:
        """What the model is deployed for: "predict", "predict_proba", ..."""
        return str(self.manifest["method"])

    @property
    def sha256(self) -> str:
        """Checksum of the model."""
        return str(self.manifest["files"][MODEL]["sha256"])

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that the model reads, in order; None if it was trained on an array."""
        read = input_names(self.model)
        return read if read is not None or self.schema is None else tuple(self.schema.names)

    def predict(
        self, X: Any, *, method: str | None = None, sample_dims: Any = None, missing: str = "all"
    ) -> Any:
        """Predict, as `dpipe.predict` does, after a check of the columns.

        Parameters
        ----------
        X : dask DataFrame or Array, pandas.DataFrame, numpy.ndarray, CSR matrix or xarray object
        method : str, optional
            Default: what the bundle was written for.
        sample_dims, missing
            For xarray objects: as for `dpipe.predict`.

        Raises
        ------
        InputError
            If X lacks columns, or the model the method.
        """
        method = self.method if method is None else method
        columns = self.columns
        if columns is not None and hasattr(X, "columns"):
            check_present(columns, list(X.columns))
            X = X[list(columns)]
        about = {"sample_dims": sample_dims, "missing": missing}
        if method == "transform":
            return transform(self.model, X, **about)
        return predict(self.model, X, method=method, **about)

    def __repr__(self) -> str:
        """Say what it is, in a line for each thing."""
        return "\n".join(f"{title:9s} {text}" for title, text in self._described())

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{title}</th><td>{html.escape(text)}</td></tr>" for title, text in self._described())
        return f"<table>{''.join(rows)}</table>"

    def _described(self) -> list[tuple[str, str]]:
        kinds = {} if self.schema is None else {item.name: item.type for item in self.schema}
        columns = [f"{name} ({kinds[name]})" if name in kinds else name for name in self.columns or ()]
        classes, versions = self.manifest["classes"], self.manifest["versions"]
        target = self.target or "-"
        return [
            ("Bundle", f"{self.name}, written {self.manifest['created']}"),
            ("model", f"{type(self.model).__name__}.{self.method}"),
            ("takes", ", ".join(columns) or "an array"),
            ("predicts", target if classes is None else f"{target}: {', '.join(map(str, classes))}"),
            ("metrics", ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items()) or "-"),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
            ("path", str(self.path)),
        ]


def write_bundle(
    folder: str | os.PathLike[str],
    model: Estimator,
    *,
    schema: pa.Schema | None = None,
    target: str | None = None,
    metrics: Mapping[str, float] | None = None,
    name: str = "model",
    method: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write a fitted model as a bundle that appears whole or not at all.

    Parameters
    ----------
    folder : path
        Replaced as a whole if it is a bundle already.
    model : fitted estimator
        Kept by skops: no pickle, no code.
    schema : pyarrow.Schema, optional
        The columns that the model takes.
    target : str, optional
    metrics : mapping of str to float, optional
    name : str
    method : str, optional
        What the model is deployed for; default "predict", or "transform" of what cannot predict.
    versions : mapping of str to str, optional
        Of further packages that the model needs.

    Returns
    -------
    pathlib.Path
        `folder`.

    Raises
    ------
    InputError
        If the model is not fitted, or lacks the method.
    BundleError
        If skops cannot keep the model, or `folder` cannot be written or holds something else.

    Notes
    -----
    A folder cannot be exchanged for another in one step: for the moment between two renames, there is no
    bundle. The old one then lies beside it, as ``.<name>.<some digits>.old``, and is deleted after.
    """
    folder = Path(folder)
    if method is None:
        method = "transform" if hasattr(model, "transform") and not hasattr(model, "predict") else "predict"
    check_applicable(model, method)
    files = {MODEL: dump_model(model), SCHEMA: _schema_text(schema).encode()}
    classes = getattr(model, "classes_", None)
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": type(model).__name__,
        "method": method,
        "target": target,
        "classes": None if classes is None else [_plain(label) for label in classes],
        "metrics": {key: _plain(value) for key, value in (metrics or {}).items()},
        "versions": {**_versions(), **(versions or {})},
        "files": {key: {"sha256": _sha256(text), "nbytes": len(text)} for key, text in files.items()},
    }
    files[MANIFEST] = (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode()
    try:
        _replace_folder(folder, files)
    except OSError as err:
        raise BundleError(f"The bundle {folder} cannot be written: {err}. Choose another folder.") from err
    return folder


def _replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    in_use = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if in_use and not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} is there already, and is not a bundle. Choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # beside it, because a rename is atomic within one file system only
    unique = uuid.uuid4().hex[:8]
    fresh, old = (folder.with_name(f".{folder.name}.{unique}.{end}") for end in ("tmp", "old"))
    try:
        fresh.mkdir()
        for name, content in files.items():
            with (fresh / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _schema_text(schema: pa.Schema | None) -> str:
    """Write a schema for people, and beside it as Arrow keeps it, which knows every type."""
    if schema is None:
        return json.dumps({"columns": None, "arrow": None}, indent=1) + "\n"
    plain = schema.remove_metadata()
    columns = [{"name": item.name, "type": str(item.type), "nullable": item.nullable} for item in plain]
    exact = base64.b64encode(plain.serialize().to_pybytes()).decode()
    return json.dumps({"columns": columns, "arrow": exact}, indent=1) + "\n"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def _plain(value: Any) -> Any:
    """Give what strict JSON can hold: numbers that it lacks as the text "nan", "inf", "-inf"."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Read(NamedTuple):
    manifest: dict[str, Any]
    files: dict[str, bytes]


def load(path: str | os.PathLike[str], *, trusted: Sequence[str] = ()) -> Bundle:
    """Open a bundle. Nothing is ever unpickled, and no code runs that you have not named.

    Parameters
    ----------
    path : path
        The folder that was deployed.
    trusted : sequence of str
        Functions and classes, beside scikit-learn's own, that the model may import and use, such as
        "recipes.ride_features.ride_features". The error without them lists what the model asks for.

    Returns
    -------
    Bundle

    Warns
    -----
    UserWarning
        If another version of scikit-learn wrote it.

    Raises
    ------
    BundleError
        If it is not a bundle, is damaged, is of an unknown format, or needs what is not trusted.
    """
    if isinstance(trusted, str):
        raise InputError(f"trusted must be a sequence of names. Pass trusted=[{trusted!r}].")
    folder = Path(path)
    read = _read(folder)
    try:
        schema = _schema_of(read.files[SCHEMA])
        metrics = {str(key): float(value) for key, value in read.manifest["metrics"].items()}
        written = read.manifest["versions"]["scikit-learn"]
        bundle = {"target": read.manifest["target"], "manifest": read.manifest, "path": folder}
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as err:
        raise BundleError(
            f"{folder}: {MANIFEST} or {SCHEMA} is not of dpipe's making: {type(err).__name__}: {err}. "
            "Deploy the model again."
        ) from err
    model = open_model(read.files[MODEL], trusted, str(folder))
    here = metadata.version("scikit-learn")
    if written != here:
        warnings.warn(
            f"{folder} was written by scikit-learn {written}, and this is scikit-learn {here}: predictions "
            f"may differ. Install scikit-learn=={written}, or train and deploy again.",
            stacklevel=2,
        )
    return Bundle(model=model, schema=schema, metrics=metrics, **bundle)


def _read(folder: Path) -> _Read:
    """Read the files of a bundle, once, and check them."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as err:
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}. Give the deployed folder.") from err
    except (OSError, ValueError) as err:
        raise BundleError(f"{folder / MANIFEST} cannot be read: {err}. Deploy the model again.") from err
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{folder} is a bundle of format version {version!r}; this dpipe reads version {FORMAT_VERSION}. "
            "Open it with the dpipe that wrote it, or deploy the model again."
        )
    files = {}
    for name in (MODEL, SCHEMA):
        try:
            files[name] = (folder / name).read_bytes()
            expected = manifest["files"][name]["sha256"]
        except (OSError, KeyError, TypeError) as err:
            raise BundleError(f"{folder} is not whole: {name}: {err!r}. Deploy the model again.") from err
        found = _sha256(files[name])
        if found != expected:
            raise BundleError(
                f"{folder / name} is not the file that was deployed: its SHA-256 is {found} instead of "
                f"{expected}. It was changed or damaged; deploy the model again."
            )
    return _Read(manifest, files)


def _schema_of(content: bytes) -> pa.Schema | None:
    exact = json.loads(content)["arrow"]
    return None if exact is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(exact)))
