"""Owns what we offer and accept in an association; refuses to know who asks.

Storage is listed class by class: pynetdicom's unrestricted mode would accept any UID in the
first syntax proposed, decodable or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from pydicom import uid
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import _NON_PATIENT_OBJECT_CLASSES, _STORAGE_CLASSES

VERIFICATION = "1.2.840.10008.1.1"
MPPS = "1.2.840.10008.3.1.2.3.3"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"

MAXIMUM_CONTEXTS = 128  # PS3.8 9.3.2.2: odd identifiers from 1 to 255

UNCOMPRESSED = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
DEFLATED = uid.DeflatedExplicitVRLittleEndian
TRANSFER_SYNTAXES: tuple[str, ...] = (
    *UNCOMPRESSED,
    DEFLATED,
    uid.RLELossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.HTJ2K,
)
"""What the node can decode (4.51 in part), and so accepts."""


@cache
def storage_classes() -> frozenset[str]:
    """Every SOP class of a patient's composite objects, retired and newest ones too.

    Both libraries' tables are joined: each lacks some of the other's. Objects without a patient
    (hanging protocols, implant templates) belong to no study and are left out.
    """
    storage_root = "1.2.840.10008.5.1.4."
    named = {
        known
        for known, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and known.startswith(storage_root)
    }
    return frozenset(named | set(_STORAGE_CLASSES.values())) - frozenset(
        _NON_PATIENT_OBJECT_CLASSES.values()
    )


@cache
def accepted() -> tuple[PresentationContext, ...]:
    """What the listener supports. Shared by all associations, which only read it.

    The services with a data set that the node itself decodes are not offered deflated:
    inflation has no bound there.
    """
    services = [build_context(c, list(UNCOMPRESSED)) for c in (VERIFICATION, MPPS)]
    services.append(_commitment())
    storage = [build_context(c, list(TRANSFER_SYNTAXES)) for c in sorted(storage_classes())]
    return (*services, *storage)


@cache
def answering() -> tuple[PresentationContext, ...]:
    """What a destination may do that is no modality: report on what we asked it to keep."""
    return build_context(VERIFICATION, list(UNCOMPRESSED)), _commitment()


def _commitment() -> PresentationContext:
    """In both roles: modalities ask us, and a destination that we asked reports (PS3.4 J.3.3)."""
    context = build_context(STORAGE_COMMITMENT, list(UNCOMPRESSED))
    context.scu_role, context.scp_role = True, True
    return context


def keep_first_choice(proposed: Iterable[PresentationContext]) -> None:
    """Reduce each proposed context to the first of its syntaxes that we accept.

    pynetdicom would choose by our order, and so make a sender that offers JPEG 2000 and, as every
    sender must, implicit little endian decompress what it holds. PS3.8 gives the order no
    meaning, but senders list first what they hold. A context without an acceptable syntax stays
    as it is, for the negotiation to refuse.
    """
    supported = {c.abstract_syntax: frozenset(c.transfer_syntax) for c in accepted()}
    for context in proposed:
        ours = supported.get(context.abstract_syntax, frozenset())
        first = next((s for s in context.transfer_syntax if s in ours), None)
        if first is not None:
            context.transfer_syntax = [first]


def proposed(kinds: Iterable[tuple[str, str]]) -> list[PresentationContext]:
    """Contexts for objects to be sent, one syntax in each, so that the answer is per syntax.

    Args:
        kinds: (SOP Class UID, Transfer Syntax UID) of every object.

    Returns:
        Contexts without identifiers, in the order of ``kinds``. An uncompressed or deflated
        object is proposed in both uncompressed syntaxes too, so that a destination which takes
        only implicit little endian (PS3.5 10.1: the default) still gets it.
    """
    pairs: dict[tuple[str, str], None] = {}
    for sop_class, syntax in kinds:
        pairs[sop_class, syntax] = None
        if convertible(syntax):
            pairs |= dict.fromkeys((sop_class, str(other)) for other in UNCOMPRESSED)
    return [build_context(sop_class, syntax) for sop_class, syntax in pairs]


def convertible(syntax: str) -> bool:
    """Whether a data set in this syntax can change its encoding without touching pixels."""
    return syntax in UNCOMPRESSED or syntax == DEFLATED


def is_uid(value: object) -> bool:
    """Digits and dots, at most 64 of them (PS3.5 9.1; leading zeros are met and tolerated)."""
    return isinstance(value, str) and 0 < len(value) <= 64 and set(value) <= set("0123456789.")


def syntaxes_of(contexts: Sequence[PresentationContext], sop_class: str) -> list[UID]:
    """The transfer syntaxes that were accepted for a SOP class."""
    return [c.transfer_syntax[0] for c in contexts if c.abstract_syntax == sop_class]
