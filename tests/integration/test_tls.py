"""TLS in and out, on real sockets, against OpenSSL, DCMTK and pynetdicom."""

from __future__ import annotations

import select
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_ECHO_RQ
from pynetdicom.dimse_primitives import C_ECHO
from pynetdicom.dsutils import split_dataset
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import UserIdentityNegotiation
from structlog.testing import capture_logs

from dicom_node.destinations.dimse import DimseDestination
from dicom_node.dimse.commitment import PUSH_MODEL_INSTANCE, Request, action
from dicom_node.dimse.contexts import STORAGE_COMMITMENT, VERIFICATION
from dicom_node.dimse.tls import client_context, server_context
from dicom_node.listener.node import NodeInbox
from dicom_node.listener.server import open_doors
from dicom_node.services import peers, registry
from dicom_node.services.admission import Identity
from dicom_node.services.context import Node
from dicom_node.settings import ListenerSettings
from dicom_node.store.tables import Association as Row
from dicom_node.worker.engines import WarmEngines
from tests import dicoms
from tests.bundles import make_tiny_bundle
from tests.certificates import DAY, Authority, Pair
from tests.listening import NODE, MemoryInbox, listening
from tests.node import PATIENCE, running
from tests.nodes import Clock, add_bundle, make_node, route, settle
from tests.servers import answers_on, eventually, free_port, need, storescp

CT = dicoms.CT


class TurnedAway(NamedTuple):
    """What the inbox was told of somebody who was not let in."""

    address: str
    reason: str
    calling: str


@dataclass
class Secured:
    """A listener with both ports.

    Attributes:
        turned_away: whom it did not let in.
    """

    plain: int
    tls: int
    turned_away: list[TurnedAway] = field(default_factory=list)


@contextmanager
def secured(inbox: Any, pair: Pair, **options: Any) -> Iterator[Secured]:
    settings = pair.settings(port=0, **options.pop("files", {}))
    doors = open_doors(ListenerSettings(ae_title=NODE, port=0), settings)
    plain, tls = (door.listening.getsockname()[1] for door in doors)
    found, refused = Secured(plain, tls), inbox.refused

    def note(*who: str) -> None:
        found.turned_away.append(TurnedAway(*who))
        refused(*who)

    inbox.refused = note
    with listening(inbox, doors=doors, **options):
        yield found


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def own(ca: Authority) -> Pair:
    return ca.issue("node")


@pytest.fixture
def modality(ca: Authority) -> Pair:
    return ca.issue("ct1", hosts=["ct1.example"], purposes=[ExtendedKeyUsageOID.CLIENT_AUTH])


@pytest.fixture
def bare(tmp_path: Path) -> Node:
    return make_node(tmp_path / "node")


@contextmanager
def associated(
    port: int,
    pair: Pair | None,
    *,
    calling: str = "ANY-SCU",
    identity: UserIdentityNegotiation | None = None,
) -> Iterator[Association]:
    ae = AE(calling)
    for sop_class in (VERIFICATION, CT, STORAGE_COMMITMENT):
        ae.add_requested_context(sop_class, ExplicitVRLittleEndian)
    ae.acse_timeout = ae.dimse_timeout = ae.connection_timeout = 10
    secure = (client_context(pair.settings()), "localhost") if pair else None
    items: list[Any] = [identity] if identity else []
    association = ae.associate("127.0.0.1", port, ae_title=NODE, tls_args=secure, ext_neg=items)
    try:
        yield association
    finally:
        association.release()


def echo_seconds(port: int, pair: Pair | None) -> float:
    started = time.monotonic()
    with associated(port, pair) as association:
        assert association.is_established
        assert association.send_c_echo().Status == 0x0000
    return time.monotonic() - started


def rejection(port: int, pair: Pair | None, **how: Any) -> tuple[int, int, int] | None:
    with associated(port, pair, **how) as association:
        if association.is_established:
            return None
        answer: Any = association.acceptor.primitive
        return answer.result, answer.result_source, answer.diagnostic


def dcmtk(tool: str, port: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [need(tool), "-v", "-aec", NODE, *map(str, words[: words.index("--")]), "127.0.0.1"]
    command += [str(port), *map(str, words[words.index("--") + 1 :])]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


# What comes in


@pytest.mark.parametrize("kind", ["EC", "RSA"])
def test_dcmtk_verifies_and_stores_over_tls(
    ca: Authority, modality: Pair, tmp_path: Path, kind: str
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048) if kind == "RSA" else None
    inbox, series = MemoryInbox(), dicoms.ct_series(3)
    files = [dicoms.save(ds, tmp_path / f"{i}.dcm") for i, ds in enumerate(series)]
    with secured(inbox, ca.issue("node", key=key)) as node:
        echoed = dcmtk("echoscu", node.tls, *modality.options, "--")
        stored = dcmtk("storescu", node.tls, *modality.options, "--", *files)
        plain = dcmtk("echoscu", node.plain, "--")
    assert (echoed.returncode, stored.returncode, plain.returncode) == (0, 0, 0), stored.stderr
    starts = [split_dataset(path)[1] for path in files]
    sent = [path.read_bytes()[start:] for path, start in zip(files, starts, strict=True)]
    assert [r.dataset for r in inbox.received] == sent
    assert node.turned_away == []


def test_what_tls_holds_decrypted_is_read_at_once(own: Pair, modality: Pair) -> None:
    """Two messages in one record: no poll of the socket can see the second."""
    with secured(MemoryInbox(), own) as node, associated(node.tls, modality) as association:
        context = association.accepted_contexts[0].context_id or 0
        record = b""
        for number in (1, 2, 3):
            asked, message = C_ECHO(), C_ECHO_RQ()
            asked.MessageID, asked.AffectedSOPClassUID = number, VERIFICATION
            message.primitive_to_message(asked)
            for primitive in message.encode_msg(context, 16384):
                pdu = P_DATA_TF()
                pdu.from_primitive(primitive)
                record += pdu.encode()
        association._reactor_checkpoint.clear()
        sock: Any = association.dul.socket
        started = time.monotonic()
        sock.socket.sendall(record)
        answers = [association.dimse.get_msg(block=True)[1] for _ in range(3)]
        association._reactor_checkpoint.set()
        assert [a and a.MessageIDBeingRespondedTo for a in answers] == [1, 2, 3]
        assert time.monotonic() - started < 3


# Who is turned away in the handshake


def as_client(pair: Pair | None, trusts: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(trusts.file))
    if pair:
        context.load_cert_chain(pair.certificate, pair.key)
    return context


def nobody(ca: Authority) -> ssl.SSLContext:
    return as_client(None, ca)


def a_stranger(ca: Authority) -> ssl.SSLContext:
    return as_client(Authority(ca.folder / "other").issue("ct1"), ca)  # by a CA of the same name


def an_expired_one(ca: Authority) -> ssl.SSLContext:
    return as_client(ca.issue("old", lives=-DAY), ca)


def a_server(ca: Authority) -> ssl.SSLContext:
    return as_client(ca.issue("pacs", purposes=[ExtendedKeyUsageOID.SERVER_AUTH]), ca)


def cbc(ca: Authority) -> ssl.SSLContext:
    context = as_client(ca.issue("ct"), ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA256")
    return context


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        (nobody, "peer did not return a certificate"),
        (a_stranger, "certificate refused"),
        (an_expired_one, "certificate refused: certificate has expired"),
        (a_server, "certificate refused"),
        (cbc, "no shared cipher"),
    ],
)
def test_row_13_a_client_without_a_good_certificate_or_suite_is_turned_away(
    ca: Authority,
    own: Pair,
    modality: Pair,
    who: Callable[[Authority], ssl.SSLContext],
    reason: str,
) -> None:
    inbox, context = MemoryInbox(), who(ca)
    with secured(inbox, own) as node:
        with (
            socket.create_connection(("127.0.0.1", node.tls), timeout=5) as sock,
            pytest.raises(ssl.SSLError),  # by TLS 1.3 the client hears of it when it reads
        ):
            context.wrap_socket(sock, server_hostname="localhost").recv(1)
        (turned,) = eventually(lambda: node.turned_away, 5)
        assert turned.reason.startswith(f"TLS handshake failed: {reason}")
        assert (turned.address, turned.calling) == ("127.0.0.1", "")
        assert echo_seconds(node.tls, modality) < 1
    assert len(inbox.opened) == 1


def test_a_revoked_certificate_is_turned_away(ca: Authority, own: Pair, modality: Pair) -> None:
    stolen = ca.issue("stolen")
    crl = {"crl": str(ca.revoke(stolen))}
    with secured(MemoryInbox(), own, files=crl) as node:
        assert echo_seconds(node.tls, modality) < 1
        with associated(node.tls, stolen) as association:
            assert not association.is_established
        (turned,) = eventually(lambda: node.turned_away, 5)
        assert turned.reason == "TLS handshake failed: certificate refused: certificate revoked"


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2", "-tls1_3"])
def test_openssl_connects_with_tls_1_2_and_1_3_only(
    own: Pair, modality: Pair, version: str
) -> None:
    with secured(MemoryInbox(), own) as node:
        done = subprocess.run(
            [
                *(need("openssl"), "s_client", "-connect", f"127.0.0.1:{node.tls}", version),
                *("-cert", modality.certificate, "-key", modality.key, "-brief"),
                *("-CAfile", modality.authority.file, "-verify_return_error"),
                *([] if version.endswith(("2", "3")) else ["-cipher", "ALL:@SECLEVEL=0"]),
            ],
            input="", capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
        said = done.stdout + done.stderr
        if version in ("-tls1_2", "-tls1_3"):
            assert "CONNECTION ESTABLISHED" in said and "Verification: OK" in said, said
        else:
            assert "alert protocol version" in said, said
            (turned,) = eventually(lambda: node.turned_away, 5)
            assert turned.reason == "TLS handshake failed: unsupported protocol"


def test_dcmtk_without_a_certificate_or_with_another_cas_is_turned_away(
    own: Pair, modality: Pair, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "other", "Other CA").issue("ct1")
    with secured(MemoryInbox(), own) as node:
        for options in (
            ["+tla", "+cf", str(own.authority.file)],
            [*stranger.options, "+cf", str(own.authority.file)],
        ):
            done = dcmtk("echoscu", node.tls, *options, "--")
            assert done.returncode != 0
        assert dcmtk("echoscu", node.tls, *modality.options, "--").returncode == 0
        assert len(eventually(lambda: node.turned_away, 5)) == 2


# Who is turned away by name


def test_row_13_a_modality_is_bound_to_its_certificate(
    ca: Authority, own: Pair, modality: Pair, bare: Node
) -> None:
    registry.add_modality(bare, "CT1", certificates=[str(modality.certificate)])
    other = ca.issue("ct2")
    with secured(NodeInbox(bare), own) as node, capture_logs() as logged:
        assert rejection(node.tls, modality, calling="CT1") is None
        assert rejection(node.tls, other, calling="CT1") == (1, 1, 3)
        assert rejection(node.plain, None, calling="CT1") == (1, 1, 3)
        assert rejection(node.tls, modality, calling="CT9") == (1, 1, 3)
        done = dcmtk("echoscu", node.tls, *other.options, "-aet", "CT1", "--")
        assert "Calling AE Title Not Recognized" in done.stderr + done.stdout
    why = [
        ("not with its certificate", other.fingerprint),
        ("without TLS", None),
        ("calling AE title unknown", modality.fingerprint),
        ("not with its certificate", other.fingerprint),
    ]
    told = [line for line in logged if line["event"] == "association rejected"]
    assert [(line["reason"], line.get("certificate")) for line in told] == why
    assert [t.reason for t in node.turned_away] == [
        f"association rejected: {reason} (1, 1, 3)" for reason, _ in why
    ]
    with bare.database.reading() as session:
        assert session.query(Row).count() == 1, "who was turned away leaves no row"


def test_what_records_the_turning_away_may_fail_and_lets_nobody_in() -> None:
    def fail(*_: str) -> None:
        raise RuntimeError("the audit trail is away")

    inbox: Any = MemoryInbox()
    inbox.refused = fail
    with listening(inbox) as port:
        assert rejection(port, None, calling="STRANGER") == (1, 1, 3)
        assert echo_seconds(port, None) < 1


def identity(user: str, passcode: str | None, asks: bool = False) -> UserIdentityNegotiation:
    item = UserIdentityNegotiation()
    item.user_identity_type = 1 if passcode is None else 2
    item.primary_field, item.positive_response_requested = user.encode(), asks
    if passcode is not None:
        item.secondary_field = passcode.encode()
    return item


def test_a_commitment_is_answered_over_tls_where_the_modality_must_use_it(
    ca: Authority, own: Pair, modality: Pair, bare: Node
) -> None:
    own_settings = bare.settings.model_copy(update={"tls": own.settings()})
    node, reports = replace(bare, settings=own_settings), []

    def note(event: evt.Event) -> tuple[int, None]:
        reports.append((event.event_type, type(event.assoc.dul.socket.socket)))
        return 0x0000, None

    ae = AE("CT1")
    ae.add_supported_context(STORAGE_COMMITMENT, scu_role=True, scp_role=True)
    server: Any = ae.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, note)],
        ssl_context=server_context(ca.issue("ct1-server").settings()),
    )
    port = server.server_address[1]
    registry.add_modality(node, "CT1", (), "127.0.0.1", port, certificates=[modality.fingerprint])
    request = action(Request("2.25.1", [(CT, "1.2.3")]))
    try:
        with (
            secured(NodeInbox(node), own, storage_commitment=True) as ports,
            associated(ports.tls, modality, calling="CT1") as association,
        ):
            answer, _ = association.send_n_action(
                request, 1, STORAGE_COMMITMENT, PUSH_MODEL_INSTANCE
            )
            assert answer.Status == 0x0000
            eventually(lambda: bool(reports), 30)
    finally:
        server.shutdown()
    assert reports == [(2, ssl.SSLSocket)]


def test_row_13_a_user_identity_is_asked_for_where_it_was_entered(own: Pair, bare: Node) -> None:
    registry.add_modality(bare, "CT1", identity=Identity("jo", "sesame"))
    registry.add_modality(bare, "CT2")
    with secured(NodeInbox(bare), own) as node:
        for wrong in (
            None,
            identity("jo", "open"),
            identity("ann", "sesame"),
            identity("jo", None),
        ):
            assert rejection(node.plain, None, calling="CT1", identity=wrong) == (1, 2, 1)
        for asks in (False, True):
            item = identity("jo", "sesame", asks)
            with associated(node.plain, None, calling="CT1", identity=item) as association:
                assert association.is_established
                answer = association.acceptor.user_identity
                assert (answer is not None) is asks
                assert answer is None or answer.server_response == b""
        item = identity("who", "ever", True)
        assert rejection(node.plain, None, calling="CT2", identity=item) is None
    assert {turned.reason for turned in node.turned_away} == {
        "association rejected: without its user identity (1, 2, 1)"
    }
    assert "sesame" not in str(node.turned_away)


def test_a_modality_has_no_more_associations_than_its_own(own: Pair, bare: Node) -> None:
    registry.add_modality(bare, "CT1", maximum_associations=2)
    registry.add_modality(bare, "CT2")
    with secured(NodeInbox(bare), own) as node, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(associated(node.plain, None, calling="CT1"))
        assert rejection(node.plain, None, calling="CT1") == (2, 3, 2)
        assert rejection(node.plain, None, calling="CT2") is None
        stack.close()
        assert rejection(node.plain, None, calling="CT1") is None


# Who means no good


@pytest.mark.parametrize("opening", [b"", b"\x16\x03\x01"], ids=["silent", "half a hello"])
def test_row_10_fifty_clients_that_stall_in_the_handshake_hold_up_nobody(
    own: Pair, modality: Pair, opening: bytes
) -> None:
    with ExitStack() as stack:
        node = stack.enter_context(secured(MemoryInbox(), own, association_timeout=2))
        stalling = [
            stack.enter_context(socket.create_connection(("127.0.0.1", node.tls)))
            for _ in range(50)
        ]
        for sock in stalling:
            sock.sendall(opening)
        assert max(echo_seconds(node.tls, modality) for _ in range(3)) < 1
        assert max(echo_seconds(node.plain, None) for _ in range(3)) < 1
        for sock in stalling:
            sock.settimeout(4)
            assert sock.recv(16) == b"", "cut by the deadline"


def test_the_handshake_and_the_request_share_one_deadline(own: Pair, modality: Pair) -> None:
    context = as_client(modality, own.authority)
    with secured(MemoryInbox(), own, association_timeout=1.5) as node:
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", node.tls), timeout=5) as sock:
            time.sleep(1)
            shaken = context.wrap_socket(sock, server_hostname="localhost")
            with pytest.raises((ssl.SSLError, OSError)):
                while shaken.send(b"\1"):
                    time.sleep(0.1)
        assert time.monotonic() - started < 2.5


def test_row_10_one_address_cannot_take_all_places(own: Pair, modality: Pair) -> None:
    def silent(address: str) -> socket.socket:
        return stack.enter_context(
            socket.create_connection(("127.0.0.1", node.tls), source_address=(address, 0))
        )

    limits = {"maximum_connections": 6, "maximum_connections_per_address": 4}
    with ExitStack() as stack:
        node = stack.enter_context(secured(MemoryInbox(), own, **limits))
        bystander = silent("127.0.0.2")
        flood = [silent("127.0.0.3") for _ in range(50)]
        assert echo_seconds(node.tls, modality) < 1
        ended = partial(select.select, flood, [], [], 0)
        eventually(lambda: len(ended()[0]) >= 46, 3, "all but four gave way or were turned away")
        bystander.settimeout(0.2)
        with pytest.raises(TimeoutError):  # still there
            bystander.recv(1)


# What goes out


def to(port: int, pair: Pair, **more: Any) -> DimseDestination:
    peer = DimseDestination("STORESCP", "127.0.0.1", port, "NODE", 3.0, pair.settings())
    return replace(peer, **more)


def test_a_pacs_is_spoken_to_over_tls_when_it_is_whom_it_should_be(
    ca: Authority, own: Pair, tmp_path: Path
) -> None:
    pacs, stranger = ca.issue("pacs"), Authority(tmp_path / "other", "Other CA").issue("node")
    with storescp(tmp_path, *pacs.options) as server:
        assert to(server.port, own).echo().reachable
        assert to(server.port, own, host="localhost").echo().reachable
        assert to(server.port, own, tls_name="localhost").echo().reachable
        for wrong, said in (
            (to(server.port, own, tls_name="pacs.example"), "Hostname mismatch"),
            (to(server.port, stranger), "certificate refused"),
            (to(server.port, own, tls=own.settings(key=str(tmp_path / "gone"))), "No such file"),
        ):
            answer = wrong.echo()
            assert not answer.reachable and said in answer.detail, answer
        plain = to(server.port, own, tls=None).echo()
        assert not plain.reachable
    assert "unknown ca" in to_one_that_does_not_know_us(tmp_path, pacs, stranger)


def to_one_that_does_not_know_us(folder: Path, pacs: Pair, us: Pair) -> str:
    """What is told where only the PACS refuses."""
    both = folder / "both.pem"
    both.write_bytes(us.authority.file.read_bytes() + pacs.authority.file.read_bytes())
    with storescp(folder / "again", *pacs.options) as server:
        return to(server.port, us, tls=us.settings(ca=str(both))).echo().detail


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_pacs_that_is_silent_in_the_handshake_is_given_up(own: Pair, silent_port: int) -> None:
    started = time.monotonic()
    answer = to(silent_port, own, timeout=1.0).echo()
    assert (answer.reachable, answer.detail) == (False, "TLS: too slow")
    assert time.monotonic() - started < 5


def test_a_study_comes_in_and_its_results_go_out_over_tls(
    ca: Authority, own: Pair, modality: Pair, tmp_path: Path
) -> None:
    node = make_node(tmp_path / "node", Clock(), tls=own.settings().model_dump())
    add_bundle(node, make_tiny_bundle(tmp_path / "tiny"))
    registry.add_modality(node, "CT1", ["127.0.0.1"], certificates=[modality.fingerprint])
    image = dicoms.save(dicoms.dx_image(), tmp_path / "dx.dcm")
    with storescp(tmp_path, *ca.issue("pacs").options) as pacs:
        place = {"ae_title": "STORESCP", "host": "localhost", "port": pacs.port, "tls": True}
        registry.add_destination(node, "out", "dimse", place)
        route(node)
        with secured(NodeInbox(node), own) as listener:
            sent = dcmtk("storescu", listener.tls, *modality.options, "-aet", "CT1", "--", image)
            assert sent.returncode == 0, sent.stderr
        assert isinstance(node.now, Clock)
        node.now.pass_(60)
        settle(node, WarmEngines(node))
        classes = {dcmread(path).SOPClassUID.name for path in pacs.files()}
    assert classes == {"Segmentation Storage", "Comprehensive 3D SR Storage"}


# The command


@pytest.mark.slow  # five starts of Python
def test_processes_share_a_tls_port_where_the_plain_one_is_closed(
    own: Pair, modality: Pair, tmp_path: Path
) -> None:
    plain, port = free_port(), free_port()
    tls = own.settings(listen="tls", port=port).model_dump()
    with running(
        tmp_path / "node", roles=(), tls=tls, listener={"port": plain, "processes": 2}
    ) as node:
        registry.add_modality(node.node, "CT1", certificates=[own.fingerprint])
        node.start("listen")

        def both_listen() -> bool:
            said = [e for e in node.log() if e.get("event") == "listening"]
            return [(e["port"], e["tls"]) for e in said] == [(port, True)] * 2

        eventually(both_listen, PATIENCE, "both processes listen")
        assert not answers_on(plain)
        peer = peers.own_listener(node.node)
        assert (peer.calling, peer.port, peer.tls_name) == ("CT1", port, "localhost")
        assert peers.echo(peer) > 0
        other = replace(peer, tls=modality.settings()).echo()
        assert other.detail == "association rejected (1,1,3)"
        eventually(lambda: node.logged("association rejected", certificate=modality.fingerprint))
