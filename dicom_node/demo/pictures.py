"""Owns the demo's pictures: a delivered SEG drawn on the image that it was made from.

Reads only what the PACS received and what the modality sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from dicom_node.results.overlay import overlay_png
from inference.display import shown
from inference.reading import read_files

LUNG_TO_BONE = (-300.0, 1400.0)  # window center and width, in Hounsfield units


def draw(
    segmentation: Path, sources: Sequence[Path], title: str, measures: Mapping[str, str]
) -> bytes:
    """A PNG of the frame on which most is segmented.

    Args:
        segmentation: a SEG file.
        sources: the files that it may refer to; others of the study are passed over.
        title: stands above the legend.
        measures: by Tracking Unique Identifier, what the report says of a segment.
    """
    seg = hd.seg.segread(segmentation)
    masks = _masks(seg)
    uid = max(masks, key=lambda uid: _shown(masks[uid]))
    path = next(p for p in sources if dcmread(p, stop_before_pixels=True).SOPInstanceUID == uid)
    stack = read_files([path])
    image = shown(stack, 0, LUNG_TO_BONE if stack.unit == "[hnsf'U]" else None)
    layers = [
        (
            masks[uid].get(number, np.zeros(image.shape[:2], bool)),
            _colour(item),
            _legend(item, measures),
        )
        for number, item in enumerate(seg.SegmentSequence, 1)
    ]
    return overlay_png(image, layers, title)


def _shown(segments: dict[int, NDArray[np.bool_]]) -> tuple[int, int]:
    """Orders frames: the most segments first, then the most pixels."""
    counts = [int(mask.sum()) for mask in segments.values()]
    return sum(count > 0 for count in counts), sum(counts)


def _masks(seg: Dataset) -> dict[str, dict[int, NDArray[np.bool_]]]:
    """For each source instance the mask of each segment, ``(rows, columns)``."""
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns).astype(bool)
    found: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for frame, groups in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        found.setdefault(str(source.ReferencedSOPInstanceUID), {})[number] = frame
    return found


def _colour(item: Dataset) -> tuple[int, int, int]:
    """CIELab as DICOM stores it (PS3.3 C.10.7.1.1) to sRGB."""
    lab = hd.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue)
    red, green, blue = lab.to_rgb()
    return red, green, blue


def _legend(item: Dataset, measures: Mapping[str, str]) -> str:
    told = measures.get(str(item.get("TrackingUID", "")), "")
    return f"{item.SegmentLabel}: {told}" if told else str(item.SegmentLabel)
