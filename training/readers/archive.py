"""Owns a folder of DICOM as an archive exports it: images, and objects that speak of them.

Refuses to know what the objects say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydicom.dataset import Dataset

from inference.attributes import text
from inference.errors import ReadingError
from inference.reading import read_files
from inference.types import ImageStack
from training.errors import DataError
from training.readers.common import (
    HEADER,
    Problems,
    Unusable,
    attributes,
    dicom_files,
    dicom_header,
    patient,
    study,
)
from training.samples import Sample, Truth

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage, Label Map Segmentation Storage: they have rows, and are no images."""


@dataclass(frozen=True)
class Instance:
    """One file; ``header`` holds the attributes of ``HEADER`` alone."""

    path: Path
    header: Dataset


@dataclass(frozen=True)
class Archive:
    """What a folder holds.

    Attributes:
        images: by SOP Instance UID.
        series: SOP Instance UIDs of the images of each Series Instance UID.
        objects: of the SOP classes that were asked for, by SOP Instance UID.
    """

    images: dict[str, Instance] = field(default_factory=dict)
    series: dict[str, list[str]] = field(default_factory=dict)
    objects: dict[str, Instance] = field(default_factory=dict)

    def unit(self, uid: str, of: Literal["image", "series"]) -> str:
        """The name of the sample that an image belongs to: its own UID, or its series'."""
        return uid if of == "image" else text(self.images[uid].header, "SeriesInstanceUID") or uid

    def members(self, unit: str) -> list[Instance]:
        """The images of a sample."""
        return [self.images[uid] for uid in self.series.get(unit, [unit])]

    def sample(self, unit: str, truth: Truth, licence: str) -> Sample:
        """A sample of these images, named by their UID."""
        header = self.members(unit)[0].header
        paths = self.paths(unit)
        return Sample(
            name=unit,
            group=patient(header, unit),
            read=lambda: read_files(paths),
            truth=truth,
            licence=licence,
            study=study(header),
            attributes=attributes(header),
        )

    def paths(self, unit: str) -> list[Path]:
        """The files of a sample's images."""
        return [member.path for member in self.members(unit)]

    def stack(self, unit: str) -> ImageStack:
        """A sample's images, read."""
        return read_files(self.paths(unit))

    def known(self, uids: Iterable[str]) -> list[str]:
        """Those UIDs that are images of this folder, each once."""
        return [uid for uid in dict.fromkeys(uids) if uid in self.images]


def archive(folder: Path, wanted: Collection[str], problems: Problems) -> Archive:
    """What lies below a folder.

    Args:
        folder: searched with all folders in it; files that are not DICOM are passed over.
        wanted: SOP classes of the objects. What is neither wanted nor an image is passed over.
        problems: receives damaged files and instances that come twice.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"data.folder: there is no folder {folder.name}")
    found = Archive()
    for path in dicom_files(folder):
        name = str(path.relative_to(folder))
        try:
            header = dicom_header(path, HEADER)
            uid = text(header, "SOPInstanceUID")
            kind = text(header, "SOPClassUID")
            series = text(header, "SeriesInstanceUID")
            rows = header.get("Rows")
            if not (uid and kind):
                raise Unusable("nameless")
        except (Unusable, ReadingError):
            problems.add("DICOM files that are damaged (replace them)", name)
            continue
        if uid in found.images or uid in found.objects:
            problems.add("files that hold an instance for the second time (leave them out)", name)
        elif kind in wanted:
            found.objects[uid] = Instance(path, header)
        elif rows and kind not in SEGMENTATIONS:
            found.images[uid] = Instance(path, header)
            found.series.setdefault(series or uid, []).append(uid)
    return found
