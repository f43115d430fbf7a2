"""XGBoost and LightGBM, imported when they are needed: both are extras."""

import importlib
from typing import Any

from dpipe.errors import DpipeError


def imported(name: str) -> Any:
    """Import a library.

    Raises
    ------
    DpipeError
        If it is not installed in this process.
    """
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise DpipeError(
            f"{name} cannot be imported in the process that trains: {err}. Install it there, with "
            f"pip install 'dpipe[{name}]'."
        ) from err
