"""Owns what all readers share: problems, pictures, pseudonyms, licences.

Refuses to know how any data set is laid out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.misc import is_dicom

from inference.attributes import integer, text
from inference.errors import ReadingError
from inference.reading import read_files
from inference.types import FrameRef, ImageStack
from training.errors import DataError, listed
from training.recipe import Bundle, Coco, Npz, Table
from training.samples import Sample, Samples

Pictures = Table | Coco | Npz
"""Recipes that say of pictures what DICOM would tell."""

SOP_CLASSES = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
FORMATS = ("JPEG", "PNG")
GREY = ("1", "L", "LA")
DEEP = ("I", "I;16", "I;16B", "I;16L")
"""Modes of a 16-bit PNG."""

UNDER_OTHER_LICENCES = "under other licences"
HEADER = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
    "PatientSex",
    "PatientAge",
    "ViewPosition",
    "Rows",
    "Columns",
    "NumberOfFrames",
]
"""What is read of an image's header: nothing that is not used."""


class Problems:
    """What is wrong with a data set, gathered so that one error tells all of it."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, what: str, name: str) -> None:
        """One sample, line or label; ``what`` is wrong, with what to do."""
        self.found.setdefault(what, []).append(name)

    def settle(self) -> None:
        """Raises `DataError` if there are any."""
        if self.found:
            said = [f"{what}: {listed(names)}" for what, names in self.found.items()]
            raise DataError("; ".join(said))


class Unusable(Exception):
    """One sample cannot be used; the message says why and what to do."""


# --- pictures -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """An image on disk whose header was opened.

    Attributes:
        read: gives it.
        size: rows, columns; None of DICOM, whose frames say it when they are read.
        header: of DICOM (of its first instance), with the attributes of `HEADER` alone.
    """

    read: Callable[[], ImageStack]
    size: tuple[int, int] | None = None
    header: Dataset | None = None


def opened(path: Path, name: str, data: Pictures) -> Source:
    """A JPEG or PNG, a DICOM file, or a folder with one DICOM series.

    Cheap: headers are looked at, pixels are not decoded.

    Raises:
        Unusable: it is absent, damaged, or none of these.
    """
    if path.is_dir():
        return _series(path)
    if not path.is_file():
        raise Unusable("images that are missing (correct the path or leave the label out)")
    if is_dicom(path):
        return Source(lambda: read_files([path]), header=image_header(path))
    try:
        with Image.open(path, formats=FORMATS) as image:
            size = image.height, image.width
    except (OSError, Image.DecompressionBombError):
        raise Unusable("files that are no JPEG, PNG or DICOM, or damaged (replace them)") from None
    return Source(lambda: stacked(picture(path), name, data), size)


def _series(folder: Path) -> Source:
    paths = dicom_files(folder)
    if not paths:
        raise Unusable("folders without a DICOM file (correct the path or leave the label out)")
    headers = [image_header(path) for path in paths]
    if len({text(header, "SeriesInstanceUID") for header in headers}) > 1:
        raise Unusable("folders with more than one DICOM series (give each a folder of its own)")
    return Source(lambda: read_files(paths), header=headers[0])


def dicom_files(folder: Path) -> list[Path]:
    """The Part 10 files below a folder, by name; without DICOMDIR."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR")
    return sorted(path for path in found if is_dicom(path))


def image_header(path: Path) -> Dataset:
    """The attributes of `HEADER`.

    Raises:
        Unusable: the file cannot be parsed, or holds no image.
    """
    header = dicom_header(path, HEADER)
    try:
        integer(header, "Rows")
    except ReadingError:
        raise Unusable("DICOM files that are no image (leave them out)") from None
    return header


def dicom_header(path: Path, tags: list[str] | None = None) -> Dataset:
    """A DICOM file without its pixels; raises `Unusable` if it cannot be parsed."""
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
    except Exception:  # pydicom raises almost every type there is on damaged files
        raise Unusable("DICOM files that are damaged (replace them)") from None


def picture(path: Path) -> NDArray[np.generic]:
    """A JPEG or PNG: ``(rows, columns)`` float32 in 0..1, or ``(rows, columns, 3)`` RGB uint8.

    Pixels as they are stored: an orientation in the EXIF header is not followed, for boxes and
    masks do not follow it either.

    Raises:
        ReadingError: it cannot be decoded.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode in DEEP:
                return np.asarray(image).astype(np.float32) / np.float32(65535)
            if image.mode in GREY:
                return np.asarray(image.convert("L")).astype(np.float32) / np.float32(255)
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ReadingError(f"a picture cannot be decoded: {type(error).__name__}") from None


def stacked(pixels: NDArray[np.generic], name: str, data: Pictures) -> ImageStack:
    """One picture as the service would see it, with what the recipe says of it."""
    return ImageStack(
        pixels=pixels[None],
        unit="1",
        modality=data.modality,
        frames=(FrameRef(name, SOP_CLASSES.get(data.modality, SECONDARY_CAPTURE)),),
        patient_orientation=data.patient_orientation,
        spacing_source="none: a picture without a header",
    )


# --- who ----------------------------------------------------------------------------------------


def hashed(*parts: str) -> str:
    """A pseudonym, SHA-256 of what must not be written down."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def patient(header: Dataset, otherwise: str) -> str:
    """Patient ID and its issuer, hashed; ``otherwise`` where the header names nobody."""
    identifier = text(header, "PatientID")
    return hashed(text(header, "IssuerOfPatientID"), identifier) if identifier else otherwise


def study(header: Dataset) -> str:
    """Study Instance UID, hashed; "" where there is none."""
    uid = text(header, "StudyInstanceUID")
    return hashed(uid) if uid else ""


def attributes(header: Dataset) -> dict[str, str]:
    """Sex, age by decade and view, as far as they are told."""
    age = text(header, "PatientAge")
    years = int(age[:3]) if age[3:] == "Y" and age[:3].isdigit() else 0
    found = {
        "sex": text(header, "PatientSex"),
        "age": decade(years) if age else "",
        "view": text(header, "ViewPosition"),
    }
    return {key: value for key, value in found.items() if value}


def decade(years: int) -> str:
    """Such as "40-49"."""
    return f"{years // 10 * 10}-{years // 10 * 10 + 9}"


def frame_numbers(item: Dataset) -> list[int]:
    """Referenced Frame Number of a reference to an image: none, one or several, from 1."""
    found = item.get("ReferencedFrameNumber")
    if not found:
        return []
    return [int(v) for v in (found if isinstance(found, Sequence) else [found])]


# --- what ---------------------------------------------------------------------------------------


def channels(bundle: Bundle) -> dict[str, int]:
    """The label of each finding, in lower case, to its channel."""
    return {found.label.casefold(): found.channel for found in bundle.findings}


def labels(bundle: Bundle) -> str:
    """The labels of the findings, for a reader."""
    return ", ".join(found.label for found in bundle.findings)


def one_hot(channel: int, bundle: Bundle) -> tuple[float, ...]:
    """1 at ``channel``."""
    return tuple(float(c == channel) for c in range(bundle.architecture.classes))


# --- under which licence ------------------------------------------------------------------------


def allowed(licence: str, prefixes: Sequence[str]) -> bool:
    """Whether one of the prefixes is the licence or its first words; no prefixes allow all."""
    return not prefixes or any(licence == p or licence.startswith(p + " ") for p in prefixes)


def by_licence(
    samples: Sequence[Sample], prefixes: Sequence[str], title: str = UNDER_OTHER_LICENCES
) -> Samples:
    """Who may be learnt from; all others, less the groups that are learnt from, to test on."""
    learn = [sample for sample in samples if allowed(sample.licence, prefixes)]
    seen = {sample.group for sample in learn}
    others = [
        sample
        for sample in samples
        if not allowed(sample.licence, prefixes) and sample.group not in seen
    ]
    return Samples(learn, {title: others} if others else {})


def duplicates(names: Mapping[str, int]) -> list[str]:
    """Names that come more than once."""
    return [name for name, count in names.items() if count > 1]
