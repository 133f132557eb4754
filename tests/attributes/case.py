"""Owns what every check is told: the object, what it was made from, how to read values of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

from dicom_node.results.types import Source
from tests.judges.types import Origin, kind_of
from tests.tid1500 import concept, descendants


@dataclass(frozen=True)
class Case:
    """An object with all that it is held against."""

    data: Dataset
    origin: Origin

    @property
    def source(self) -> Source:
        return self.origin.source

    @property
    def first(self) -> Dataset:
        """The instance that patient and study come from; all agree on them here."""
        return self.source.first

    @cached_property
    def segmentation(self) -> Dataset | None:
        """The segmentation itself, or the one that a report cites."""
        if kind_of(self.data) == "seg":
            return self.data
        if kind_of(self.data) == "sr":
            for uid in cited(self.data, "evidence"):
                other = self.origin.instances.get(uid)
                if other is not None and kind_of(other) == "seg":
                    return other
        return None


def plain(dataset: Dataset, keyword: str) -> Any:
    """Text as people see it; numbers as numbers; "" where absent or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return ""
    if isinstance(value, PersonName):
        return str(value).rstrip("^=")
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str):
        return value.strip()
    return [str(one).strip() for one in value]


def as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, str | int | float):
        return [] if value is None else [value]
    return list(value)


def tracking_uids(dataset: Dataset) -> list[str]:
    if kind_of(dataset) == "seg":
        return [str(item.TrackingUID) for item in dataset.SegmentSequence]
    return [str(i.UID) for i in descendants(dataset, "UIDREF") if concept(i) == "112040 DCM"]


def wrong_frame_number(image: Dataset, reference: Dataset) -> bool:
    """It is needed where an image has several frames, and allowed where it may have."""
    named = "ReferencedFrameNumber" in reference
    count = image.get("NumberOfFrames")
    return named if count is None else int(count) > 1 and not named


def cited(report: Dataset, where: str) -> set[str]:
    """SOP Instance UIDs in the content, or in Current Requested Procedure Evidence."""
    if where == "content":
        return {
            str(reference.ReferencedSOPInstanceUID)
            for item in (*descendants(report, "IMAGE"), *descendants(report, "COMPOSITE"))
            for reference in item.ReferencedSOPSequence
        }
    return {uid for _, _, uid in hierarchy(report, "CurrentRequestedProcedureEvidenceSequence")}


def hierarchy(report: Dataset, keyword: str) -> set[tuple[str, str, str]]:
    """Study, series, instance."""
    return {
        (str(s.StudyInstanceUID), str(one.SeriesInstanceUID), str(item.ReferencedSOPInstanceUID))
        for s in report.get(keyword) or []
        for one in s.ReferencedSeriesSequence
        for item in one.ReferencedSOPSequence
    }
