"""Owns every error that the node raises on purpose; knows nothing of who catches it.

::

    NodeError                       exit code 1
    ├── ConfigurationError          exit code 2   a setting, a rule file or an argument
    ├── NotFound                    exit code 3   nothing stored by that name or UID
    ├── InvalidTransition           exit code 4   the object is in a state that forbids it
    ├── Unavailable                 exit code 5   database, broker, disk or peer cannot take it now
    │   └── OutOfSpace
    ├── RefusedInstance                           a C-STORE that must not be acknowledged
    │   ├── IdentifierProblem                     UIDs missing, malformed, not the request's
    │   ├── UnreadableDataSet                     truncated, not DICOM, too deep
    │   ├── OverLimit                             larger than this node takes
    │   └── ConflictingInstance                   the UID is held with other content
    ├── DeliveryFailed                            one attempt to hand a result over
    │   └── DestinationClosed                     nothing at all would be taken now
    │       └── AccessDenied                      our credentials are not accepted
    └── ResultError                               a prediction cannot become a DICOM object

``dicom_node.dimse.status`` maps them to DIMSE statuses, ``dicom_node.cli.main`` to exit codes.
Messages name UIDs, attributes and settings, never a patient.
"""

from __future__ import annotations

from enum import StrEnum


class NodeError(Exception):
    """Anything that the node can say went wrong."""

    exit_code = 1


class ConfigurationError(NodeError):
    """A setting, a rule file or an argument cannot be used as it stands."""

    exit_code = 2


class NotFound(NodeError):
    """Nothing is stored by that name or UID.

    Args:
        kind: what was looked for ("study", "destination").
        key: the name or UID as given.
    """

    exit_code = 3

    def __init__(self, kind: str, key: str) -> None:
        self.kind, self.key = kind, key
        super().__init__(f"no {kind} {key!r}")


class InvalidTransition(NodeError):
    """The object is in a state that forbids the step.

    Args:
        what: the object ("job 12").
        state: the state that it is in.
        wanted: the step that was asked for.
    """

    exit_code = 4

    def __init__(self, what: str, state: str, wanted: str) -> None:
        self.what, self.state, self.wanted = what, state, wanted
        super().__init__(f"{what} is {state}: cannot {wanted}")


class Unavailable(NodeError):
    """Database, broker, disk or peer cannot take it now; the same call may go through later."""

    exit_code = 5


class OutOfSpace(Unavailable):
    """The disk is full, or so nearly that the node refuses more."""


class RefusedInstance(NodeError):
    """A C-STORE that must not be acknowledged; ``reason`` may be sent and logged."""

    def __init__(self, reason: str, sop_instance_uid: str | None = None) -> None:
        self.reason, self.sop_instance_uid = reason, sop_instance_uid
        super().__init__(reason)


class IdentifierProblem(RefusedInstance):
    """Required UIDs are missing, malformed, or differ from the request's."""


class UnreadableDataSet(RefusedInstance):
    """Truncated, not DICOM, or nested beyond reason."""


class OverLimit(RefusedInstance):
    """The data set declares or holds more than this node takes."""


class ConflictingInstance(RefusedInstance):
    """The SOP Instance UID is held with other content; the newcomer went to quarantine."""


class Retry(StrEnum):
    """What a failed delivery attempt means for the next one."""

    LATER = "later"
    NEVER = "never"


class DeliveryFailed(NodeError):
    """One attempt to hand a result over did not succeed.

    Args:
        reason: what happened, with the status where there was one.
        retry: whether the same bytes may be accepted later.
        status: of DIMSE, as DICOMweb has it too; None when none came.
        wait: seconds that the destination asked to be left alone.
    """

    def __init__(
        self, reason: str, retry: Retry, status: int | None = None, wait: float = 0.0
    ) -> None:
        self.reason, self.retry, self.status, self.wait = reason, retry, status, wait
        super().__init__(reason)


class DestinationClosed(DeliveryFailed):
    """Whatever was sent would fare alike: it is away, busy, or does not let us in."""


class AccessDenied(DestinationClosed):
    """Our credentials are not accepted; an administrator has to see to them."""


class ResultError(NodeError):
    """A prediction cannot become a DICOM object; says which attribute or array is at fault."""
