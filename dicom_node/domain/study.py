"""Owns what the decisions may know of a study: header facts of its instances, no pixels.

Refuses to know files, rows and pydicom; ``services.headers`` fills these in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class StudyState(StrEnum):
    """Where a study stands."""

    OPEN = "open"  # instances came that no closed revision holds
    CLOSED = "closed"  # its last revision holds all that came
    HELD = "held"  # two patients in one study: an administrator decides


@dataclass(frozen=True)
class Patient:
    """Patient ID (0010,0020) with its issuer (0010,0021); both may be empty."""

    patient_id: str
    issuer: str = ""


@dataclass(frozen=True)
class InstanceFacts:
    """What rules, models and the command ask of one instance.

    Lengths in mm. ``orientation`` holds the six direction cosines of Image Orientation (Patient).
    Text is as in the header, stripped; an absent attribute is an empty string or None.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    sha256: str
    modality: str = ""
    sop_class: str = ""
    body_part: str = ""
    view: str = ""
    laterality: str = ""
    image_type: tuple[str, ...] = ()
    series_description: str = ""
    study_description: str = ""
    protocol: str = ""
    kernel: str = ""
    manufacturer: str = ""
    station: str = ""
    calling_ae: str = ""
    called_ae: str = ""
    rows: int = 0
    columns: int = 0
    frames: int = 1
    thickness_mm: float | None = None
    orientation: tuple[float, ...] | None = None
    series_number: int | None = None
    acquired: str = ""
    is_image: bool = True
    lossy: bool = False  # Lossy Image Compression (0028,2110) is 01
    priority: str = ""


@dataclass(frozen=True)
class Candidate:
    """What a model may be run on: one projection image, or one series' images on one grid.

    Attributes:
        uid: SOP Instance UID of the image, or Series Instance UID.
        left_out: for each group of its instances that is not part of it, a sentence why.
    """

    uid: str
    instances: tuple[InstanceFacts, ...]
    left_out: tuple[str, ...] = ()

    @property
    def first(self) -> InstanceFacts:
        """The instance that speaks for all where they agree by construction."""
        return self.instances[0]

    def values(self, field: str) -> frozenset[str]:
        """Distinct non-empty values of a text attribute over the instances."""
        found: set[str] = set()
        for instance in self.instances:
            value = getattr(instance, field)
            found.update(value if isinstance(value, tuple) else (value,))
        return frozenset(found - {""})

    def number(self, field: str) -> float | None:
        """A numeric attribute, or the count of instances or frames."""
        if field == "instances":
            return len(self.instances)
        if field == "frames":
            return sum(instance.frames for instance in self.instances)
        value = getattr(self.first, field)
        return None if value is None else float(value)


def by_series(instances: Iterable[InstanceFacts]) -> dict[str, list[InstanceFacts]]:
    """Instances grouped by Series Instance UID, in order of arrival."""
    groups: defaultdict[str, list[InstanceFacts]] = defaultdict(list)
    for instance in instances:
        groups[instance.series_instance_uid].append(instance)
    return dict(groups)


def conflicting_patients(patients: Sequence[Patient]) -> bool:
    """True when one study names more than one patient, or one patient under two issuers.

    An absent issuer agrees with any: modalities leave it out where the worklist sets it.
    """
    ids = {patient.patient_id for patient in patients}
    issuers = {patient.issuer for patient in patients if patient.issuer}
    return len(ids) > 1 or len(issuers) > 1
