"""A real storage SCP that does as it is told: stock pynetdicom, nothing of the node's own.

with Pacs(tmp_path / "pacs", answers=[0xA700, 0x0000]) as pacs:
    ...send to pacs.port...
assert [r.sop_instance_uid for r in pacs.received] == [...]
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.presentation import build_context

from dicom_node.dimse.contexts import STORAGE_COMMITMENT, VERIFICATION, storage_classes

AE_TITLE = "PACS"
COMPRESSED = (
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
)
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, *COMPRESSED)


STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"


class Report(Enum):
    """What the PACS does once it has taken a request for storage commitment."""

    HERE = auto()  # reports on the same association
    NEVER = auto()  # says nothing; `Pacs.report` does, when the test wants it


@dataclass(frozen=True)
class Asked:
    """One N-ACTION: (SOP Class UID, SOP Instance UID) of what is to be kept."""

    transaction_uid: str
    references: tuple[tuple[str, str], ...]


class Do(Enum):
    """What the PACS does with a C-STORE instead of answering it with a status."""

    ABORT = auto()  # sends A-ABORT, keeps nothing
    DROP = auto()  # keeps the object, then cuts the connection without a response
    HANG = auto()  # keeps nothing and answers only after `release()` or the end
    NONSENSE = auto()  # keeps nothing, begins a PDU of 4 GiB, then as HANG


@dataclass(frozen=True)
class Received:
    """One C-STORE, in the order of arrival.

    Attributes:
        status: what was answered; None where nothing was.
        sha256: of the data set's bytes as they came, without file meta information.
        path: the file, where it was kept (0x0000, 0xBxxx, DROP).
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str
    sha256: str
    status: int | None
    path: Path | None
    calling: str


class Pacs:
    """A storage SCP on 127.0.0.1.

    Args:
        folder: where objects are kept as ``<SOP Instance UID>.dcm``.
        answers: for each C-STORE in turn, a status or a `Do`; 0x0000 when they are used up.
        comment: Error Comment beside each failure status.
        syntaxes: accepted transfer syntaxes.
        classes: accepted SOP classes; None accepts every storage class.
        ae_title: required called AE title.
        calling: required calling AE titles; empty accepts all.
        port: 0 lets the system choose; see `port`.
        commits: for each request for storage commitment in turn, a `Report`, the status that
            refuses it, or `Do.ABORT`; HERE when they are used up; None: it is not offered.
        finds: whether it answers queries, for all that it keeps but what is `lost`.
        tls: with what it speaks TLS; None: without.
        narrow: it takes little at a time: some kilobytes that it has not read fill the connection.

    Attributes:
        lost: Failure Reason by SOP Instance UID of what it says it does not hold.
    """

    def __init__(
        self,
        folder: Path,
        *,
        answers: Iterable[int | Do] = (),
        comment: str = "",
        syntaxes: Sequence[str] = SYNTAXES,
        classes: Iterable[str] | None = None,
        ae_title: str = AE_TITLE,
        calling: Sequence[str] = (),
        port: int = 0,
        commits: Iterable[Report | Do | int] | None = None,
        finds: bool = False,
        tls: ssl.SSLContext | None = None,
        narrow: bool = False,
    ) -> None:
        self.commits = None if commits is None else list(commits)
        self.asked: list[Asked] = []
        self.queries = 0
        self.lost: dict[str, int] = {}
        self.folder, self.comment, self.ae_title = folder, comment, ae_title
        self.answers = list(answers)
        self.received: list[Received] = []
        self.associations = 0
        self._lock = threading.Lock()
        self._stopped = False
        self._released = threading.Event()
        self._reading = threading.Event()
        self._reading.set()
        self._ae = AE(ae_title)
        self._ae.require_called_aet = True
        self._ae.require_calling_aet = list(calling)
        self._ae.network_timeout = 600
        accepted = storage_classes() if classes is None else classes
        contexts = [build_context(VERIFICATION)]
        contexts += [build_context(c, list(syntaxes)) for c in sorted(accepted)]
        if commits is not None:
            contexts.append(build_context(STORAGE_COMMITMENT))
        if finds:
            contexts.append(build_context(STUDY_ROOT))
        self._contexts = contexts
        self._wanted_port, self._tls, self._narrow = port, tls, narrow
        self._server: Any = None

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def __enter__(self) -> Pacs:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._server = self._ae.start_server(
            ("127.0.0.1", self._wanted_port),
            block=False,
            contexts=self._contexts,
            ssl_context=self._tls,
            evt_handlers=[
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_ACCEPTED, self._accepted),
                (evt.EVT_PDU_RECV, self._pdu),
                (evt.EVT_N_ACTION, self._commit),
                (evt.EVT_C_FIND, self._find),
            ],
        )
        if self._narrow:  # accepted connections have it from the listening socket
            listening = self._server.socket
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            # The sender's buffer is some segments long, and on the loopback they are of 64 KiB.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Go down: abort what runs, close the port. A new `Pacs` may take the same port."""
        if self._stopped:
            return
        self._stopped = True
        self._released.set()
        self._reading.set()
        for association in self._server.active_associations:
            association.abort()
        self._server.shutdown()

    def stop_reading(self) -> None:
        """Close the window: data sets are no longer read from the socket until `resume`."""
        self._reading.clear()

    def resume(self) -> None:
        self._reading.set()

    def release(self) -> None:
        """Let what hangs go on (and answer 0x0000)."""
        self._released.set()

    def hold(self) -> dict[str, str]:
        """SHA-256 of the kept data sets by SOP Instance UID."""
        with self._lock:
            return {r.sop_instance_uid: r.sha256 for r in self.received if r.path}

    def report(self, asked: Asked, port: int, called: str, calling: str = "") -> int | None:
        """Report on a new association to a listener on this machine; its answer's status."""
        ae = AE(calling or self.ae_title)
        ae.add_requested_context(STORAGE_COMMITMENT)
        role = build_role(STORAGE_COMMITMENT, scp_role=True)
        association = ae.associate("127.0.0.1", port, ae_title=called, ext_neg=[role])
        if not association.is_established:
            return None
        event, information = self._information(asked)
        answer, _ = association.send_n_event_report(
            information, event, STORAGE_COMMITMENT, PUSH_MODEL_INSTANCE
        )
        association.release()
        return int(answer.Status) if "Status" in answer else None

    def _information(self, asked: Asked) -> tuple[int, Dataset]:
        information, kept, failed = Dataset(), [], []
        information.TransactionUID = asked.transaction_uid
        for sop_class, instance in asked.references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
            if instance in self.lost:
                item.FailureReason = self.lost[instance]
                failed.append(item)
            else:
                kept.append(item)
        if kept:
            information.ReferencedSOPSequence = kept
        if failed:
            information.FailedSOPSequence = failed
        return (2 if failed else 1), information

    def _commit(self, event: evt.Event) -> tuple[int, None]:
        wanted = event.action_information
        references = tuple(
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in wanted.ReferencedSOPSequence
        )
        asked = Asked(str(wanted.TransactionUID), references)
        with self._lock:
            self.asked.append(asked)
            does = self.commits.pop(0) if self.commits else Report.HERE
        if isinstance(does, int):
            return does, None
        if does is Do.ABORT:
            event.assoc.abort()
        if does is Do.HANG:
            self._released.wait()
        if does is Report.HERE:
            threading.Thread(target=self._report_here, args=(event.assoc, asked)).start()
        return 0x0000, None

    def _report_here(self, association: Any, asked: Asked) -> None:
        time.sleep(0.1)  # after the response to the request
        event, information = self._information(asked)
        association.send_n_event_report(information, event, STORAGE_COMMITMENT, PUSH_MODEL_INSTANCE)

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier
        assert wanted.QueryRetrieveLevel == "IMAGE"
        with self._lock:
            self.queries += 1
        if wanted.SOPInstanceUID in self.hold().keys() - self.lost.keys():
            held = dcmread(self.folder / f"{wanted.SOPInstanceUID}.dcm", stop_before_pixels=True)
            match = Dataset()
            match.QueryRetrieveLevel = "IMAGE"
            match.SOPInstanceUID = held.SOPInstanceUID
            if (held.StudyInstanceUID, held.SeriesInstanceUID) == (
                wanted.StudyInstanceUID,
                wanted.SeriesInstanceUID,
            ):
                yield 0xFF00, match

    def _accepted(self, _: evt.Event) -> None:
        with self._lock:
            self.associations += 1

    def _pdu(self, event: evt.Event) -> None:
        """Runs in the thread that reads the socket, so that waiting here closes the window."""
        if isinstance(event.pdu, P_DATA_TF):
            self._reading.wait()

    def _store(self, event: evt.Event) -> int | Dataset:
        with self._lock:
            answer = self.answers.pop(0) if self.answers else 0x0000
        if answer is Do.NONSENSE:
            event.assoc.dul.socket.socket.sendall(b"\4\0" + b"\xff" * 4)  # type: ignore[union-attr] # connected
        if answer in (Do.HANG, Do.NONSENSE):
            self._released.wait()
            answer = 0x0000
        if answer is Do.ABORT:
            self._note(event, None, keep=False)
            event.assoc.abort()
            return 0x0000  # never sent
        if answer is Do.DROP:
            self._note(event, None, keep=True)
            event.assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr] # connected
            time.sleep(0.1)  # the state machine notices before the response is tried
            return 0x0000
        assert isinstance(answer, int)
        self._note(event, answer, keep=answer == 0 or answer & 0xF000 == 0xB000)
        status = Dataset()
        status.Status = answer
        if answer and self.comment:
            status.ErrorComment = self.comment
        return status

    def _note(self, event: evt.Event, status: int | None, *, keep: bool) -> None:
        request: Any = event.request
        path = self.folder / f"{request.AffectedSOPInstanceUID}.dcm" if keep else None
        if path:
            path.write_bytes(event.encoded_dataset())
        with self._lock:
            self.received.append(
                Received(
                    str(request.AffectedSOPClassUID),
                    str(request.AffectedSOPInstanceUID),
                    str(event.context.transfer_syntax),
                    hashlib.sha256(request.DataSet.getvalue()).hexdigest(),
                    status,
                    path,
                    str(event.assoc.requestor.ae_title),
                )
            )
