"""Owns what all judges share: what they are told, and what they may answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO

import pydicom
from pydicom.dataset import Dataset

from dicom_node.results.types import BuildContext, ModelIdentity, Source
from inference.types import Prediction, Segment

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
ENHANCED_SR = "1.2.840.10008.5.1.4.1.1.88.22"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
KINDS = {
    SEGMENTATION: "seg",
    LABEL_MAP: "seg",
    ENHANCED_SR: "sr",
    COMPREHENSIVE_3D_SR: "sr",
    SECONDARY_CAPTURE: "sc",
}


@dataclass(frozen=True)
class NotApplicable:
    """The judge does not judge such an object; the reason is for the reader of a table."""

    reason: str


Verdict = list[str] | NotApplicable
"""Complaints, none for an object that passes."""


@dataclass(frozen=True)
class Origin:
    """What an object was made from.

    Attributes:
        source: the instances that the model was given.
        prediction: what it said.
        model: which model.
        context: which job.
        siblings: all Part 10 files of the same job, this one too, by whatever name.
    """

    source: Source
    prediction: Prediction
    model: ModelIdentity
    context: BuildContext
    siblings: Mapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def instances(self) -> dict[str, Dataset]:
        """The siblings by their SOP Instance UID."""
        read = map(parse, self.siblings.values())
        return {str(dataset.SOPInstanceUID): dataset for dataset in read}

    @property
    def found(self) -> list[Segment]:
        """The segments that have a pixel."""
        if self.prediction.not_analysed is not None:
            return []
        return [segment for segment in self.prediction.segments if not segment.empty]


Judge = Callable[[bytes, Origin], Verdict]


def parse(data: bytes) -> Dataset:
    """As any reader would."""
    return pydicom.dcmread(BytesIO(data))


def kind_of(dataset: Dataset) -> str:
    """``seg``, ``sr`` or ``sc``, by the SOP class."""
    return KINDS[str(dataset.SOPClassUID)]
