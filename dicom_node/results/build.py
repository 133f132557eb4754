"""Owns the way from a prediction to its DICOM objects; refuses I/O, clocks and randomness."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn

from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicom_node.domain.profile import DEFAULT, Encoding, Form, ScForm, SegForm, SrForm
from dicom_node.errors import ResultError
from dicom_node.results.capture import captures
from dicom_node.results.header import common
from dicom_node.results.identity import Identity
from dicom_node.results.report import SOP_CLASSES as REPORTS
from dicom_node.results.report import report
from dicom_node.results.segmentation import SOP_CLASSES as SEGMENTATIONS
from dicom_node.results.segmentation import (
    SYNTAXES,
    SegmentNumber,
    numbering,
    overlapping,
    segmentation,
)
from dicom_node.results.types import BuildContext, BuiltObject, ModelIdentity, Picture, Source
from inference.types import Prediction


def build_results(
    prediction: Prediction,
    source: Source,
    model: ModelIdentity,
    context: BuildContext,
    forms: Iterable[Form] = DEFAULT,
    picture: Picture | None = None,
) -> tuple[BuiltObject, ...]:
    """What is to be told of one prediction, in the forms that are asked for.

    The same arguments give the same objects, and `dicom_node.results.encode.encode` the same
    bytes, whichever other forms are asked for with them. Nothing of ``source`` is changed.

    Args:
        prediction: what the model says; masks on the grid of ``source.frames``.
        source: what it was given.
        model: which model.
        context: which job.
        forms: what to build. A report may cite a segmentation that was built before.
        picture: of a frame, for captures; not needed for a prediction that was not analysed.

    Returns:
        segmentations, where any segment has a pixel, before the reports that cite them.

    Raises:
        ResultError: a mask or box does not lie on the source, the prediction says nothing, or it
            cannot be told in a form that was asked for (see `cannot`).
    """
    identity = Identity(source, model, context)
    # Values copied from a source may break their VR, and warnings about them would quote them.
    with disable_value_validation():
        segments = () if prediction.not_analysed is not None else prediction.segments
        numbered = numbering(segments, identity)
        return tuple(
            BuiltObject(
                form,
                dataset,
                str(dataset.SOPClassUID),
                str(dataset.SOPInstanceUID),
                str(dataset.SeriesInstanceUID),
            )
            for form in sorted(set(forms), key=_order)
            for dataset in _made(form, prediction, numbered, identity, picture)
        )


def kind_of(form: Form) -> tuple[str, str]:
    """SOP class and transfer syntax of the objects of a form."""
    if isinstance(form, SegForm):
        return SEGMENTATIONS[form.encoding], SYNTAXES[form.compression]
    if isinstance(form, SrForm):
        return REPORTS[form.document], ExplicitVRLittleEndian
    return SecondaryCaptureImageStorage, ExplicitVRLittleEndian


def cannot(prediction: Prediction) -> frozenset[Encoding]:
    """The encodings in which the segments of a prediction cannot be written."""
    segments = [segment for segment in prediction.segments if not segment.empty]
    found = set()
    if overlapping(segments):
        found.add(Encoding.LABELMAP)
    if any(segment.probability is None for segment in segments):
        found.add(Encoding.FRACTIONAL)
    return frozenset(found)


def _order(form: Form) -> tuple[int, str]:
    return (SegForm, SrForm, ScForm).index(type(form)), str(form)


def _made(
    form: Form,
    prediction: Prediction,
    numbered: Mapping[int, SegmentNumber],
    identity: Identity,
    picture: Picture | None,
) -> Iterator[Dataset]:
    if isinstance(form, SegForm):
        if numbered:
            yield segmentation(prediction.segments, numbered, identity, form)
    elif isinstance(form, SrForm):
        yield report(prediction, numbered, identity, form)
    else:
        yield from captures(
            prediction,
            identity,
            picture or _no_picture,
            lambda page: common(form, SecondaryCaptureImageStorage, "OT", identity, page),
        )


def _no_picture(frame: int) -> NoReturn:
    raise ResultError(f"a capture needs a picture of frame {frame}")
