"""Owns which objects open a revision: images that a modality made, nothing that a system derived.

A PACS that forwards everything back sends our own results too; if those opened a revision, the
node would chase its own tail. Refuses to know storage.
"""

from __future__ import annotations

# Attributes of a SOP class name that mark what nobody's model was trained on.
_NOT_IMAGES = (
    "Segmentation",
    "Presentation State",
    "Secondary Capture",
    "Structured",
    " SR ",
    "Report",
    "Encapsulated",
    "Key Object",
    "Waveform",
    "Raw Data",
    "Registration",
    "Fiducials",
    "Real World Value",
    "Parametric Map",
    "RT ",
    "Measurements",
)
_NOT_MODALITIES = frozenset({"SEG", "SR", "PR", "KO", "DOC", "REG", "RWV", "FID", "PLAN"})


def why_ignored(sop_class: str, modality: str, is_own_result: bool) -> str:
    """Why an instance opens no revision; empty when it does.

    Args:
        sop_class: the SOP class's name (PS3.6 table A-1), empty when unknown.
        modality: Modality (0008,0060).
        is_own_result: this node built it, or a series of ours holds it.
    """
    if is_own_result:
        return "a result of this node that came back"
    if "Image Storage" not in sop_class or any(mark in sop_class for mark in _NOT_IMAGES):
        return f"{sop_class or 'an unknown SOP class'} is no image of a modality"
    if modality in _NOT_MODALITIES:
        return f"modality {modality} is no image of a modality"
    return ""
