from typing import Any

import pytest
from sqlalchemy import select

from dicom_node.errors import ConfigurationError, InvalidTransition, NotFound
from dicom_node.services import studies
from dicom_node.services.alerts import list_alerts
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.jobs import list_jobs
from dicom_node.store.tables import Delivery, Destination, Instance, JobDestination
from dicom_node.worker.engines import WarmEngines
from tests.dicoms import ct_slice, dx_image, uid
from tests.nodes import Clock, route, settle, store

STUDY = uid("study")


def chest(name: str, patient: str, issuer: str | None = None) -> Any:
    return dx_image(
        study_uid=STUDY,
        series_uid=uid("series", patient),
        sop_uid=uid(name),
        patient_id=patient,
        IssuerOfPatientID=issuer,
    )


def test_the_listing_counts_instances_modalities_revisions_and_jobs(
    node: Node, engines: WarmEngines, clock: Clock
) -> None:
    store(node, [chest("a", "A"), ct_slice(study_uid=STUDY, patient_id="A")])
    clock.pass_(60)
    settle(node, engines)
    store(node, [dx_image(study_uid=uid("other"))], close=False)

    other, row = studies.list_studies(node)

    assert other["state"] == "open" and other["revision"] == 0 and other["jobs"] == []
    assert row["modalities"] == ["CT", "DX"]
    assert (row["instances"], row["revision"], row["jobs"]) == (2, 1, ["1 done"])
    assert [r["study"] for r in studies.list_studies(node, state="closed")] == [STUDY]
    assert len(studies.list_studies(node, limit=1)) == 1


def test_a_study_is_shown_by_series(node: Node) -> None:
    store(node, [chest("a", "A"), chest("b", "A")], calling="XR7")
    told = studies.show_study(node, STUDY)
    (series,) = told["series"]
    assert (series["instances"], series["counting"], series["from"]) == (2, 2, ["XR7"])
    assert told["identities"] == []  # told only where they are in question


def test_an_unknown_study_is_not_found(node: Node) -> None:
    with pytest.raises(NotFound, match="no study '123'"):
        studies.show_study(node, "123")


def test_resolving_keeps_one_patients_images_and_closes_on_them_alone(
    node: Node, engines: WarmEngines
) -> None:
    store(node, [chest("a", "A"), chest("b", "B")])
    settle(node, engines)
    shown = studies.show_study(node, STUDY)
    assert {row["patient_id"] for row in shown["identities"]} == {"A", "B"}
    assert list_jobs(node) == []

    told = studies.resolve_study(node, STUDY, "B")
    settle(node, engines)

    assert (told["kept"], told["passed_over"]) == (1, 1)
    assert list_alerts(node) == []
    with node.database.reading() as session:
        left, kept = session.scalars(select(Instance).order_by(Instance.id))
    assert (left.counts, left.note) == (False, studies.ANOTHER_PATIENT) and kept.counts
    (row,) = studies.list_studies(node)
    assert row["state"] == "closed" and row["jobs"] == ["1 done"]


def test_resolving_after_hours_does_not_make_the_study_incomplete(node: Node, clock: Clock) -> None:
    store(node, [chest("a", "A"), chest("b", "B")])
    close_studies(node)
    clock.pass_(5 * 3600)
    studies.resolve_study(node, STUDY, "A")
    close_studies(node)
    (revision,) = studies.show_study(node, STUDY)["revisions"]
    assert revision["complete"]


def test_resolving_stops_what_the_other_patients_images_would_send(
    node: Node, engines: WarmEngines
) -> None:
    store(node, [chest("a", "A")])
    close_studies(node)  # its job is ready
    store(node, [chest("a2", "A")])
    settle(node, engines)  # and runs with the second: results of A are at the destination
    store(node, [chest("a3", "A")])
    close_studies(node)  # a third waits
    store(node, [chest("b", "B")])
    close_studies(node)

    told = studies.resolve_study(node, STUDY, "B")

    assert told["cancelled"] == 1
    assert told["sent_before"] > 0
    states = {job["state"] for job in list_jobs(node)}
    assert states == {"done", "cancelled"}


def test_a_pending_delivery_of_the_other_patients_result_is_not_sent(
    node: Node, engines: WarmEngines
) -> None:
    from dicom_node.services.infer import run_jobs

    store(node, [chest("a", "A")])
    close_studies(node)
    run_jobs(node, engines, ("any",))
    store(node, [chest("b", "B")])
    close_studies(node)
    told = studies.resolve_study(node, STUDY, "B")
    settle(node, engines)
    assert told["stopped"] > 0
    with node.database.reading() as session:
        states = [d.state for d in session.scalars(select(Delivery).order_by(Delivery.id))]
    assert states[: told["stopped"]] == ["dead"] * told["stopped"]


def test_a_destination_that_joined_gets_nothing_of_the_other_patients_result(
    node: Node, engines: WarmEngines
) -> None:
    store(node, [chest("a", "A")])
    settle(node, engines)
    with node.database.transaction() as session:  # as a new rule would, before it is laid out
        session.add(JobDestination(job_id=1, destination="later", rules=["new"]))
        session.add(Destination(name="later", kind="folder", config={"path": "/nowhere"}))
    store(node, [chest("b", "B")])
    close_studies(node)
    studies.resolve_study(node, STUDY, "B")
    settle(node, engines)
    with node.database.reading() as session:
        names = session.scalars(select(Destination.name).join(Delivery)).all()
        assert session.get_one(JobDestination, (1, "later")).layout == []
    assert "later" not in names


def test_resolving_tells_two_issuers_of_one_id_apart(node: Node) -> None:
    store(node, [chest("a", "A", "X"), chest("b", "A", "Y"), chest("c", "A")])
    close_studies(node)
    with pytest.raises(ConfigurationError, match="two issuers"):
        studies.resolve_study(node, STUDY, "A")
    assert studies.resolve_study(node, STUDY, "A", "X")["kept"] == 2  # an absent issuer agrees


def test_resolving_refuses_a_study_that_is_not_held_and_a_patient_that_is_not_in_it(
    node: Node,
) -> None:
    store(node, [chest("a", "A")])
    with pytest.raises(InvalidTransition, match="is open"):
        studies.resolve_study(node, STUDY, "A")
    store(node, [chest("b", "B")])
    close_studies(node)
    with pytest.raises(NotFound) as caught:
        studies.resolve_study(node, STUDY, "SECRET")
    assert "SECRET" not in str(caught.value)
    assert studies.show_study(node, STUDY)["state"] == "held"


def test_reopening_applies_the_rules_that_are_in_force_now(
    node: Node, engines: WarmEngines
) -> None:
    route(node, when={"modality": ["CT"]})
    store(node, [chest("a", "A")])
    settle(node, engines)
    assert list_jobs(node) == []
    route(node)
    studies.reopen_study(node, STUDY)
    settle(node, engines)
    assert [job["state"] for job in list_jobs(node)] == ["done"]
    studies.reopen_study(node, STUDY)
    settle(node, engines)
    assert len(list_jobs(node)) == 1  # the same inputs are not run twice
    assert studies.list_studies(node)[0]["revision"] == 3
