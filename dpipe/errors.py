"""What dpipe raises on purpose.

    DpipeError
    |-- InputError (also ValueError)         an argument or the data is not usable
    |   |-- ContractError                    rows that break what a source promises
    |   |-- BlockMismatchError               X, y and weights differ in their blocks
    |   `-- MemoryLimitError                 a plan that cannot fit its memory budget
    |-- UnsupportedEstimatorError (TypeError)  an estimator that cannot be fitted block by block
    |-- SourceError (also OSError)           files: none matched, mixed schemas, corrupt
    |-- ConservationError                    rows were lost, or are there twice
    |-- BundleError                          a deployed model that cannot be opened
    |-- OutputError                          a result that cannot be written, or was never finished
    |-- RecordError                          a run record that cannot be read
    |-- ClusterError                         a scheduler or its workers are gone
    |-- LedgerError                          what was recorded cannot be kept, read or shared
    `-- RequirementError                     a model that does not reach what validation requires

Every message says what is wrong with its value, what was allowed, and what to do.
"""

from typing import Any


class DpipeError(Exception):
    """The base of all errors that dpipe raises on purpose."""


class InputError(DpipeError, ValueError):
    """An argument or the data is not usable."""

    columns: Any = None
    """Which features it is about, as positions, where it can tell."""


class BlockMismatchError(InputError):
    """X, y and sample_weight do not have the same rows in the same blocks."""


class ContractError(InputError):
    """Data, or the metadata of its files, breaks the contract of a source."""


class MemoryLimitError(InputError):
    """A plan cannot fit into the memory budget."""


class UnsupportedEstimatorError(DpipeError, TypeError):
    """An estimator, or one of its parameters, cannot be fitted block by block."""


class SourceError(DpipeError, OSError):
    """Files of a source: none matched, mixed schemas, or a corrupt file."""


class ConservationError(DpipeError):
    """Rows were lost on the way, or are there twice."""


class BundleError(DpipeError):
    """A deployed model cannot be written or opened."""


class OutputError(DpipeError):
    """A result cannot be written, was never finished, or would replace another."""


class RecordError(DpipeError):
    """A run record is missing, broken, or of another format."""


class ClusterError(DpipeError):
    """The scheduler is gone, or workers die over a block."""


class LedgerError(DpipeError):
    """What a run has recorded cannot be written or read, or another run holds it."""


class RequirementError(DpipeError):
    """A model does not reach the metrics that its validation requires."""
