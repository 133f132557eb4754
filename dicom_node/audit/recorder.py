"""Owns the recording of messages in one process: who we are, the log, and what waits for it.

Recording never raises and never waits for long: what the log does not take now waits in memory,
in order, and goes with the next message; the caller is told, to alert somebody. Refuses to know
why a message is recorded.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from dicom_node.audit import messages, who
from dicom_node.audit.messages import Message, Origin, Participant
from dicom_node.audit.syslog import message as syslog_message
from dicom_node.audit.throttle import Throttle
from dicom_node.audit.trail import Trail
from dicom_node.errors import NodeError
from dicom_node.settings import Settings

MOST = 10_000
"""Messages that wait in memory, at most; about 20 MB."""
_AGAIN = 5.0
"""Seconds after a failure in which the log is left alone: each try may cost its patience."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Waiting:
    message: Message
    xml: bytes = field(repr=False)


class Recorder:
    """Writes this process's messages into the trail.

    Args:
        settings: of the node.
        role: what the process is, as its logs have it.
        clock: monotonic seconds.

    Attributes:
        process: this process as a participant.
        accepted_too: whether accepted associations are recorded.
        refusals: who is refused again and again writes no log full.
        fault: why messages wait; empty when they do not.
    """

    def __init__(
        self, settings: Settings, role: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        chosen = settings.audit
        self.trail = Trail(settings.audit_folder, chosen.rotate_mb << 20)
        self.process: Participant = who.process(role, settings.listener.ae_title)
        self.accepted_too = chosen.accepted
        self.refusals = Throttle(60.0, clock)
        self._on = chosen.enabled
        self._origin = Origin(chosen.source_id or settings.listener.ae_title, chosen.site)
        self._salt = settings.node_salt if chosen.patient_id == "hashed" else None
        self._host, self._clock = socket.gethostname(), clock
        self._lock = threading.Lock()
        self._left: deque[_Waiting] = deque()
        self._lost = 0
        self._not_before = 0.0
        self.fault = ""

    def record(self, *told: Message) -> str:
        """Write messages, after what waited before them; returns ``fault``."""
        if not self._on:
            return ""
        with self._lock:
            for message in told:
                xml = messages.to_xml(message, self._origin, self._salt)
                if len(self._left) < MOST:
                    self._left.append(_Waiting(message, xml))
                else:
                    self._lost += 1
            return self._write()

    def flush(self) -> str:
        """Write what waits, at once; returns ``fault``."""
        with self._lock:
            self._not_before = 0.0
            return self._write()

    def _write(self) -> str:
        if self._clock() < self._not_before:
            return self.fault
        if self.fault and self._left:
            self._left.appendleft(self._gap())
        try:
            while self._left:
                self._append(self._left[0])
                self._left.popleft()
        except NodeError as error:
            if self.fault and self._left[0].message.type == messages.RECORDING_STOPPED:
                self._left.popleft()  # told anew, with the count of then
            if not self.fault:
                log.error("audit trail not written", reason=str(error))
            self.fault, self._not_before = str(error), self._clock() + _AGAIN
            return self.fault
        if self.fault:
            log.warning("audit trail written again")
        self.fault, self._lost = "", 0
        return ""

    def _append(self, waiting: _Waiting) -> None:
        def make(sequence: int) -> bytes:
            now, outcome = datetime.now(UTC), waiting.message.outcome
            return syslog_message(sequence, now, self._host, os.getpid(), outcome, waiting.xml)

        self.trail.append(make, durable=waiting.message.urgent)

    def _gap(self) -> _Waiting:
        """What the log was without, told before it goes on."""
        text = f"{self.fault}; {len(self._left)} messages were written late, {self._lost} are lost"
        stopped = messages.security_alert(
            datetime.now(UTC),
            messages.RECORDING_STOPPED,
            [self.process],
            text,
            subject=self.trail.folder.as_uri(),
            outcome=messages.Outcome.MAJOR if self._lost else messages.Outcome.SERIOUS,
        )
        return _Waiting(stopped, messages.to_xml(stopped, self._origin, self._salt))
