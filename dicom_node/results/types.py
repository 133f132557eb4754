"""Owns what goes into a result object beside the prediction, and what comes out.

Refuses to know where any of it is stored: services fill these from rows, files and bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.domain.profile import Form
from dicom_node.errors import ResultError
from inference.types import FrameRef

BUILDER_VERSION = "2"
"""Raised whenever the same prediction would be written down differently."""

Picture = Callable[[int], NDArray[np.uint8]]
"""Of a frame of the source, from 0, as people see it: ``(rows, columns)`` grey or ``(rows,
columns, 3)`` RGB, windowed."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which model said it.

    Attributes:
        name: short, lower case, stable over versions; the series number comes from it.
        version: of the model.
        title: what a reader sees, at most 64 characters.
        manufacturer: who answers for it, at most 64 characters.
        bundle_digest: SHA-256 of the bundle's manifest in hex; another digest, another device.
        research_only: True unless the manifest claims otherwise; every object then says so.
        parameters: thresholds and the like, as told in the report (TID 4019).
    """

    name: str
    version: str
    title: str
    manufacturer: str
    bundle_digest: str
    research_only: bool = True
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReferencedSOP:
    """One stored instance, with the series and study that hold it."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str


@dataclass(frozen=True)
class BuildContext:
    """What the job's row knows.

    Attributes:
        node_salt: secret of this node, so that two nodes never draw the same UID.
        job_created_at: aware; the only time that is written into a result.
        generation: 1, then one more for every rerun or new revision.
        predecessors: the reports that this one supersedes, by their form as text: the same
            result went to different destinations in different forms.
        incomplete_reason: why the study was taken before it was known to be complete.
        institution: Institution Name of the results, where the site wants one.
        builder: the builder's version when the result was first built. Forms that are built
            later keep it, so that they cite what was sent.
    """

    node_salt: str
    job_created_at: datetime
    generation: int = 1
    predecessors: Mapping[str, ReferencedSOP] = field(default_factory=dict)
    incomplete_reason: str | None = None
    institution: str | None = None
    builder: str = BUILDER_VERSION

    def __post_init__(self) -> None:
        if self.job_created_at.tzinfo is None:
            raise ResultError("job_created_at has no time zone")
        if self.generation < 1:
            raise ResultError(f"generation {self.generation} is below 1")

    def predecessor(self, form: Form) -> ReferencedSOP | None:
        """What a report of this form supersedes: the same form where there was one, else any."""
        first = next(iter(sorted(self.predecessors.items())), (None, None))[1]
        return self.predecessors.get(str(form), first)


@dataclass(frozen=True)
class Source:
    """The instances that the model was given.

    Attributes:
        datasets: their headers, at least one, all of one study; pixels are not looked at and
            nothing is changed. Any order.
        digests: SHA-256 in hex of each instance's content, same order.
        frames: ``ImageStack.frames``: where frame ``i`` of every mask came from. Empty when the
            input could not be read (then only "not analysed" can be reported).
    """

    datasets: tuple[Dataset, ...]
    digests: tuple[str, ...]
    frames: tuple[FrameRef, ...] = ()

    def __post_init__(self) -> None:
        if not self.datasets or len(self.datasets) != len(self.digests):
            raise ResultError(
                f"{len(self.datasets)} source instances with {len(self.digests)} digests"
            )
        for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            if not all(dataset.get(keyword) for dataset in self.datasets):
                raise ResultError(f"a source instance has no {keyword}")
        if len(self.by_uid) < len(self.datasets):
            raise ResultError("a source instance is given twice")
        if len({dataset.StudyInstanceUID for dataset in self.datasets}) > 1:
            raise ResultError("source instances of more than one study")
        unknown = {ref.sop_instance_uid for ref in self.frames} - set(self.by_uid)
        if unknown:
            raise ResultError(f"frames of instances that are not sources: {sorted(unknown)[:3]}")

    @cached_property
    def by_uid(self) -> dict[str, Dataset]:
        """Each header by its SOP Instance UID, in the order of the UIDs."""
        return {
            str(dataset.SOPInstanceUID): dataset
            for dataset in sorted(self.datasets, key=lambda ds: str(ds.SOPInstanceUID))
        }

    @property
    def first(self) -> Dataset:
        """The header that patient and study are copied from; the same in whatever order."""
        return next(iter(self.by_uid.values()))


@dataclass(frozen=True)
class BuiltObject:
    """A finished DICOM object, ready for `dicom_node.results.encode.encode`."""

    form: Form
    dataset: Dataset
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str

    @property
    def kind(self) -> str:
        """``seg``, ``sr`` or ``sc``."""
        return self.form.kind
