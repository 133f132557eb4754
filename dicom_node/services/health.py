"""Owns two questions: is everything that the node needs in order, and how does it stand now.

Looks, and mends nothing. What loads torch runs in a child process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from dicom_node.audit.syslog import tls_context
from dicom_node.destinations.dimse import DimseDestination
from dicom_node.dimse.tls import Validity, server_context, validities
from dicom_node.domain.delivery import DeliveryState
from dicom_node.domain.job import JobState
from dicom_node.domain.model import ModelState
from dicom_node.errors import ConfigurationError, Unavailable
from dicom_node.services import audit, peers
from dicom_node.services.alerts import list_alerts
from dicom_node.services.canaries import list_queues
from dicom_node.services.context import Node
from dicom_node.services.models import bundle_folder, open_trusted, verify
from dicom_node.services.processes import alive
from dicom_node.services.registry import list_destinations, list_modalities, rules_in_force
from dicom_node.services.trust import UntrustedBundle
from dicom_node.settings import CONFIG_VARIABLE, Settings
from dicom_node.store.database import Database
from dicom_node.store.migrate import current, head
from dicom_node.store.tables import Association, Delivery, Job, Model, Process, Study
from inference.errors import BundleError

ROLES = ("listener", "scheduler", "worker")
_DEVICE = (
    "import json, torch; c = torch.cuda.is_available(); "
    "print(json.dumps({'torch': torch.__version__, "
    "'devices': [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] "
    "if c else []}))"
)
_SHOWN_ALERTS = 10


class Level(StrEnum):
    """How much a check asks of the administrator."""

    OK = "ok"
    WARNING = "warning"  # it works, or it was not to work yet
    FAULT = "fault"  # something that should work does not


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what to do about it (empty where it is in order)."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def examine(settings: Settings, now: Callable[[], datetime], deep: bool = False) -> Iterator[Check]:
    """Look at everything, in the order in which one thing needs the other.

    Args:
        settings: of the node.
        now: the clock.
        deep: run every model's golden example, too.
    """
    yield from _configuration(settings)
    yield from _tls(settings, now())
    yield from _disk(settings)
    yield from _device(settings)
    node = None
    for check in _database(settings):
        yield check
        if check.level is Level.OK:
            node = Node.open(settings, "doctor", now)
    if node is None:
        skipped = "not looked at: it needs the database"
        yield Check("the rest", Level.WARNING, skipped)
        return
    processes = list(_processes(node))
    yield from processes
    runs = bool(alive(node))
    yield _broker(settings, runs)
    yield from _queues(node)
    yield from _models(node, deep)
    yield from _entered(node)
    yield from _destinations(node)
    yield from _deliveries(node)
    yield from _listener(node, runs)
    yield from _audit(node, deep)
    yield from _alerts(node)


def status(node: Node) -> dict[str, Any]:
    """How the node stands: processes, queues, associations, studies, jobs, deliveries, alerts."""
    now = node.now()
    with node.database.reading() as session:

        def counted(column: Any) -> dict[str, int]:
            query = select(column, func.count()).group_by(column).order_by(column)
            return {row[0]: row[1] for row in session.execute(query)}

        waiting = select(func.min(Job.created_at)).where(Job.state == JobState.READY)
        unsent = select(func.min(Delivery.created_at)).where(
            Delivery.state == DeliveryState.PENDING
        )
        models = session.scalars(
            select(Model)
            .where(Model.state.in_((ModelState.ACTIVE, ModelState.SHADOW)))
            .order_by(Model.name)
        )
        told = {
            "at": now,
            "processes": [],
            "associations": session.scalar(
                select(func.count(Association.id)).where(Association.closed_at.is_(None))
            ),
            "studies": counted(Study.state),
            "jobs": counted(Job.state),
            "oldest_ready_job": session.scalar(waiting),
            "deliveries": counted(Delivery.state),
            "oldest_pending_delivery": session.scalar(unsent),
            "models": [
                {"model": f"{row.name}@{row.version}", "state": row.state} for row in models
            ],
        }
    told["processes"] = [
        {
            "role": process.role,
            "host": process.host.split()[0],
            "pid": process.pid,
            "started_at": process.started_at,
            "beat_at": process.beat_at,
            "beating": _beats(node, process),
        }
        for process in sorted(alive(node), key=lambda process: process.role)
    ]
    told["audit"] = audit.standing(node)
    told["queues"] = list_queues(node)
    told["alerts"] = list_alerts(node)
    told["certificates"] = _certificates(node)
    return told


def _certificates(node: Node) -> list[dict[str, Any]]:
    """How long the files of TLS still hold; one that cannot be used tells why."""
    if not node.settings.tls.configured:
        return []
    try:
        found = validities(node.settings.tls)
    except ConfigurationError as error:
        return [{"setting": "tls", "what": str(error), "ends": None, "renew": True}]
    return [
        {"setting": v.setting, "what": v.what, "ends": v.ends, "renew": _ends_soon(v, node.now())}
        for v in found
    ]


def _beats(node: Node, process: Process) -> bool:
    return node.now() - process.beat_at < timedelta(seconds=node.settings.worker.lease)


def _configuration(settings: Settings) -> Iterator[Check]:
    name, file = "configuration", os.environ.get(CONFIG_VARIABLE)
    if not file:
        remedy = "`dicom-node init` writes a file with every setting explained"
        yield Check(name, Level.WARNING, "no file: defaults and environment only", remedy)
    else:
        yield Check(name, Level.OK, file)
        if Path(file).stat().st_mode & 0o077:
            found = "others may read the file, which may hold a password"
            yield Check(name, Level.WARNING, found, f"chmod 600 {file}")
    if not settings.node_salt:
        found = "node_salt is empty: two such nodes would give their results the same UIDs"
        yield Check(name, Level.WARNING, found, "`dicom-node init` draws one")


def _tls(settings: Settings, now: datetime) -> Iterator[Check]:
    name, tls = "certificates", settings.tls
    if not tls.configured:
        return
    try:
        server_context(tls)
        found = validities(tls)
    except ConfigurationError as error:
        yield Check(name, Level.FAULT, str(error), "mend the file; TLS cannot work until then")
        return
    for validity in found:
        of, ends = f"{validity.setting} ({validity.what})", validity.ends
        if validity.begins > now:
            remedy = "see to the clock, or to the file"
            yield Check(name, Level.FAULT, f"{of} holds from {validity.begins:%Y-%m-%d}", remedy)
        elif ends is not None and ends <= now:
            yield Check(name, Level.FAULT, f"{of} ended on {ends:%Y-%m-%d}", _RENEW)
        elif _ends_soon(validity, now):
            yield Check(name, Level.WARNING, f"{of} ends on {ends:%Y-%m-%d}", _RENEW)
        else:
            until = f"until {ends:%Y-%m-%d}" if ends else "without an end"
            yield Check(name, Level.OK, f"{of} holds {until}")
    # A group may read it: that is how Debian's ssl-cert hands keys to services.
    if Path(tls.key).stat().st_mode & 0o037:
        found_ = f"others than the node's user and group may use tls.key {tls.key}"
        yield Check(name, Level.WARNING, found_, f"chmod 600 {tls.key}, and consider a new key")


_RENEW = "put a new file in its place; the listener takes it by itself"


def _ends_soon(validity: Validity, now: datetime) -> bool:
    """Certificates within 30 days; revocation lists come by the week: within a day."""
    if validity.ends is None:
        return False
    return validity.ends - now < timedelta(days=1 if validity.setting == "tls.crl" else 30)


def _disk(settings: Settings) -> Iterator[Check]:
    folder, reserve = settings.storage.folder, settings.listener.reserve_mb << 20
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        free = shutil.disk_usage(there).free
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield Check("disk", Level.FAULT, f"{there}: {error.strerror}", "see to the folder's rights")
        return
    found = f"{folder}: {free / 2**30:.1f} GiB free, {reserve >> 20} MiB kept in reserve"
    remedy = "make room, or move storage.folder to a larger disk"
    if free < reserve:
        yield Check("disk", Level.FAULT, f"{found}: nothing is taken in", remedy)
    elif free < 4 * reserve:
        yield Check("disk", Level.WARNING, found, remedy)
    else:
        yield Check("disk", Level.OK, found)


def _device(settings: Settings) -> Iterator[Check]:
    command = [sys.executable, "-c", _DEVICE]
    try:
        child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        told = json.loads(child.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
        found = f"torch cannot be loaded: {lines[-1] if lines else type(error).__name__}"
        yield Check("device", Level.FAULT, found, "install the package's dependencies again")
        return
    wanted, devices = settings.worker.device, told["devices"]
    place = f"CUDA: {', '.join(devices)}" if devices else "CPU, no CUDA device"
    found = f"torch {told['torch']}, {place}"
    number = int(wanted.partition(":")[2] or 0)
    if wanted.startswith("cuda") and number >= len(devices):
        remedy = "see to the driver (`nvidia-smi`), or set worker.device"
        yield Check("device", Level.FAULT, f"{found}; worker.device is {wanted}", remedy)
    else:
        yield Check("device", Level.OK, found)


def _database(settings: Settings) -> Iterator[Check]:
    url = settings.database_url
    shown = url.partition("://")[0] + "://…@" + url.rpartition("@")[2] if "@" in url else url
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        remedy = "`dicom-node db upgrade` makes it, and so does `dicom-node up`"
        yield Check("database", Level.FAULT, f"{shown}: there is none yet", remedy)
        return
    try:
        database = Database(url)
        found = current(database)
    except Unavailable as error:
        yield Check("database", Level.FAULT, f"{shown}: {error}", "see to the server or the disk")
        return
    if found != head():
        text = f"{shown}: at revision {found or 'none'}, this version needs {head()}"
        yield Check("database", Level.FAULT, text, "`dicom-node db upgrade`")
        return
    yield Check("database", Level.OK, f"{shown}, revision {found}")


def _broker(settings: Settings, runs: bool) -> Check:
    from kombu.exceptions import OperationalError

    from dicom_node.services.dispatch import Nudger

    own = not settings.broker.url
    where = "the node's own Redis" if own else f"Redis at {settings.broker.url.rpartition('@')[2]}"
    try:
        waiting = sum(Nudger(settings).waiting().values())
    except (OperationalError, OSError):
        if own and not runs:
            return Check("broker", Level.WARNING, f"{where} does not run", "`dicom-node up`")
        remedy = "work waits in the database, safe; " + (
            "`dicom-node up` restarts it" if own else "see to Redis or to broker.url"
        )
        return Check("broker", Level.FAULT, f"{where} does not answer", remedy)
    return Check("broker", Level.OK, f"{where} answers; {waiting} nudges wait")


def _models(node: Node, deep: bool) -> Iterator[Check]:
    with node.database.reading() as session:
        rows = session.scalars(
            select(Model).where(Model.state != ModelState.RETIRED).order_by(Model.name)
        ).all()
    if not any(row.state == ModelState.ACTIVE for row in rows):
        remedy = "`dicom-node models add BUNDLE --activate`"
        yield Check("models", Level.WARNING, "none is active: nothing is analysed", remedy)
    for row in rows:
        title, folder = f"{row.name}@{row.version}", bundle_folder(node, row.digest)
        try:
            how = f"files whole, {open_trusted(node, row.digest)[1].words}"
            if deep:
                (checked,) = verify([folder])
                how += f", golden example differs by {checked['golden_difference']:.1e}"
        except UntrustedBundle as error:
            remedy = "have it signed and added again, or `dicom-node models retire` it"
            yield Check("models", Level.FAULT, f"{title} ({row.state}): {error}", remedy)
        except BundleError as error:
            remedy = "`dicom-node models add` its bundle again"
            yield Check("models", Level.FAULT, f"{title} ({row.state}): {error}", remedy)
        else:
            yield Check("models", Level.OK, f"{title} ({row.state}): {how}")


def _entered(node: Node) -> Iterator[Check]:
    """What an administrator has to enter before anything can happen."""
    modalities = list_modalities(node)
    if modalities:
        titles = ", ".join(row["ae_title"] for row in modalities)
        yield Check("modalities", Level.OK, f"may send: {titles}")
    else:
        remedy = "`dicom-node modalities add AE --address NETWORK`"
        yield Check("modalities", Level.WARNING, "none: every sender is rejected", remedy)
    with node.database.reading() as session:
        rules = rules_in_force(session)
        rows = session.scalars(
            select(Model).where(Model.state.in_((ModelState.ACTIVE, ModelState.SHADOW)))
        ).all()
    if not rules:
        remedy = "`dicom-node routes apply FILE`"
        yield Check("rules", Level.WARNING, "none in force: nothing is analysed", remedy)
        return
    running = {row.name for row in rows} | {f"{row.name}@{row.version}" for row in rows}
    idle = sorted({m for r in rules if r.enabled for m in r.models if m not in running})
    if idle:
        found = f"rules name {', '.join(idle)}, of which no version is active"
        yield Check("rules", Level.WARNING, found, "`dicom-node models activate NAME`")
    else:
        yield Check("rules", Level.OK, f"{len(rules)} in force")


def _destinations(node: Node) -> Iterator[Check]:
    names = [row["name"] for row in list_destinations(node)]
    if not names:
        remedy = "`dicom-node destinations add NAME --ae-title AE --host HOST --port PORT`"
        yield Check("destinations", Level.WARNING, "none: results go nowhere", remedy)
        return

    def look(name: str) -> Check:
        try:
            seconds = peers.echo(peers.named(node, name))
        except Unavailable as error:
            remedy = "results wait and go when it is back; see to the peer, or to its entry"
            return Check("destinations", Level.FAULT, f"{name}: {error}", remedy)
        return Check("destinations", Level.OK, f"{name}: answers in {seconds * 1000:.0f} ms")

    with ThreadPoolExecutor(8) as threads:  # one that hangs must not keep the others waiting
        yield from threads.map(look, names)


def _deliveries(node: Node) -> Iterator[Check]:
    """Those that need somebody: nothing says that the destination holds them, or they are dead."""
    needy = (DeliveryState.UNCONFIRMED, DeliveryState.DEAD)
    query = (
        select(Delivery.state, func.count())
        .where(Delivery.state.in_(needy))
        .group_by(Delivery.state)
        .order_by(Delivery.state)
    )
    with node.database.reading() as session:
        counts = session.execute(query).all()
    for state, count in counts:
        remedy = f"`dicom-node deliveries list --state {state}` tells which, and why"
        yield Check("deliveries", Level.WARNING, f"{count} {state}", remedy)


def _listener(node: Node, runs: bool) -> Iterator[Check]:
    for port in sorted(node.settings.tls.ports):
        try:
            yield _door(peers.own_listener(node, tls=port == "tls"), runs)
        except ConfigurationError as error:
            yield Check("listener", Level.FAULT, str(error), "mend the file")


def _door(own: DimseDestination, runs: bool) -> Check:
    answer = own.echo()
    where = f"{own.host}:{own.port}/{own.ae_title}{' by TLS' if own.tls else ''}"
    if answer.reachable:
        return Check("listener", Level.OK, f"{where} answers in {answer.seconds * 1000:.0f} ms")
    if "(1,1,3)" in answer.detail:
        return Check("listener", Level.OK, f"{where} answers; nobody may send from this machine")
    if answer.detail.startswith("TLS: "):
        # It may be meant for modalities of another CA, or not for a client.
        found = f"{where} does not take the node's own certificate: {answer.detail}"
        remedy = "let the certificate be for serverAuth and clientAuth, of the CA in tls.ca"
        return Check("listener", Level.WARNING, found, remedy)
    if not runs and "(" not in answer.detail:
        return Check("listener", Level.WARNING, f"{where} does not run", "`dicom-node up`")
    return Check("listener", Level.FAULT, peers.explained(answer.detail, own), "see its log")


def _audit(node: Node, deep: bool) -> Iterator[Check]:
    chosen, folder = node.settings.audit, node.audit.trail.folder
    if not chosen.enabled:
        yield Check("audit", Level.WARNING, "switched off", "audit.enabled")
        return
    try:
        told = audit.standing(node)
        if chosen.receiver:
            tls_context(chosen)
    except (Unavailable, ConfigurationError) as error:
        yield Check("audit", Level.FAULT, str(error), "see to the folder, or the certificates")
        return
    found = f"{folder}: {told['records']} records"
    if folder.exists() and folder.stat().st_mode & 0o077:
        yield Check("audit", Level.WARNING, f"others may look into {folder}", f"chmod 700 {folder}")
    if told["receiver"] and told["fault"]:
        text = f"{found}, {told['waiting']} wait: {told['fault']}"
        yield Check("audit", Level.FAULT, text, "none is lost; `dicom-node audit ship` tries again")
    elif told["receiver"]:
        yield Check("audit", Level.OK, f"{found}, {told['waiting']} to be shipped")
    else:
        yield Check("audit", Level.OK, f"{found}, kept here only")
    if deep and (faults := node.audit.trail.verify().faults):
        remedy = "`dicom-node audit verify` tells all; compare with what the receiver has"
        yield Check("audit", Level.FAULT, f"{len(faults)} breaks in the chain: {faults[0]}", remedy)


def _processes(node: Node) -> Iterator[Check]:
    rows = alive(node)
    if not rows:
        yield Check("processes", Level.WARNING, "none is running", "`dicom-node up`")
        return
    beating = [row for row in rows if _beats(node, row)]
    for row in rows:
        if row not in beating:
            silent = (node.now() - row.beat_at).total_seconds()
            found = (
                f"{row.role} {row.pid} on {row.host.split()[0]}: no heartbeat for {silent:.0f} s"
            )
            yield Check("processes", Level.FAULT, found, "look whether it hangs; `dicom-node up`")
    for role in ROLES:
        count = sum(row.role == role for row in beating)
        if count:
            yield Check("processes", Level.OK, f"{role}: {count} alive")
        else:
            yield Check("processes", Level.FAULT, f"{role}: none alive", "`dicom-node up`")


def _queues(node: Node) -> Iterator[Check]:
    for row in list_queues(node):
        name, at = row["queue"], row["answered_at"]
        if row["late"]:
            found = f"{name}: nobody takes tasks from it"
            remedy = f"start or restart a worker: `dicom-node worker --queues {name}`"
            yield Check("queues", Level.FAULT, found, remedy)
        elif at is None:
            yield Check("queues", Level.OK, f"{name}: no worker so far, and no work")
        else:
            ago = max(0.0, (node.now() - at).total_seconds())
            yield Check("queues", Level.OK, f"{name}: served {ago:.0f} s ago")


def _alerts(node: Node) -> Iterator[Check]:
    alerts = list_alerts(node)
    if not alerts:
        yield Check("alerts", Level.OK, "none unresolved")
    for alert in alerts[:_SHOWN_ALERTS]:
        found = f"{alert['kind']}: {alert['subject']}"
        yield Check("alerts", Level.WARNING, found, alert["text"])
    if len(alerts) > _SHOWN_ALERTS:
        more = f"and {len(alerts) - _SHOWN_ALERTS} more"
        yield Check("alerts", Level.WARNING, more, "`dicom-node status --json` tells all")
