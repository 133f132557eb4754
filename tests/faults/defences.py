"""Takes the node's defences out, one at a time, and shows that the test of their row goes red.

    python -m tests.faults.defences [--row 1 --row 27] [--list]          (make defences)

A defence is a piece of source text and what stands in its place when it is out; the test's
processes and those of its node import the altered module (``without/sitecustomize.py``). A text
that is no longer in the source is told as such: then the defence moved, and its line here must.

To add one: ``Defence(row, "what is out", test, module, old, new)`` in `DEFENCES`, or in a list
``DEFENCES`` of any file ``tests/faults/defences_*.py``, where the table finds it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PATIENCE = 300
"""Seconds for one test without its defence; what hangs without it is red too."""


@dataclass(frozen=True)
class Defence:
    """One of them.

    Attributes:
        row: of the matrix.
        out: what the node is without, in words.
        test: the test that must go red, as ``folder/file.py::name`` below ``tests``.
        module: whose source is altered.
        old: a text that stands in it exactly once.
        new: what stands there instead.
        more: further modules with their old and new texts, where one alone would not do.
    """

    row: int
    out: str
    test: str
    module: str
    old: str
    new: str
    more: tuple[tuple[str, str, str], ...] = ()

    @property
    def alterations(self) -> list[tuple[str, str, str]]:
        return [(self.module, self.old, self.new), *self.more]

    def fits(self) -> bool:
        """Whether its texts are still in the source, once."""
        return all(source_of(module).count(old) == 1 for module, old, _ in self.alterations)


def source_of(module: str) -> str:
    """A module's source; empty where there is none by that name."""
    place = ROOT.joinpath(*module.split("."))
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return path.read_text() if path.is_file() else ""


_INGEST, _WIRE = "faults/test_rows_ingest.py::test_row_", "faults/test_rows_wire.py::test_row_"
_STUDIES = "faults/test_rows_studies.py::test_row_"
_FILES, _RECEIVE = "dicom_node.store.files", "dicom_node.services.receive"
_ENTER, _STORAGE = "dicom_node.services.enter", "dicom_node.listener.storage"
_TRANSPORT, _ACCEPTOR = "dicom_node.dimse.transport", "dicom_node.dimse.acceptor"
_MESSAGES, _HEADERS = "dicom_node.dimse.messages", "dicom_node.services.headers"
_SERVER = "dicom_node.listener.server"
_CONNECTIONS, _COMPLETE = "dicom_node.listener.connections", "dicom_node.services.complete"

DEFENCES = [
    Defence(
        1,
        "the answer waits for the commit",
        _INGEST + "01_what_was_acknowledged_survives_a_kill_at_each_step",
        _STORAGE,
        "                self._intake.finish()",
        '                __import__("threading").Thread(target=self._intake.finish).start()',
    ),
    Defence(
        1,
        "the file is there before the row",
        _INGEST + "01_what_was_acknowledged_survives_a_kill_at_each_step",
        _FILES,
        "                self._path.rename(final)",
        "                pass",
    ),
    Defence(
        1,
        "temporary files of the dead are swept",
        _INGEST + "01_what_was_acknowledged_survives_a_kill_at_each_step",
        _FILES,
        "                path.unlink(missing_ok=True)\n                removed += 1",
        "                removed += 1",
    ),
    Defence(
        2,
        "fsync of the file",
        _INGEST + "02_file_directory_and_row_are_on_disk_before_the_answer_is_sent",
        _FILES,
        "                os.fsync(self._open.fileno())",
        "                pass",
    ),
    Defence(
        2,
        "fsync of the directory",
        _INGEST + "02_file_directory_and_row_are_on_disk_before_the_answer_is_sent",
        _FILES,
        "                _sync_directory(final.parent)",
        "                pass",
    ),
    Defence(
        2,
        "SQLite syncs every commit",
        _INGEST + "02_file_directory_and_row_are_on_disk_before_the_answer_is_sent",
        "dicom_node.store.database",
        '"synchronous=FULL"',
        '"synchronous=NORMAL"',
    ),
    Defence(
        3,
        "a failed fsync is an error",
        _INGEST + "03_an_fsync_that_fails_is_answered_0xa700_and_never_trusted[file]",
        _FILES,
        "                os.fsync(self._open.fileno())",
        "                with suppress(OSError): os.fsync(self._open.fileno())",
    ),
    Defence(
        3,
        "a failed fsync of the directory is an error",
        _INGEST + "03_an_fsync_that_fails_is_answered_0xa700_and_never_trusted[directory]",
        _FILES,
        "                _sync_directory(final.parent)",
        "                with suppress(OSError): _sync_directory(final.parent)",
    ),
    Defence(
        4,
        "the reserve is looked at while a file grows",
        _INGEST + "04_the_reserve_is_left_alone_by_what_is_larger_than_what_is_free",
        _FILES,
        "                self._folder.look()",
        "                pass",
    ),
    Defence(
        4,
        "a full disk is 0xA700, not a fault of ours",
        _INGEST + "04_a_full_disk_is_answered_0xa700_and_the_association_lives_on",
        _FILES,
        "            full = OutOfSpace if error.errno in _FULL else Unavailable",
        "            raise KeyError('x') from error",
    ),
    Defence(
        5,
        "a file stays while its commit is in doubt",
        _INGEST + "05_the_file_stays_while_the_outcome_of_the_commit_is_unknown",
        _RECEIVE,
        "    except CommitUnknown:\n        raise\n",
        "",
    ),
    Defence(
        5,
        "a file goes when the rollback is certain",
        _INGEST + "05_a_full_database_is_answered_0xa700_and_the_file_goes",
        _RECEIVE,
        "        node.instances.remove(stored.name)\n        raise",
        "        raise",
    ),
    Defence(
        6,
        "what breaks off is dropped",
        _INGEST + "06_a_peer_that_aborts_inside_a_c_store_leaves_nothing",
        _ACCEPTOR,
        "            self._assembly.drop()",
        "            pass",
    ),
    Defence(
        7,
        "what is held is looked for",
        _INGEST + "07_a_sender_lost_before_the_answer_finds_its_instance_stored_once",
        _RECEIVE,
        "        if not known.held:",
        "        if True:",
        (
            (
                _ENTER,
                "                if connection.scalar(_THERE, named) is not None:",
                "                if False:",
            ),
        ),
    ),
    Defence(
        8,
        "who comes second looks at what the first stored",
        _INGEST + "08_an_instance_a_hundred_times_at_once_is_one_row_and_one_job",
        _RECEIVE,
        "            node.instances.remove(stored.name)  # another association was first",
        "            raise KeyError('x')",
    ),
    Defence(
        9,
        "other content under a known UID is seen",
        _INGEST + "09_the_same_uid_with_other_content_goes_to_quarantine",
        _RECEIVE,
        "        if known.sha256 == digest:",
        "        if True:",
    ),
    Defence(
        10,
        "a PDU may not declare what it likes",
        _WIRE + "10_who_holds_up_the_listener_is_cut_off_and_nobody_waits_for_him[four gibibytes]",
        _ACCEPTOR,
        "        if length > self._cap:",
        "        if False:",
    ),
    Defence(
        10,
        "the request has a deadline",
        _WIRE + "10_who_holds_up_the_listener_is_cut_off_and_nobody_waits_for_him[partial headers]",
        _CONNECTIONS,
        "read_request(client.sock, deadline - time.monotonic())",
        "read_request(client.sock, 3600)",
    ),
    Defence(
        10,
        "a whole request counts, not its next byte",
        _WIRE
        + "10_who_holds_up_the_listener_is_cut_off_and_nobody_waits_for_him[a byte now and then]",
        _TRANSPORT,
        "        left = deadline - time.monotonic()\n        if left <= 0:",
        "        left = 1.5\n        if left <= 0:",
    ),
    Defence(
        10,
        "fragments without end have one",
        _WIRE
        + "10_who_holds_up_the_listener_is_cut_off_and_nobody_waits_for_him[endless fragments]",
        _MESSAGES,
        "        if len(self._command) + len(piece) > COMMAND_CAP:",
        "        if False:",
        ((_STORAGE, "        if self._size > 2 * self._limit:", "        if False:"),),
    ),
    Defence(
        10,
        "a message that has begun gets on",
        _WIRE
        + "10_who_holds_up_the_listener_is_cut_off_and_nobody_waits_for_him"
        + "[fragments now and then]",
        _ACCEPTOR,
        "        slow = self._taken / SLOWEST - self._waited",
        "        slow = 0.0",
    ),
    Defence(
        11,
        "an exception of the decoder ends one association",
        _WIRE + "11_mutated_pdus_and_data_sets_end_no_thread[2000]",
        _ACCEPTOR,
        "        except Exception as error:  # pynetdicom's decoder raises whatever the bytes lead"
        " it to",
        "        except ZeroDivisionError as error:",
        (
            (
                _ACCEPTOR,
                "        except Exception as error:  # pynetdicom negotiates whatever the request"
                " leads it to",
                "        except ZeroDivisionError as error:",
            ),
            (
                _ACCEPTOR,
                "        except Exception as error:  # whatever the bytes lead it to",
                "        except ZeroDivisionError as error:",
            ),
            (
                _ACCEPTOR,
                "            except Exception as error:\n                log.error(",
                "            except ZeroDivisionError as error:\n                log.error(",
            ),
        ),
    ),
    Defence(
        12,
        "inflation has a cap",
        _WIRE + "12_a_data_set_that_inflates_without_end_is_refused",
        _HEADERS,
        "inflater.decompress(data, MAXIMUM_INFLATED)",
        "inflater.decompress(data)",
    ),
    Defence(
        12,
        "elements have a cap",
        _WIRE + "12_items_that_nobody_asks_for_cost_nobody_time_or_memory[more]",
        _HEADERS,
        "        self.budget = iter(range(MAXIMUM_ELEMENTS))",
        "        self.budget = iter(range(1 << 40))",
    ),
    Defence(
        12,
        "what nobody asks for is not parsed",
        _WIRE + "12_items_that_nobody_asks_for_cost_nobody_time_or_memory[as many as may be]",
        _HEADERS,
        "read_dataset(BytesIO(_only(walk, top)), walk.implicit, True)",
        "read_dataset(BytesIO(bytes(walk.data)), walk.implicit, True)",
    ),
    Defence(
        12,
        "messages are measured before they are parsed",
        _WIRE + "12_a_message_of_items_without_end_is_refused",
        "dicom_node.listener.measured",
        "                size = measure(",
        "                size = 0 and measure(",
    ),
    Defence(
        12,
        "nesting has a cap",
        _WIRE + "12_what_is_nested_beyond_reason_is_refused",
        _HEADERS,
        "    if depth > MAXIMUM_DEPTH:",
        "    if False:",
    ),
    Defence(
        12,
        "a UID is looked at",
        _WIRE + "12_a_uid_that_is_no_uid_leads_nowhere",
        _HEADERS,
        "        if len(value) > 64 or not UID_FORM.fullmatch(value):",
        "        if False:",
    ),
    Defence(
        13,
        "a title is bound to its address",
        _WIRE + "13_who_does_not_belong_is_rejected_and_leaves_no_row",
        "dicom_node.services.admission",
        "    if row.addresses and not any(",
        "    if False and not any(",
    ),
    Defence(
        13,
        "the called title must be ours",
        _WIRE + "13_who_does_not_belong_is_rejected_and_leaves_no_row",
        _SERVER,
        "        if called != self._settings.ae_title:",
        "        if False:",
    ),
    Defence(
        26,
        "a study waits for open associations",
        _STUDIES + "26_a_study_split_over_associations_is_one_revision_and_one_job",
        _COMPLETE,
        "        sending=sending,",
        "        sending=0,",
    ),
    Defence(
        26,
        "a new report names its predecessor",
        _STUDIES + "26_a_late_image_makes_a_new_revision_and_a_report_that_supersedes",
        _COMPLETE,
        "    job.predecessor_id = finished[0].id if finished else None",
        "    job.predecessor_id = None",
    ),
    Defence(
        28,
        "SIGTERM lets the work be finished",
        "faults/test_shutdown.py::test_row_28_a_node_told_to_stop_drains_and_goes_on_where_it_was",
        "dicom_node.cli.supervise",
        "    child.signal(signal.SIGTERM)\n",
        "    child.signal(signal.SIGKILL)\n",
    ),
    Defence(
        29,
        "a migration is one transaction",
        "faults/test_rows_migration.py::test_row_29_a_kill_in_a_migration_leaves_the_old_schema_or_the_new",
        "dicom_node.store.database",
        '    event.listen(engine, "begin", _begin_sqlite)',
        "    pass",
    ),
    Defence(
        31,
        "our own results are known when they come back",
        _STUDIES + "31_a_pacs_that_forwards_everything_back_makes_no_new_job",
        _ENTER,
        "        return why_ignored(self.facts.sop_class, self.facts.modality, self.own)",
        "        return ''",
    ),
    Defence(
        32,
        "listeners share one socket",
        "faults/test_shutdown.py::test_row_32_the_other_listener_takes_every_connection[frozen]",
        _CONNECTIONS,
        "        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)",
        "        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)",
        (
            (
                _SERVER,
                "socket.socket(fileno=descriptor) if descriptor is not None else None",
                "None",
            ),
        ),
    ),
]


def every() -> list[Defence]:
    """Those above and those of the files beside this one, by row."""
    found = list(DEFENCES)
    for path in sorted(HERE.glob("defences_*.py")):
        found += importlib.import_module(f"tests.faults.{path.stem}").DEFENCES
    return sorted(found, key=lambda defence: defence.row)


def without(defence: Defence) -> tuple[str, str, float]:
    """Run its test without it: the verdict, what pytest said last, seconds."""
    if not defence.fits():
        return "does not fit", f"its text is not in {defence.module} exactly once", 0.0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        alterations = Path(folder) / "alterations.json"
        alterations.write_text(json.dumps(defence.alterations))
        path = os.pathsep.join([str(HERE / "without"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "WITHOUT": str(alterations), "PYTHONPATH": path}
        options = ["-x", "-p", "no:cacheprovider", "--tb=line", f"--timeout={PATIENCE}"]
        options.append(f"--basetemp={folder}/tests")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, f"tests/{defence.test}"],
            cwd=ROOT,
            env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    # The last are "FAILED file::test"; before it pytest says "file:line: error", by --tb=line.
    said = [
        line.removeprefix(f"{ROOT}/")
        for line in done.stdout.splitlines()
        if re.match(r"(FAILED|ERROR|/.*:\d+: )", line)
    ]
    said.sort(key=lambda line: not line.startswith(("FAILED", "ERROR")))
    last = (said or done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]
    verdict = {0: "GREEN", 1: "red"}.get(done.returncode, f"pytest ended with {done.returncode}")
    if verdict == "red" and not any(line.startswith("FAILED") for line in said):
        verdict = "not run"  # what it stands on failed, which shows nothing
    if done.returncode == 0 and "skipped" in done.stdout.splitlines()[-1]:
        verdict = "skipped"
    return verdict, last, time.monotonic() - started


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", type=int, action="append", help="only this row; again for more")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    given = parser.parse_args(arguments)
    chosen = [d for d in every() if not given.row or d.row in given.row]
    table = Table("row", "without", "its test is", "s", "because", title="Defences taken out")
    wrong = 0
    for number, defence in enumerate(chosen, 1):
        if given.list:
            verdict, why, seconds = "fits" if defence.fits() else "does not fit", defence.test, 0.0
        else:
            print(
                f"{number} of {len(chosen)}: row {defence.row}, without: {defence.out}", flush=True
            )
            verdict, why, seconds = without(defence)
            print(f"    {verdict} in {seconds:.0f} s", flush=True)
        good = verdict in ("red", "fits")
        wrong += not good
        colour = "red" if good and not given.list else "green" if good else "bold magenta"
        told = f"[{colour}]{verdict}{'' if good else ' (!)'}[/]"
        table.add_row(
            str(defence.row), defence.out, told, f"{seconds:.0f}", why.replace("[", "\\[")
        )
    Console(width=None if sys.stdout.isatty() else 200, emoji=False).print(table)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
