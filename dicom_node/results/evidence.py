"""Owns lists of references: which instances of which series and study a result stands on."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.dataset import Dataset

from dicom_node.results.types import ReferencedSOP


def reference(dataset: Dataset) -> ReferencedSOP:
    """The reference to a data set."""
    return ReferencedSOP(
        str(dataset.SOPClassUID),
        str(dataset.SOPInstanceUID),
        str(dataset.SeriesInstanceUID),
        str(dataset.StudyInstanceUID),
    )


def referenced_series(datasets: Iterable[Dataset]) -> list[Dataset]:
    """Items of Referenced Series Sequence (PS3.3 C.12.2), by series."""
    return [
        _series(uid, "ReferencedInstanceSequence", refs)
        for uid, refs in _by(map(reference, datasets), "series_instance_uid").items()
    ]


def hierarchical(references: Iterable[ReferencedSOP]) -> list[Dataset]:
    """Items of a Hierarchical SOP Instance Reference (PS3.3 C.17.2.1): study, series, instance."""
    studies = []
    for uid, refs in _by(references, "study_instance_uid").items():
        study = Dataset()
        study.StudyInstanceUID = uid
        study.ReferencedSeriesSequence = [
            _series(series, "ReferencedSOPSequence", held)
            for series, held in _by(refs, "series_instance_uid").items()
        ]
        studies.append(study)
    return studies


def _series(uid: str, keyword: str, references: Iterable[ReferencedSOP]) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = uid
    items = []
    for ref in references:
        item = Dataset()
        item.ReferencedSOPClassUID = ref.sop_class_uid
        item.ReferencedSOPInstanceUID = ref.sop_instance_uid
        items.append(item)
    setattr(series, keyword, items)
    return series


def _by(references: Iterable[ReferencedSOP], attribute: str) -> dict[str, list[ReferencedSOP]]:
    groups: dict[str, list[ReferencedSOP]] = {}
    for ref in references:
        groups.setdefault(getattr(ref, attribute), []).append(ref)
    return groups
