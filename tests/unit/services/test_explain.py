import json
from pathlib import Path
from typing import Any

from dicom_node.cli.output import print_json
from dicom_node.services import jobs
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.explain import explain, found_in_words
from dicom_node.worker.engines import WarmEngines
from tests.dicoms import ct_series, dx_image, uid
from tests.nodes import Clock, route, settle, store

STUDY = uid("study")


def chest(name: str = "a", **options: Any) -> Any:
    return dx_image(
        study_uid=STUDY,
        series_uid=uid("series"),
        sop_uid=uid(name),
        **{"SeriesDescription": "Doe^Jane Thorax", **options},
    )


def test_an_open_study_says_what_it_waits_for(node: Node) -> None:
    store(node, [chest()], close=False)
    close_studies(node)

    told = explain(node, STUDY)

    assert told["state"] == "open"
    assert "still sending" in told["summary"][0]
    assert "No scheduler is running" in told["summary"][1]
    assert told["associations"][0]["closed_at"] is None


def test_a_finished_study_tells_evidence_choice_run_and_delivery(
    node: Node, engines: WarmEngines
) -> None:
    store(node, [chest(), chest("lateral", view="LL", Modality="OT")])
    route(node, when={"modality": ["DX"]})
    settle(node, engines)

    node_clock = node.now
    assert isinstance(node_clock, Clock)
    node_clock.pass_(60)
    settle(node, engines)
    told = explain(node, STUDY)

    (revision,) = told["revisions"]
    assert revision["complete"] and "quiet" in revision["evidence"]
    assert [rule["matched"] for rule in revision["rules"]] == [True]
    (choice,) = revision["choices"]
    assert {(u, taken) for u, taken, _ in choice["reasons"]} == {
        (uid("a"), True),
        (uid("lateral"), False),
    }
    (job,) = revision["jobs"]
    assert job["state"] == "done" and job["attempts"] == 1 and job["seconds"] is not None
    assert job["found"]
    assert {d["kind"] for d in job["deliveries"]} >= {"sr"}
    assert all(d["state"] == "sent" and d["answer"] == "success" for d in job["deliveries"])
    assert told["summary"][0].startswith("Closed: revision 1 holds all that counts")


def test_no_description_and_no_patient_is_told(node: Node, engines: WarmEngines) -> None:
    store(node, [chest(PatientName="Roe^Richard", PatientID="SECRET-7")])
    settle(node, engines)
    written = json.dumps(explain(node, STUDY), default=str)
    for secret in ("Jane", "Roe", "SECRET-7"):
        assert secret not in written


def test_what_no_rule_wanted_says_so(node: Node) -> None:
    route(node, when={"modality": ["CT"]})
    store(node, [chest()])
    close_studies(node)
    told = explain(node, STUDY)
    assert "No rule wanted it: none of 1 matched." in told["summary"]
    verdict = told["revisions"][0]["rules"][0]["verdicts"][0][1]
    assert verdict == {"holds": False, "text": "modality is CT (here DX)", "parts": []}


def test_a_rule_that_holds_for_some_images_of_a_series_shows_each_verdict(node: Node) -> None:
    route(node, when={"not": {"view": ["LL"]}})
    store(node, [chest("pa"), chest("ll", view="LL")])
    close_studies(node)

    (revision,) = explain(node, STUDY)["revisions"]

    (rule,) = revision["rules"]
    assert rule["matched"]
    assert {u: v["holds"] for u, v in rule["verdicts"]} == {
        uid("series"): False,
        uid("pa"): True,
        uid("ll"): False,
    }
    assert len(revision["jobs"]) == 1


def test_a_matching_rule_whose_model_takes_nothing_says_so(node: Node) -> None:
    series = ct_series(3, study_uid=STUDY)
    store(node, series)
    clock = node.now
    assert isinstance(clock, Clock)
    clock.pass_(60)
    close_studies(node)
    told = explain(node, STUDY)
    assert (
        "Nothing was run: 'all' matched, but no model found images that it takes."
        in (told["summary"])
    )
    assert {why for _, _, why in told["revisions"][0]["choices"][0]["reasons"]} == {"modality CT"}


def test_what_does_not_count_is_told_with_its_reason(node: Node) -> None:
    from tests.dicoms import SECONDARY_CAPTURE

    store(node, [chest(SOPClassUID=SECONDARY_CAPTURE)])
    told = explain(node, STUDY)
    assert told["passed_over"] == [
        {"why": "Secondary Capture Image Storage is no image of a modality", "instances": 1}
    ]
    assert told["summary"] == [
        "Closed: nothing that came opens a revision (see what is passed over)."
    ]


def test_a_held_study_says_why_and_what_to_do(node: Node) -> None:
    store(node, [chest(patient_id="A"), chest("b", patient_id="B")])
    close_studies(node)
    told = explain(node, STUDY)
    assert told["state"] == "held"
    assert "names two patients" in told["summary"][0]
    assert f"studies resolve {STUDY} --patient-id" in told["summary"][1]
    assert [alert["kind"] for alert in told["alerts"]] == ["identity conflict"]


def test_a_failed_delivery_names_the_command_that_repeats_it(
    node: Node, engines: WarmEngines, tmp_path: Path
) -> None:
    store(node, [chest()])
    close_studies(node)
    (tmp_path / "out").write_text("a file stands where the folder should be")
    settle(node, engines)
    (job,) = explain(node, STUDY)["revisions"][0]["jobs"]
    first, *rest = job["deliveries"]
    assert first["state"] == "pending" and first["attempts"] == 1
    assert first["answer"]

    for name in node.results.names():
        node.results.path(name).write_bytes(b"altered")
    clock = node.now
    assert isinstance(clock, Clock)
    clock.pass_(3600)
    settle(node, engines)
    told = explain(node, STUDY)
    dead = [d for d in told["revisions"][0]["jobs"][0]["deliveries"] if d["state"] == "dead"]
    assert len(dead) == 1 + len(rest)
    assert any(f"deliveries retry {dead[0]['delivery']}" in text for text in told["summary"])
    assert "altered" in dead[0]["answer"]


def test_a_late_image_makes_a_second_revision_that_names_the_job_that_stands(
    node: Node, engines: WarmEngines
) -> None:
    store(node, [chest()])
    settle(node, engines)
    store(node, [chest("late")])
    settle(node, engines)

    first, second = explain(node, STUDY)["revisions"]

    assert [job["job"] for job in first["jobs"]] == [1]
    assert [job["job"] for job in second["jobs"]] == [2]
    assert second["covered"] == [{"candidate": uid("a"), "model": "tiny@0.0.1", "job": 1}]


def test_everything_told_can_be_written_as_json(
    node: Node, engines: WarmEngines, capsys: Any
) -> None:
    store(node, [chest(), chest(seed=9)])
    settle(node, engines)
    jobs.rerun_study(node, STUDY)
    capsys.readouterr()  # the log of the services
    print_json(explain(node, STUDY))
    told = json.loads(capsys.readouterr().out)
    assert told["revisions"][0]["jobs"][1]["predecessor"] == 1
    assert len(told["quarantine"]) == 1 and told["quarantine"][0]["resolution"] is None


def test_findings_are_told_in_words() -> None:
    summary = {
        "not_analysed": None,
        "segments": [
            {
                "label": "Left lung",
                "found": True,
                "measurements": [{"name": "Area", "value": 123.456, "unit": "square centimeter"}],
            },
            {"label": "Right lung", "found": False, "measurements": []},
        ],
        "findings": [
            {"label": "Effusion", "present": True, "probability": 0.914, "severity": "Mild"}
        ],
        "notes": ["without spacing"],
    }
    assert found_in_words(summary) == [
        "Left lung: Area 123.5 square centimeter",
        "Right lung: not found",
        "Effusion: present, severity Mild, probability 0.91",
        "without spacing",
    ]
    assert found_in_words({"not_analysed": "colour"}) == ["not analysed: colour"]
    assert found_in_words(None) == []
