"""T2 on both databases: evidence, revisions, jobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from dicom_node.domain import routing
from dicom_node.domain.model import ModelState
from dicom_node.domain.routing import parse_rules
from dicom_node.services import complete, jobs, receive, registry, studies
from dicom_node.services.alerts import list_alerts
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver
from dicom_node.services.infer import run_jobs
from dicom_node.services.processes import bury
from dicom_node.store.tables import (
    Delivery,
    Instance,
    Job,
    JobDestination,
    JobInput,
    Model,
    Revision,
    Study,
)
from inference.bundle import Bundle
from inference.types import ImageStack, Prediction
from tests.arrivals import all_of, arrive, count, one, opened, request
from tests.dicoms import ct_series, ct_slice, dx_image, item, uid
from tests.nodes import Clock, add_bundle


@pytest.fixture(autouse=True)
def models(node: Node, tiny_bundle: Bundle, tiny_ct_bundle: Bundle, tmp_path: Path) -> None:
    """Two models, one destination, one rule for each model."""
    add_bundle(node, tiny_bundle)
    add_bundle(node, tiny_ct_bundle)
    registry.add_destination(node, "out", "folder", {"path": str(tmp_path / "out")})
    rule(node)


def rule(node: Node, *others: dict[str, Any], **changes: Any) -> None:
    """Put a rule for both models in force, and others."""
    basis = {"name": "all", "models": ["tiny", "tiny-ct"], "destinations": ["out"], **changes}
    registry.apply_rules(node, parse_rules({"rule": [basis, *others]}))


class Saying:
    """An engine that finds nothing worth a picture, at once."""

    def predict(self, digest: str, stacks: Sequence[ImageStack], *_: Any) -> list[Prediction]:
        del digest  # part of the interface
        return [Prediction(not_analysed="a test") for _ in stacks]


def run(node: Node) -> None:
    while run_jobs(node, Saying(), ("any",)):
        pass


def inputs(node: Node, job: Job) -> list[str]:
    rows = all_of(node, JobInput, JobInput.job_id == job.id)
    uids = {i.id: i.sop_instance_uid for i in all_of(node, Instance)}
    return [uids[row.instance_id] for row in rows]


# -- when --------------------------------------------------------------------------------------


def test_a_radiograph_makes_its_job_when_its_association_closes(node: Node, clock: Clock) -> None:
    association = opened(node, "DX1")
    receive.receive_instance(node, request(dx_image(), association))
    assert close_studies(node) == 0
    assert one(node, Study).waiting_for == "1 associations still sending it"
    receive.close_association(node, association, aborted=False)
    assert close_studies(node) == 1
    job, revision = one(node, Job), one(node, Revision)
    assert (job.state, job.queue, job.generation) == ("ready", "any", 1)
    assert inputs(node, job) == [str(dx_image().SOPInstanceUID)]
    assert revision.complete
    assert revision.evidence == "complete radiographs, and their association has closed"
    assert (revision.number, revision.instances) == (1, 1)
    assert [d.destination for d in all_of(node, JobDestination)] == ["out"]
    assert one(node, Study).state == "closed"
    assert close_studies(node) == 0


def test_a_ct_study_makes_its_job_when_it_has_been_quiet(node: Node, clock: Clock) -> None:
    series = ct_series(3)
    arrive(node, *series)
    clock.pass_(29)
    assert close_studies(node) == 0
    assert one(node, Study).waiting_for == "not yet quiet for 30 s (modality CT)"
    clock.pass_(1)
    assert close_studies(node) == 1
    assert inputs(node, one(node, Job)) == [str(ds.SOPInstanceUID) for ds in series]
    model = one(node, Model, Model.name == "tiny-ct")
    assert one(node, Job).model_id == model.id


def test_a_study_over_two_associations_waits_for_both(node: Node, clock: Clock) -> None:
    first, second = opened(node), opened(node)
    series = ct_series(4)
    for n, ds in enumerate(series):
        receive.receive_instance(node, request(ds, (first, second)[n % 2]))
    receive.close_association(node, first, aborted=False)
    clock.pass_(300)
    assert close_studies(node) == 0
    receive.close_association(node, second, aborted=False)
    clock.pass_(30)
    assert close_studies(node) == 1
    assert len(inputs(node, one(node, Job))) == 4


def test_a_dead_listener_does_not_keep_its_studies_waiting(node: Node, clock: Clock) -> None:
    receive.receive_instance(node, request(dx_image(), opened(node)))
    assert close_studies(node) == 0
    bury(node, [node.id])
    assert close_studies(node) == 1


def test_the_cap_goes_on_with_what_is_there_and_says_so(node: Node, clock: Clock) -> None:
    receive.receive_instance(node, request(dx_image(), opened(node)))
    for seconds in (1, 1000, 798.9):
        clock.pass_(seconds)
        assert close_studies(node) == 0
    clock.pass_(0.1)
    assert close_studies(node) == 1
    revision = one(node, Revision)
    assert not revision.complete
    assert "hard cap of 1800 s" in revision.evidence


def test_what_a_modality_told_is_waited_for_and_then_suffices(node: Node, clock: Clock) -> None:
    series = ct_series(3)
    told = [str(ds.SOPInstanceUID) for ds in series]
    arrive(node, *series[:2])
    receive.expect(node, "MPPS", str(series[0].StudyInstanceUID), told)
    clock.pass_(500)
    assert close_studies(node) == 0
    assert one(node, Study).waiting_for == "MPPS told 3, 1 missing"
    arrive(node, series[2])
    assert close_studies(node) == 1
    assert one(node, Revision).evidence == "MPPS told 3, all held"


def test_a_rule_that_counts_is_waited_for(node: Node, clock: Clock) -> None:
    rule(node, expect_instances=4, when={"modality": "DX"})
    views = [dx_image(number=n, view=v) for n, v in enumerate(("PA", "LL", "AP", "RL"))]
    arrive(node, *views[:3])
    clock.pass_(100)
    assert close_studies(node) == 0
    assert one(node, Study).waiting_for == "rule 'all' told 4, 1 missing"
    arrive(node, views[3])
    assert close_studies(node) == 4
    assert one(node, Revision).evidence == "rule 'all' told 4, all held"


def test_a_failed_look_at_one_study_keeps_no_other_waiting(
    node: Node, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in one study is its own: those behind it are closed."""
    arrive(node, dx_image(study_uid="1.2.1"))
    arrive(node, dx_image(study_uid="1.2.2"))

    def failing(facts: Any, *args: Any) -> Any:
        if facts[0].series_instance_uid == uid("series", "DX", "1.2.1"):
            raise ValueError("a fault of ours")
        return routing.plan(facts, *args)

    monkeypatch.setattr(complete, "plan", failing)
    assert close_studies(node) == 1
    assert [alert["subject"] for alert in list_alerts(node)] == ["1.2.1"]
    assert {s.study_instance_uid: s.state for s in all_of(node, Study)} == {
        "1.2.1": "open",
        "1.2.2": "closed",
    }


# -- again -------------------------------------------------------------------------------------


def test_a_late_image_reruns_only_the_model_whose_inputs_changed(node: Node, clock: Clock) -> None:
    """A radiograph and a CT in one study; one more slice comes."""
    study = uid("study", "both")
    series = ct_series(3, study_uid=study)
    arrive(node, dx_image(study_uid=study), *series[:2])
    clock.pass_(30)
    assert close_studies(node) == 2
    run(node)
    arrive(node, series[2])
    clock.pass_(30)
    assert close_studies(node) == 1
    assert [r.number for r in all_of(node, Revision)] == [1, 2]
    old, new = all_of(node, Job, Job.model_id == one(node, Model, Model.name == "tiny-ct").id)
    assert (old.state, new.state, new.predecessor_id) == ("done", "ready", old.id)
    assert len(inputs(node, new)) == 3
    assert one(node, Job, Job.model_id == one(node, Model, Model.name == "tiny").id).state == "done"


def test_a_late_image_cancels_the_job_that_has_not_run(node: Node, clock: Clock) -> None:
    series = ct_series(3)
    arrive(node, *series[:2])
    clock.pass_(30)
    close_studies(node)
    arrive(node, series[2])
    clock.pass_(30)
    close_studies(node)
    old, new = all_of(node, Job)
    assert (old.state, new.state, new.predecessor_id) == ("cancelled", "ready", None)
    assert old.error == "revision 2 of the study came before it ran"


def test_the_predecessor_is_the_last_report_not_the_most_repeated_one(
    node: Node, clock: Clock
) -> None:
    series = ct_series(4)
    study = str(series[0].StudyInstanceUID)
    arrive(node, *series[:2])
    clock.pass_(30)
    close_studies(node)
    run(node)
    jobs.rerun_study(node, study)  # a second generation of the first inputs
    run(node)
    for ds in series[2:]:
        arrive(node, ds)
        clock.pass_(30)
        close_studies(node)
        run(node)
    predecessors = {job.id: job.predecessor_id for job in all_of(node, Job)}
    assert predecessors == {1: None, 2: 1, 3: 2, 4: 3}


def test_a_duplicate_opens_no_revision(node: Node, clock: Clock) -> None:
    arrive(node, dx_image())
    close_studies(node)
    arrive(node, dx_image())
    clock.pass_(100)
    assert close_studies(node) == 0
    assert (count(node, Revision), count(node, Job)) == (1, 1)


def derived(study: str) -> list[Dataset]:
    """What systems other than modalities make of a study."""
    classes = {
        "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
        "1.2.840.10008.5.1.4.1.1.88.33": "SR",
        "1.2.840.10008.5.1.4.1.1.7": "OT",
        "1.2.840.10008.5.1.4.1.1.104.1": "DOC",
        "1.2.840.10008.5.1.4.1.1.11.1": "PR",
    }
    return [
        dx_image(
            study_uid=study, series_uid=uid("derived", n), SOPClassUID=sop_class, Modality=modality
        )
        for n, (sop_class, modality) in enumerate(classes.items())
    ]


def test_derived_objects_open_no_revision(node: Node, clock: Clock) -> None:
    arrive(node, dx_image(study_uid="1.2.3"))
    close_studies(node)
    arrive(node, *derived("1.2.3"))
    clock.pass_(100)
    assert one(node, Study).state == "closed"
    assert close_studies(node) == 0
    assert (count(node, Instance), count(node, Revision), count(node, Job)) == (6, 1, 1)


def test_derived_objects_beside_images_make_no_job_and_delay_none(node: Node, clock: Clock) -> None:
    arrive(node, *derived("1.2.3")[:2], dx_image(study_uid="1.2.3"), *derived("1.2.3")[2:])
    assert close_studies(node) == 1
    assert one(node, Revision).instances == 1


# -- who ---------------------------------------------------------------------------------------


def test_two_patients_in_one_study_hold_it(node: Node, clock: Clock, tmp_path: Path) -> None:
    """Nothing more is claimed or delivered, whatever was ready before."""
    arrive(node, dx_image(number=1, patient_id="A", study_uid="1.2.3"))
    close_studies(node)
    run(node)
    assert count(node, Delivery, Delivery.state == "pending") == 1
    jobs.rerun_study(node, "1.2.3")
    arrive(node, dx_image(number=2, patient_id="B", study_uid="1.2.3", series_uid="1.2.4"))
    assert close_studies(node) == 0
    assert one(node, Study).state == "held"
    assert [(a["kind"], a["subject"]) for a in list_alerts(node)] == [
        ("identity conflict", "1.2.3")
    ]
    assert count(node, Job, Job.state == "ready") == 1
    assert run_jobs(node, Saying(), ("any",)) == 0
    assert deliver(node) == 0
    assert not (tmp_path / "out").exists()
    # What still arrives is kept, and changes nothing.
    arrive(node, dx_image(number=3, patient_id="B", study_uid="1.2.3", series_uid="1.2.4"))
    clock.pass_(10_000)
    assert close_studies(node) == 0
    assert count(node, Instance) == 3


def test_a_held_study_goes_on_when_it_was_decided(node: Node, clock: Clock) -> None:
    arrive(
        node,
        dx_image(number=1, patient_id="A", study_uid="1.2.3"),
        dx_image(number=2, patient_id="B", study_uid="1.2.3", series_uid="1.2.4"),
    )
    close_studies(node)
    studies.resolve_study(node, "1.2.3", "A")
    assert close_studies(node) == 1
    assert inputs(node, one(node, Job)) == [
        str(dx_image(number=1, patient_id="A", study_uid="1.2.3").SOPInstanceUID)
    ]
    assert list_alerts(node) == []


# -- which -------------------------------------------------------------------------------------


def test_rules_that_agree_make_one_job_for_all_their_destinations(
    node: Node, tmp_path: Path
) -> None:
    registry.add_destination(node, "archive", "folder", {"path": str(tmp_path / "archive")})
    rule(node, {"name": "b", "models": ["tiny"], "destinations": ["archive"], "priority": "stat"})
    arrive(node, dx_image())
    close_studies(node)
    job = one(node, Job)
    assert job.priority == 0
    rows = {d.destination: d.rules for d in all_of(node, JobDestination)}
    assert rows == {"out": ["all", "b"], "archive": ["all", "b"]}


def test_a_new_rule_adds_its_destination_to_what_is_done(
    node: Node, tmp_path: Path, clock: Clock
) -> None:
    arrive(node, dx_image())
    close_studies(node)
    run(node)
    registry.add_destination(node, "archive", "folder", {"path": str(tmp_path / "archive")})
    rule(node, {"name": "b", "models": ["tiny"], "destinations": ["archive"]})
    studies.reopen_study(node, str(dx_image().StudyInstanceUID))
    clock.pass_(60)
    assert close_studies(node) == 0
    assert count(node, Job) == 1
    deliver(node)
    assert len(list((tmp_path / "archive").glob("*.dcm"))) == 1
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 1


def test_a_shadow_model_runs_and_delivers_nowhere(node: Node, tmp_path: Path, clock: Clock) -> None:
    with node.database.transaction() as session:
        session.get_one(Model, one(node, Model, Model.name == "tiny").id).state = ModelState.SHADOW
    arrive(node, dx_image())
    assert close_studies(node) == 1
    run(node)
    assert one(node, Job).state == "done"
    assert (count(node, JobDestination), count(node, Delivery)) == (0, 0)


def test_a_study_that_no_rule_wants_is_closed_with_its_reasons(node: Node, clock: Clock) -> None:
    rule(node, when={"modality": "MR"})
    arrive(node, ct_slice())
    clock.pass_(30)
    assert close_studies(node) == 0
    (verdict,) = one(node, Revision).decisions["rules"]
    assert not verdict["matched"]
    assert "modality is MR" in str(verdict)


def test_the_modalitys_haste_reaches_the_job(node: Node) -> None:
    arrive(node, dx_image(RequestedProcedurePriority="STAT"))
    close_studies(node)
    job = one(node, Job)
    assert (job.priority, job.due_at) == (0, job.created_at)


def test_decisions_never_name_a_patient(node: Node) -> None:
    named: Any = {
        "PatientName": "Canary^Yellow",
        "PatientID": "CANARY",
        "PatientComments": "Canary",
    }
    arrive(node, dx_image(**named, OtherPatientIDsSequence=[item(PatientID="CANARY")]))
    close_studies(node)
    revision = one(node, Revision)
    assert "canary" not in f"{revision.decisions} {revision.evidence}".lower()
