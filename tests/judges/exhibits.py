"""What is judged: sources of every kind, predictions that say all that can be said, and objects.

Refuses to judge. A source is read as the node reads it, so that frames lie in reading order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset

from dicom_node.domain.profile import Form
from dicom_node.results import codes
from dicom_node.results.build import build_results
from dicom_node.results.encode import encode
from dicom_node.results.types import BuildContext, Source
from inference.display import shown
from inference.reading import read
from inference.types import Box, Code, Finding, ImageStack, Measurement, Prediction, Segment
from tests import dicoms
from tests.judges.types import Origin
from tests.results import CONTEXT, HEART, LEFT, LUNG, MODEL, PNEUMONIA, RIGHT, segment

VOLUME = Code("118565006", "SCT", "Volume")
MILLILITRE = Code("ml", "UCUM", "milliliter")
LENGTH = Code("410668003", "SCT", "Length")
MILLIMETRE = Code("mm", "UCUM", "millimeter")
BREAST = Code("76752008", "SCT", "Breast")
KIDNEY = Code("64033007", "SCT", "Kidney")
NODULE = Code("27925004", "SCT", "Nodule")
EFFUSION = Code("60046008", "SCT", "Pleural effusion")


def slices(heights: Sequence[float]) -> list[Dataset]:
    return [dicoms.ct_slice(position=(-32, -32, z), number=i + 1) for i, z in enumerate(heights)]


SOURCES: dict[str, Callable[[], list[Dataset]]] = {
    "CT": lambda: dicoms.ct_series(4)[::-1],
    "CT, tilted": lambda: dicoms.ct_series(
        4, tilt=20.0, TimezoneOffsetFromUTC="+0530", IssuerOfPatientID="HOSPITAL"
    ),
    "CT, uneven": lambda: slices((0.0, 5.0, 5.1, 20.333333, 100.0)),
    "CT, slices that coincide": lambda: slices((0, 5, 5, 10)),
    "MR": lambda: [
        dicoms.mr_slice(
            position=(-32, -32, 5 * i),
            number=i + 1,
            SpecificCharacterSet=["", "ISO 2022 IR 87"],
            PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
        )
        for i in range(3)
    ],
    "DX": lambda: [
        dicoms.dx_image(
            SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg", AccessionNumber=""
        )
    ],
    "CR": lambda: [dicoms.dx_image(modality="CR", SpecificCharacterSet=None, PatientSex="X")],
    "MG": lambda: [
        dicoms.dx_image(
            modality="MG", SpecificCharacterSet="ISO_IR 144", PatientName="Люкceмбypг^Анна"
        )
    ],
    "US": lambda: [dicoms.us_image()],
    "US clip": lambda: [
        dicoms.us_clip(4, SpecificCharacterSet="ISO_IR 127", PatientName="قباني^لنزار")
    ],
    "enhanced CT": lambda: [
        dicoms.enhanced_ct(
            4, order=(2, 0, 3, 1), StudyDate="", StudyTime="", TimezoneOffsetFromUTC="-0330"
        )
    ],
    "enhanced MR": lambda: [dicoms.enhanced_mr(4, order=(1, 3, 0, 2), StudyID="")],
}


def predicted(stack: ImageStack) -> Prediction:
    """All that a model can say: structures that overlap and lie on sides, one of them not there;
    something present, something absent, something graded, something found in two places."""
    frames, rows, columns = stack.shape
    last = frames - 1

    def ellipse(centre: tuple[float, float], radius: float, where: slice) -> Segment:
        r, c = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
        probability = np.zeros(stack.shape, np.float32)
        distance = np.hypot(r - centre[0], c - centre[1])
        probability[where] = np.clip(1 - distance / (2 * radius), 0, 1) ** 2
        return segment(probability > 0.25, probability=probability)

    placed = stack.positions is not None
    size = (
        Measurement(VOLUME, 321.123456, MILLILITRE)
        if placed
        else Measurement(codes.AREA, 1234.5678, codes.PIXELS, frame=0)
    )
    line = Measurement(
        LENGTH, 23.75, MILLIMETRE if placed else codes.PIXELS, frame=last, line=((5, 8.5), (21, 30))
    )
    right = ellipse((0, -0.4), 0.35, slice(None))
    left = ellipse((0, 0.5), 0.3, slice(0, max(1, last)))
    heart = ellipse((0.2, 0), 0.4, slice(last, None))
    nothing = ellipse((9, 9), 0.1, slice(None))
    return Prediction(
        segments=(
            replace(right, label="Right lung", type=LUNG, laterality=RIGHT, measurements=(size,)),
            replace(left, label="Linke Lunge, größer", type=LUNG, laterality=LEFT),
            replace(heart, label="Heart", type=HEART, measurements=(line,)),
            replace(nothing, label="Left kidney", type=KIDNEY, laterality=LEFT),
            replace(
                ellipse((-0.6, -0.6), 0.2, slice(0, 1)),
                label="Breast",
                type=BREAST,
                laterality=LEFT,
                colour=(20, 20, 230),
            ),
        ),
        findings=(
            Finding("Pleural effusion", EFFUSION, False, probability=0.031415926, threshold=0.4),
            Finding(
                "Pneumonia",
                PNEUMONIA,
                True,
                probability=0.87654321,
                threshold=0.5,
                severity=codes.MODERATE,
                score=3.5,
                site=LUNG,
            ),
            Finding(
                "Nodule",
                NODULE,
                True,
                probability=0.66,
                threshold=0.25,
                boxes=(Box(0, 10.5, 20, 30, 45.25), Box(last, 40, 20, 60, 45)),
            ),
        ),
        notes=("Flächen gelten für die Detektorebene.",),
    )


def apart(prediction: Prediction) -> Prediction:
    """The same with segments that do not overlap: the earlier one keeps a voxel."""
    taken = np.zeros_like(prediction.segments[0].mask)
    segments = []
    for one in prediction.segments:
        segments.append(replace(one, mask=one.mask & ~taken))
        taken |= one.mask
    return replace(prediction, segments=tuple(segments))


def source_of(name: str) -> tuple[Source, ImageStack]:
    """A source as the node reads it."""
    datasets = SOURCES[name]()
    stack = read(datasets)
    digests = [hashlib.sha256(str(ds.SOPInstanceUID).encode()).hexdigest() for ds in datasets]
    return Source(tuple(datasets), tuple(digests), stack.frames), stack


def made(
    prediction: Prediction,
    source: Source,
    stack: ImageStack | None,
    forms: Sequence[Form],
    context: BuildContext = CONTEXT,
) -> tuple[dict[str, bytes], Origin]:
    """Part 10 files by form (and page), and where they come from."""
    picture = None if stack is None else lambda frame: shown(stack, frame)
    files: dict[str, bytes] = {}
    for one in build_results(prediction, source, MODEL, context, forms, picture):
        page = sum(name.startswith(str(one.form)) for name in files)
        files[str(one.form) + (f", page {page + 1}" if page else "")] = encode(one.dataset)
    return files, Origin(source, prediction, MODEL, context, files)
