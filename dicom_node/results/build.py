"""Owns the way from a prediction to its DICOM objects; refuses I/O, clocks and randomness."""

from __future__ import annotations

from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from dicom_node.results.identity import Identity
from dicom_node.results.report import report
from dicom_node.results.segmentation import segmentation
from dicom_node.results.types import (
    BuildContext,
    BuiltObject,
    Kind,
    ModelIdentity,
    Source,
)
from inference.types import Prediction


def build_results(
    prediction: Prediction, source: Source, model: ModelIdentity, context: BuildContext
) -> tuple[BuiltObject, ...]:
    """Everything that the PACS gets of one prediction.

    The same arguments give the same objects, and `dicom_node.results.encode.encode` the same
    bytes. Nothing of ``source`` is changed.

    Args:
        prediction: what the model says; masks on the grid of ``source.frames``.
        source: what it was given.
        model: which model.
        context: which job.

    Returns:
        the segmentation, where any segment has a pixel, then the report, always.

    Raises:
        ResultError: a mask or box does not lie on the source, or the prediction says nothing.
    """
    identity = Identity(source, model, context)
    # Values copied from a source may break their VR, and warnings about them would quote them.
    with disable_value_validation():
        segments = () if prediction.not_analysed is not None else prediction.segments
        made = segmentation(segments, identity)
        document = report(prediction, identity, made)
    objects: list[tuple[Kind, Dataset]] = [("seg", made[0])] if made else []
    objects.append(("sr", document))
    return tuple(
        BuiltObject(
            kind,
            dataset,
            str(dataset.SOPClassUID),
            str(dataset.SOPInstanceUID),
            str(dataset.SeriesInstanceUID),
        )
        for kind, dataset in objects
    )
