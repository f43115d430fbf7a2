"""Helpers that more than one test file uses."""

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import dask


def refuse_to_compute(dsk: Any, keys: Any, **kwargs: Any) -> NoReturn:
    """Stand in for a Dask scheduler where nothing may be computed."""
    raise AssertionError(f"computed {keys!r}, where nothing may be computed")


@contextlib.contextmanager
def raise_if_computes() -> Iterator[None]:
    """Raise AssertionError if anything is computed by Dask inside of this block.

    A `scheduler=` argument and a client that is asked directly go past it.

    Examples
    --------
    >>> import dask.array as da
    >>> with raise_if_computes():
    ...     total = da.ones(4).sum()
    >>> float(total.compute())
    4.0
    """
    with dask.config.set(scheduler=refuse_to_compute):
        yield
