from typing import Any

import pytest
from sqlalchemy import select

from dicom_node.errors import InvalidTransition, NodeError, NotFound
from dicom_node.services import instances, studies
from dicom_node.services.alerts import list_alerts
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.jobs import list_jobs
from dicom_node.store.tables import Instance
from dicom_node.worker.engines import WarmEngines
from tests.dicoms import dx_image, uid
from tests.nodes import Clock, settle, store

STUDY = uid("study")


def chest(**options: Any) -> Any:
    named = {"study_uid": STUDY, "series_uid": uid("series"), "sop_uid": uid("a")}
    return dx_image(**{**named, **options})


def held(node: Node) -> Instance:
    with node.database.reading() as session:
        return session.scalars(select(Instance)).one()


@pytest.fixture
def conflict(node: Node, engines: WarmEngines) -> Node:
    store(node, [chest()], calling="XR1")
    settle(node, engines)
    assert store(node, [chest(seed=3, view="AP")], calling="XR2") == ["held with other content"]
    return node


def test_quarantine_tells_where_it_came_from_and_in_what_it_differs(conflict: Node) -> None:
    (row,) = instances.list_quarantine(conflict)
    assert (row["held_from"], row["from"]) == ("XR1", "XR2")
    assert row["differs_in"] == ["ViewPosition", "PixelData"]
    assert row["study"] == STUDY


def test_keeping_the_old_one_leaves_everything_as_it_was(conflict: Node) -> None:
    before = held(conflict)
    instances.resolve_instance(conflict, 1, "old")
    assert (held(conflict).path, held(conflict).sha256) == (before.path, before.sha256)
    assert instances.list_quarantine(conflict) == []
    assert instances.list_quarantine(conflict, everything=True)[0]["resolution"] == "keep-old"
    assert list_alerts(conflict) == []
    assert studies.list_studies(conflict)[0]["state"] == "closed"


def test_keeping_the_new_one_swaps_the_files_and_makes_a_new_revision(
    conflict: Node, engines: WarmEngines
) -> None:
    before = held(conflict)
    instances.resolve_instance(conflict, 1, "new")
    after = held(conflict)
    (row,) = instances.list_quarantine(conflict, everything=True)

    assert after.path != before.path and after.sha256 != before.sha256
    assert after.facts["view"] == "AP" and after.facts["calling_ae"] == "XR2"
    assert after.facts["sha256"] == after.sha256
    assert row["file"] == conflict.instances.path(before.path)
    assert row["file"].is_file() and row["held_file"].is_file()
    assert list_alerts(conflict) == []

    settle(conflict, engines)
    new, old = list_jobs(conflict)
    assert (new["revision"], new["state"], old["state"]) == (2, "done", "done")


def test_an_instance_is_settled_once(conflict: Node) -> None:
    instances.resolve_instance(conflict, 1, "new")
    with pytest.raises(InvalidTransition, match=r"settled \(keep-new\)"):
        instances.resolve_instance(conflict, 1, "old")
    with pytest.raises(NotFound):
        instances.resolve_instance(conflict, 99, "old")


def test_a_newcomer_of_another_study_cannot_take_the_place(node: Node) -> None:
    store(node, [chest()])
    store(node, [chest(study_uid=uid("elsewhere"))])
    before = held(node)
    with pytest.raises(NodeError, match="another study"):
        instances.resolve_instance(node, 1, "new")
    assert held(node).path == before.path
    instances.resolve_instance(node, 1, "old")


def test_a_newcomer_that_settles_whose_the_study_is_releases_it(
    node: Node, engines: WarmEngines
) -> None:
    store(node, [chest(patient_id="WRONG"), chest(sop_uid=uid("b"), patient_id="RIGHT")])
    settle(node, engines)
    store(node, [chest(patient_id="RIGHT")])
    instances.resolve_instance(node, 1, "new")
    settle(node, engines)
    assert studies.list_studies(node)[0]["state"] == "closed"
    assert list_alerts(node) == []


def test_a_lost_file_is_told_and_changes_nothing(conflict: Node, clock: Clock) -> None:
    (row,) = instances.list_quarantine(conflict)
    row["file"].unlink()
    assert instances.list_quarantine(conflict)[0]["differs_in"] == ["a file cannot be read"]
    with pytest.raises(NotFound):
        instances.resolve_instance(conflict, 1, "new")
    close_studies(conflict)
    assert studies.list_studies(conflict)[0]["state"] == "closed"
