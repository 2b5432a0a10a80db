"""Every error a user can cause, each saying what, where, what was received and what to do.

One public base, `FusionError`; the command line turns any of them into exit code 2 and a
sentence. This module knows nothing of models, tensors or files.
"""

from __future__ import annotations


class FusionError(Exception):
    """Base of all errors that fusionlab raises on purpose.

    >>> str(FusionError("scale is negative: -1", remedy="pass a scale >= 0"))
    'scale is negative: -1; pass a scale >= 0'
    """

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}; {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments survive pickling across processes
        return _rebuild, (type(self), self.message, self.remedy)


def _rebuild(kind: type[FusionError], message: str, remedy: str | None) -> FusionError:
    return kind(message, remedy=remedy)


class ConstraintError(FusionError):
    """A `KLConstraint` field is out of range, or a solver option makes no sense."""


class UnknownNameError(FusionError):
    """A method, expert, task or model name is not known; the message lists the known ones."""


class DistributionError(FusionError):
    """Log-probabilities hold NaN or +inf, or shapes disagree; names model, row and token."""


class PromptError(FusionError):
    """A prompt is empty, longer than the context, or of the wrong type."""


class ModelError(FusionError):
    """A model or adapter cannot be found, read or run."""


class VocabMismatchError(ModelError):
    """Two models of one team give different meanings to the same token id."""


class NotEnoughMemoryError(ModelError):
    """A load was refused before it began, because its estimate exceeds the memory there is."""


class CorruptFileError(FusionError):
    """A file's content is not what its sha256 or its format promises."""


class MissingFileError(FusionError):
    """A file that must be fetched is not there and the network cannot be reached."""


class OutputError(FusionError):
    """A result cannot be written where it was asked for."""


class TaskError(FusionError):
    """A task file, split, metric or answer is malformed; names file and line."""


class TraceError(FusionError):
    """A trace file is of another version, or incomplete."""


class MissingPackageError(FusionError):
    """An optional package is not installed; the message names the install command."""


class NotebookError(FusionError):
    """A notebook cannot be run as an experiment, or a parameter's value is not what it declares."""


class SweepError(FusionError):
    """A sweep file is malformed, or a sweep cannot be run or compared as asked."""


class SchedulerError(FusionError):
    """A Dask scheduler cannot be reached, or no worker offers what the runs need."""
