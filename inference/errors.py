"""Owns the errors that reading, models and bundles raise; knows nothing of the service.

::

    InferenceError
    ├── ReadingError         a data set cannot become an array
    ├── UnsuitableInput      it can, but this model must not be run on it
    ├── BundleError          a bundle is incomplete, altered or not ours to load
    └── OutOfMemory          the device could not hold even the smallest batch

Messages name attributes, UIDs and numbers, never a patient.
"""

from __future__ import annotations


class InferenceError(Exception):
    """Anything that inference can say went wrong."""


class ReadingError(InferenceError):
    """A data set cannot become an array.

    Args:
        reason: what is missing or wrong, in words that may be logged.
        sop_instance_uid: the instance it is about, where it has one.
    """

    def __init__(self, reason: str, sop_instance_uid: str | None = None) -> None:
        self.reason = reason
        self.sop_instance_uid = sop_instance_uid
        super().__init__(f"{reason} ({sop_instance_uid})" if sop_instance_uid else reason)


class UnsuitableInput(InferenceError):
    """The input breaks the model's contract; the report says "not analysed, because".

    Args:
        reason: the sentence that the radiologist reads.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class BundleError(InferenceError):
    """A model bundle is incomplete, altered, or asks for what we do not load."""


class OutOfMemory(InferenceError):
    """The device ran out of memory at the smallest batch that we try."""
