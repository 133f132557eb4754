"""STOW-RS and QIDO-RS against a real Orthanc, and against a server that does as it is told."""

from __future__ import annotations

import logging
import ssl
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.destinations.dicomweb import MAXIMUM_ANSWER, DicomwebDestination
from dicom_node.destinations.types import Item, Refused, Sent, Untried
from dicom_node.errors import AccessDenied, DeliveryFailed, DestinationClosed, Retry
from dicom_node.settings import LogSettings
from dicom_node.telemetry import configure
from tests import dicoms
from tests.judges.archive import dicomweb
from tests.servers import Orthanc, free_port, need, orthanc
from tests.web import Answer, Do, Web, stored

VARIABLE = "PACS_PASSWORD"
Fate = Sent | DeliveryFailed


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc"), **dicomweb()) as running:
        yield running


@pytest.fixture(scope="module")
def outgoing(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    folder = tmp_path_factory.mktemp("out")
    made = []
    for ds in dicoms.ct_series(4):
        path = dicoms.save(ds, folder / f"{ds.SOPInstanceUID}.dcm")
        syntax = ds.file_meta.TransferSyntaxUID
        made.append(Item(path, ds.SOPClassUID, ds.SOPInstanceUID, syntax))
    return made


def send(to: DicomwebDestination, items: list[Item]) -> list[Fate]:
    """The fate of each item; each is told once, in order."""
    fates: list[tuple[Item, Fate]] = []
    to.send(items, lambda item, fate: fates.append((item, fate)))
    assert [item for item, _ in fates] == items
    return [fate for _, fate in fates]


def at(url: str, timeout: float = 5, **options: str) -> DicomwebDestination:
    return DicomwebDestination.of({"url": url, **options}, timeout)


def only(fates: list[Fate]) -> DeliveryFailed:
    (fate,) = fates
    assert isinstance(fate, DeliveryFailed)
    return fate


# -- Orthanc -----------------------------------------------------------------------------------


def test_orthanc_holds_the_bytes_of_the_files_and_confirms_them(
    archive: Orthanc, outgoing: list[Item]
) -> None:
    to = at(f"{archive.url}/dicom-web/")
    uids = {item.sop_instance_uid for item in outgoing}
    assert to.confirm(outgoing) == set()
    for _ in range(2):  # a re-send is taken like the first
        assert send(to, outgoing) == [Sent(0, item.transfer_syntax) for item in outgoing]
    for item in outgoing:
        assert archive.file(item.sop_instance_uid) == item.path.read_bytes()
    never_sent = Item(outgoing[0].path, "1.2", "1.2.3.4", "1.2")
    assert to.confirm([*outgoing, never_sent]) == uids


def test_orthanc_answers_an_echo_and_says_no_where_there_is_no_service(archive: Orthanc) -> None:
    assert at(f"{archive.url}/dicom-web").echo().reachable
    told = at(f"{archive.url}/nothing").echo()
    assert not told.reachable
    assert "HTTP status 404" in told.detail


def test_what_orthanc_cannot_read_is_refused_for_good(
    archive: Orthanc, outgoing: list[Item], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM at all")
    bad = Item(broken, "1.2", "1.2.3.4", "1.2")
    refused, taken = send(at(f"{archive.url}/dicom-web"), [bad, outgoing[0]])
    assert isinstance(refused, DeliveryFailed) and refused.retry is Retry.NEVER
    assert isinstance(taken, Sent)


def test_orthanc_lets_in_who_has_the_password_and_a_wrong_one_is_the_administrators_matter(
    tmp_path: Path, outgoing: list[Item]
) -> None:
    users = {"AuthenticationEnabled": True, "RegisteredUsers": {"node": "right"}}
    secret = tmp_path / "secret"
    with orthanc(tmp_path, **dicomweb(), **users) as server:
        to = at(f"{server.url}/dicom-web", user="node", secret_file=str(secret))
        missing = send(to, outgoing)
        secret.write_text("wrong")
        wrong = send(to, outgoing)
        assert "HTTP status 401" in to.echo().detail
        secret.write_text("right\n")
        assert to.echo().reachable
        assert all(isinstance(fate, Sent) for fate in send(to, outgoing))
    assert {str(fate) for fate in missing} == {"its secret's file cannot be read"}
    assert isinstance(wrong[0], AccessDenied) and wrong[0].retry is Retry.LATER
    assert all(isinstance(fate, Untried) for fate in [*missing, *wrong[1:]])
    assert "wrong" not in str(wrong)


# -- a server that does as it is told ----------------------------------------------------------


def test_one_request_carries_one_file_as_it_is_in_order_on_one_connection(
    outgoing: list[Item],
) -> None:
    with Web() as web:
        assert all(isinstance(fate, Sent) for fate in send(at(web.url), outgoing))
        assert web.connections == 1
    assert [r.file for r in web.requests] == [item.path.read_bytes() for item in outgoing]
    assert {(r.method, r.path) for r in web.requests} == {("POST", "/dicom-web/studies")}
    for request in web.requests:
        headers = {name.lower(): value for name, value in request.headers.items()}
        assert headers["content-type"].startswith('multipart/related; type="application/dicom"; b')
        assert headers["content-length"] == str(len(request.body))
        assert headers["accept"] == "application/dicom+json"


def test_each_instance_has_the_fate_that_the_server_names(outgoing: list[Item]) -> None:
    uids = [item.sop_instance_uid for item in outgoing]
    answers = [
        stored(failed={uids[0]: 0xA700}, status=409),
        stored({uids[1]: 0xB000}, status=202),
        stored({"1.2.3": None}, {uids[2]: 0xA900}, status=202),
        stored({uids[3]: None}),
    ]
    with Web(answers) as web:
        full, warned, bad, good = send(at(web.url), outgoing)
    assert isinstance(full, Refused) and (full.status, full.retry) == (0xA700, Retry.LATER)
    assert isinstance(warned, Sent) and warned.status == 0xB000
    assert isinstance(bad, Refused) and (bad.status, bad.retry) == (0xA900, Retry.NEVER)
    assert good == Sent(0, outgoing[3].transfer_syntax)


def test_a_secret_comes_from_a_file_or_a_variable(
    outgoing: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "s3cret ü")
    secret = tmp_path / "secret"
    secret.write_text("s3cret ü\n", encoding="utf-8")
    with Web() as web:
        send(at(web.url, user="node", secret_file=str(secret)), outgoing[:1])
        send(at(web.url, user="node", secret_variable=VARIABLE), outgoing[:1])
        secret.write_text("tok.en-1")
        send(at(web.url, secret_file=str(secret)), outgoing[:1])
        send(at(web.url), outgoing[:1])
        for bad in ("", " \n", "two\nlines", "ü"):
            secret.write_text(bad, encoding="utf-8")
            fate = only(send(at(web.url, secret_file=str(secret)), outgoing[:1]))
            assert fate.reason == "its secret's file holds none that could be sent"
    basic = "Basic bm9kZTpzM2NyZXQgw7w="
    told = [request.headers.get("Authorization") for request in web.requests]
    assert told == [basic, basic, "Bearer tok.en-1", None]


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(outgoing: list[Item]) -> None:
    for status in (503, 429):
        with Web([Answer(status, b"<h1>Doe^John</h1>", {"Retry-After": "90"})]) as web:
            fates = send(at(web.url), outgoing)
            assert len(web.requests) == 1, "the rest is not even tried"
        assert [isinstance(fate, Untried) for fate in fates] == [False, True, True, True]
        for fate in fates:
            assert isinstance(fate, DestinationClosed)
            assert (fate.retry, fate.wait) == (Retry.LATER, 90)
            assert "Doe" not in str(fate)


def test_a_redirect_is_not_followed_neither_to_another_host_nor_home(
    outgoing: list[Item],
) -> None:
    with Web() as other:
        for status in (301, 302, 303, 307, 308):
            for place in (f"{other.url}/studies", "/dicom-web/studies"):
                with Web([Answer(status, b"", {"Location": place})]) as web:
                    fate = only(send(at(web.url), outgoing[:1]))
                    assert len(web.requests) == 1
                assert fate.retry is Retry.LATER and "redirect" in fate.reason
                assert str(other.port) not in fate.reason
        assert other.requests == []


def test_a_proxy_of_the_environment_gets_nothing(
    outgoing: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Web() as web, Web() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        send(at(web.url), outgoing[:1])
        assert (len(web.requests), len(proxy.requests)) == (1, 0)


@pytest.mark.parametrize("what", [Do.HANG, Do.NOT_READ, Do.DRIBBLE, Do.DRIBBLE_BODY])
def test_a_server_that_hangs_or_dribbles_is_given_up_in_time(
    outgoing: list[Item], tmp_path: Path, what: Do
) -> None:
    large = tmp_path / "large.dcm"
    with large.open("wb") as file:
        file.truncate(30 << 20)  # more than the buffers of the socket hold
    item = Item(large, "1.2", "1.2.3", "1.2")
    started = time.monotonic()
    with Web([what] * 3) as web:
        fates = send(at(web.url, timeout=0.7), [item if what is Do.NOT_READ else outgoing[0]] * 9)
        assert web.connections == 2, "two tell enough"
        told = at(web.url, timeout=0.7).echo()
    assert [str(fate) for fate in fates] == ["no answer in time"] * 9
    assert not told.reachable
    assert time.monotonic() - started < 20


def test_a_sending_that_trickles_is_given_up_however_steadily_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.destinations.dicomweb.SLOWEST", 1e9)
    large = tmp_path / "large.dcm"
    with large.open("wb") as file:
        file.truncate(30 << 20)
    started = time.monotonic()
    with Web([Do.TRICKLE]) as web:
        fate = only(send(at(web.url, timeout=3), [Item(large, "1.2", "1.2.3", "1.2")]))
    assert str(fate) == "no answer in time"
    assert time.monotonic() - started < 20, "to the end it would take 47 s"


@pytest.mark.parametrize("what", [Do.DROP, Do.NONSENSE])
def test_a_connection_that_is_cut_or_speaks_no_http_is_tried_later(
    outgoing: list[Item], what: Do
) -> None:
    with Web([what]) as web:
        fates = send(at(web.url), outgoing)
    first, *others = fates
    assert isinstance(first, DeliveryFailed) and first.retry is Retry.LATER
    assert str(first) == "connection lost, or the answer is not HTTP"
    assert all(isinstance(fate, Sent) for fate in others), "it alone may have been the reason"


def test_nobody_there_and_no_such_name_are_told(outgoing: list[Item]) -> None:
    fates = send(at(f"http://127.0.0.1:{free_port()}/dicom-web"), outgoing)
    assert {str(fate) for fate in fates} == {"connection: Connection refused"}
    fate = only(send(at("http://no-such-host.invalid/dicom-web"), outgoing[:1]))
    assert str(fate).startswith("address: ")


def test_an_answer_without_end_is_read_so_far_and_no_further(outgoing: list[Item]) -> None:
    with Web([Do.ENDLESS]) as web:
        tracemalloc.start()
        fate = only(send(at(web.url), outgoing[:1]))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert "nothing says that it was stored" in fate.reason
    assert peak < 8 * MAXIMUM_ANSWER


def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    large = tmp_path / "large.dcm"
    with large.open("wb") as file:
        file.truncate(64 << 20)
    taken = threading.Event()

    class Counting(Web):
        def _answer(self, handler):  # type: ignore[no-untyped-def] # as there
            left = int(handler.headers["Content-Length"])
            while left:
                left -= len(handler.rfile.read1(min(left, 1 << 16)))
            taken.set()
            answer = stored({"1.2.3": None})
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(answer.body)))
            handler.end_headers()
            handler.wfile.write(answer.body)

    with Counting() as web:
        tracemalloc.start()
        (fate,) = send(at(web.url, timeout=30), [Item(large, "1.2", "1.2.3", "1.2")])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert isinstance(fate, Sent) and taken.is_set()
    assert peak < 8 << 20


def test_a_file_that_is_gone_or_too_large_fails_alone(outgoing: list[Item], tmp_path: Path) -> None:
    gone = Item(tmp_path / "gone", "1.2", "1.2.3", "1.2")
    answers: list[Answer | Do] = [Answer(413)]
    with Web(answers) as web:
        missing, large, taken = send(at(web.url), [gone, *outgoing[:2]])
    assert str(missing) == "file cannot be read: No such file or directory"
    assert isinstance(large, DeliveryFailed) and large.retry is Retry.NEVER
    assert isinstance(taken, Sent)


def test_an_early_answer_counts_though_the_file_was_not_read(tmp_path: Path) -> None:
    large = tmp_path / "large.dcm"
    with large.open("wb") as file:
        file.truncate(16 << 20)

    class Hasty(Web):
        def _answer(self, handler):  # type: ignore[no-untyped-def] # as there
            handler.send_response(413)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            handler.wfile.flush()
            while handler.rfile.read1(1 << 16):  # as servers do that close properly
                pass

    with Hasty() as web:
        fate = only(send(at(web.url), [Item(large, "1.2", "1.2.3", "1.2")]))
    assert fate.reason == "HTTP status 413"


def test_an_echo_asks_for_nobodys_study_and_is_not_taken_in_by_a_web_page() -> None:
    page = Answer(200, b"<!DOCTYPE html><html>Welcome</html>", {"Content-Type": "text/html"})
    with Web([Answer(200, b"[]"), Answer(204), page, Answer(500), Do.HANG]) as web:
        told = [at(web.url, timeout=0.5).echo() for _ in range(5)]
    assert [echo.reachable for echo in told] == [True, True, False, False, False]
    assert {r.path for r in web.requests} == {"/dicom-web/studies?StudyInstanceUID=2.25.0&limit=1"}
    assert all(web.url in echo.detail for echo in told[2:])


def test_a_server_that_takes_no_queries_is_reachable_by_what_it_allows() -> None:
    allowing = Answer(200, b"", {"Allow": "OPTIONS, post"})
    with Web([Answer(405), allowing, Answer(404), Answer(404)]) as web:
        assert at(web.url).echo().reachable
        assert not at(web.url).echo().reachable
    assert [r.method for r in web.requests] == ["GET", "OPTIONS"] * 2


def test_only_an_answer_that_names_the_instance_confirms_it(outgoing: list[Item]) -> None:
    uids = [item.sop_instance_uid for item in outgoing]
    others = b'[{"00080018": {"vr": "UI", "Value": ["1.2.3"]}}]'
    named = others.replace(b"1.2.3", uids[1].encode())
    with Web([Answer(200, others), Answer(200, named), Answer(204), Answer(200, b"[]")]) as web:
        assert at(web.url).confirm(outgoing) == {uids[1]}
    for answer, kind, retry in (
        (Answer(503), DestinationClosed, Retry.LATER),
        (Do.DROP, DestinationClosed, Retry.LATER),
        (Answer(500), DeliveryFailed, Retry.LATER),
        (Answer(200, b"<html>"), DeliveryFailed, Retry.LATER),
        (Answer(404), DeliveryFailed, Retry.NEVER),
    ):
        with Web([answer]) as web, pytest.raises(DeliveryFailed) as told:
            at(web.url).confirm(outgoing)
        assert (type(told.value) is DeliveryFailed) == (kind is DeliveryFailed)
        assert told.value.retry is retry


def test_what_the_server_writes_reaches_no_log(
    outgoing: list[Item], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    logging.basicConfig(level=logging.DEBUG, force=True)
    configure(LogSettings(level="debug"), "test")
    headers = {"Content-Length": "0", "X-Patient": "Doe^John", "Location": "/Doe^John"}
    with Web([Answer(200, b"Doe^John"), Answer(302, b"", headers)]) as web:
        send(at(web.url, secret_file=str(secret)), outgoing)
    logging.basicConfig(level=logging.WARNING, force=True)
    said = "".join(capfd.readouterr())
    assert "Doe" not in said and "s3cret" not in said


# -- TLS ---------------------------------------------------------------------------------------


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    paths = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    command = [
        need("openssl"),
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]
    command += [
        "-nodes",
        "-days",
        "2",
        "-subj",
        f"/CN={name}",
        "-out",
        paths[0],
        "-keyout",
        paths[1],
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return paths


def test_over_tls_both_sides_are_who_they_say(tmp_path: Path, outgoing: list[Item]) -> None:
    server, ours, strange = (certificate(tmp_path, name) for name in ("server", "ours", "strange"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*server)
    context.load_verify_locations(ours[0])
    context.verify_mode = ssl.CERT_REQUIRED
    with Web(context=context) as web:
        good = at(web.url, ca_file=server[0], certificate=ours[0], key=ours[1])
        assert all(isinstance(fate, Sent) for fate in send(good, outgoing))
        assert good.echo().reachable
        for options, fault in (
            (
                {"ca_file": strange[0], "certificate": ours[0], "key": ours[1]},
                "certificate refused",
            ),
            ({"certificate": ours[0], "key": ours[1]}, "certificate refused"),
            ({"ca_file": server[0]}, "certificate"),
            ({"ca_file": server[0], "certificate": strange[0], "key": strange[1]}, "certificate"),
            ({"ca_file": server[0], "certificate": ours[0], "key": strange[1]}, "cannot be used"),
            ({"ca_file": str(tmp_path / "none")}, "cannot be used"),
        ):
            fate = only(send(at(web.url, **options), outgoing[:1]))
            assert fate.retry is Retry.LATER
            assert fault in fate.reason.lower().replace("_", " ")
        name = web.url.replace("127.0.0.1", "localhost")
        fate = only(send(at(name, ca_file=server[0]), outgoing[:1]))
        assert "ostname mismatch" in fate.reason


def test_what_is_older_than_tls_1_2_is_not_spoken(tmp_path: Path, outgoing: list[Item]) -> None:
    server = certificate(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*server)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with Web(context=context) as web:
        fate = only(send(at(web.url, ca_file=server[0]), outgoing[:1]))
    assert fate.reason.startswith("TLS: ")
