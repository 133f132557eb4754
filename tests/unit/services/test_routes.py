from pathlib import Path

import pytest

from dicom_node.domain.routing import parse_rules
from dicom_node.errors import NotFound
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.jobs import list_jobs
from dicom_node.services.routes import list_rules, try_rules
from tests.dicoms import ct_series, dx_image, save, uid
from tests.nodes import route, store

STUDY = uid("study")


def test_a_folder_is_tried_study_by_study_and_leaves_no_trace(node: Node, tmp_path: Path) -> None:
    route(node, when={"modality": ["DX"]})
    save(dx_image(study_uid=STUDY), tmp_path / "in" / "1.dcm")
    for number, one in enumerate(ct_series(2, study_uid=uid("ct"))):
        save(one, tmp_path / "in" / "ct" / f"{number}.dcm")
    (tmp_path / "in" / "notes.txt").write_text("no DICOM")

    told = {study["study"]: study for study in try_rules(node, str(tmp_path / "in"))}

    assert set(told) == {STUDY, uid("ct")}
    (job,) = told[STUDY]["jobs"]
    assert (job["model"], job["images"], job["destinations"]) == ("tiny@0.0.1", 1, ("out",))
    assert told[uid("ct")]["jobs"] == [] and not told[uid("ct")]["rules"][0]["matched"]
    assert list_jobs(node) == []


def test_a_stored_study_is_tried_with_rules_that_are_not_in_force(node: Node) -> None:
    store(node, [dx_image(study_uid=STUDY)], calling="ER1")
    rules = parse_rules(
        {
            "rule": [
                {
                    "name": "emergency",
                    "when": {"calling_ae": "ER1"},
                    "models": ["tiny"],
                    "destinations": ["out"],
                    "priority": "stat",
                }
            ]
        }
    )
    (told,) = try_rules(node, STUDY, rules)
    assert [job["priority"] for job in told["jobs"]] == ["stat"]
    assert [rule["name"] for rule in list_rules(node)] == ["all"]


def test_the_trial_decides_as_the_node_does(node: Node) -> None:
    images = [dx_image(study_uid=STUDY, view="PA"), dx_image(study_uid=STUDY, number=2, view="LL")]
    route(node, when={"view": ["PA"]})
    store(node, images)
    (tried,) = try_rules(node, STUDY)
    close_studies(node)
    assert len(tried["jobs"]) == len(list_jobs(node)) == 1


def test_files_count_as_sent_by_whom_one_says(node: Node, tmp_path: Path) -> None:
    route(node, when={"calling_ae": ["CT9"]})
    file = save(dx_image(), tmp_path / "1.dcm")
    assert not try_rules(node, str(file))[0]["jobs"]
    assert try_rules(node, str(file), calling="CT9")[0]["jobs"]


def test_a_study_of_two_patients_is_told_to_be_held(node: Node, tmp_path: Path) -> None:
    for patient in "AB":
        file = tmp_path / "in" / f"{patient}.dcm"
        save(dx_image(study_uid=STUDY, patient_id=patient, sop_uid=uid(patient)), file)
    assert try_rules(node, str(tmp_path / "in"))[0]["held"]


def test_what_holds_no_dicom_is_not_found(node: Node, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no DICOM")
    with pytest.raises(NotFound, match="DICOM file"):
        try_rules(node, str(tmp_path / "notes.txt"))
    with pytest.raises(NotFound, match="study"):
        try_rules(node, "2.25.1")
