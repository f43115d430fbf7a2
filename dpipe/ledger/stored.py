"""What an array that xarray has opened is stored in: the files behind it, as they are now."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from xarray.backends import BackendArray


def stored_as(array: BackendArray) -> str | None:
    """Name the files of an array, with their sizes and times, and the array's name among them.

    Parameters
    ----------
    array : xarray.backends.BackendArray
        What reads a variable of a Zarr store or of a NetCDF file.

    Returns
    -------
    str or None
        None if its files cannot be seen from here, as of a store in memory or in an object store.
    """
    opened = getattr(array, "_array", None)
    if opened is not None and hasattr(opened, "store_path"):
        return _zarr(opened)
    source = getattr(array, "datastore", None)
    manager = getattr(source, "_manager", None)
    path = getattr(source, "_filename", None) or next(iter(getattr(manager, "_args", ())), None)
    if not isinstance(path, str | os.PathLike) or not os.path.isfile(path):
        return None
    return (
        f"{_stamp(os.fspath(path))} {getattr(source, '_group', None)} {getattr(array, 'variable_name', '')}"
    )


def _zarr(opened: Any) -> str | None:
    root = getattr(opened.store, "root", None)
    if root is None or not os.path.isdir(root):
        return None
    folder = os.path.join(root, opened.path)
    digest = hashlib.blake2b(digest_size=16)
    for path in _files(folder):
        digest.update(_stamp(path).encode())
    return f"{folder} {digest.hexdigest()}"


def _files(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (os.path.join(parent, name) for name in sorted(names))


def _stamp(path: str) -> str:
    status = os.stat(path)
    return f"{path} {status.st_size} {status.st_mtime_ns}"
