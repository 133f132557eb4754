"""Which forms of a result a destination gets: by its profile, and by what it accepts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)
from sqlalchemy.exc import IntegrityError

from dicom_node.domain.profile import Document, Form, SrForm
from dicom_node.domain.routing import parse_rules
from dicom_node.errors import ConfigurationError, OutOfSpace, Unavailable
from dicom_node.services import forms, peers, registry, studies
from dicom_node.services.alerts import list_alerts
from dicom_node.services.complete import close_studies
from dicom_node.services.context import Node
from dicom_node.services.deliver import deliver
from dicom_node.services.explain import explain
from dicom_node.services.infer import run_jobs
from dicom_node.services.jobs import show_job
from dicom_node.services.schedule import reconcile
from dicom_node.store.tables import Delivery, Job, JobDestination, Result
from dicom_node.worker.engines import WarmEngines
from inference.bundle import Bundle
from inference.types import Finding, Prediction
from tests.arrivals import all_of, arrive, one
from tests.dicoms import dx_image
from tests.nodes import Clock, add_bundle
from tests.pacs import AE_TITLE, Pacs
from tests.results import PNEUMONIA

SEG, LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
COMPREHENSIVE_3D = "1.2.840.10008.5.1.4.1.1.88.34"
ENHANCED, CAPTURE = "1.2.840.10008.5.1.4.1.1.88.22", "1.2.840.10008.5.1.4.1.1.7"
PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


@contextmanager
def pacs_taking(folder: Path, *classes: str, syntaxes: tuple[str, ...] = PLAIN) -> Iterator[Pacs]:
    with Pacs(folder / "pacs", classes=classes, syntaxes=syntaxes) as running:
        yield running


class Apart(WarmEngines):
    """The real model, its segments cut so that none overlaps another."""

    def predict(self, *args: Any) -> list[Prediction]:
        told = []
        for prediction in super().predict(*args):
            taken = np.zeros_like(prediction.segments[0].mask)
            segments = []
            for segment in prediction.segments:
                segments.append(replace(segment, mask=segment.mask & ~taken))
                taken |= segment.mask
            told.append(replace(prediction, segments=tuple(segments)))
        return told


def sent(
    node: Node,
    bundle: Bundle,
    pacs: Pacs,
    engines: type[WarmEngines] = WarmEngines,
    **profile: str,
) -> list[tuple[str, str]]:
    """SOP class and state of every delivery, of one radiograph's result."""
    config = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": pacs.port}
    registry.add_destination(node, "out", "dimse", config, profile)
    add_bundle(node, bundle)
    rule = {"name": "all", "models": ["tiny"], "destinations": ["out"]}
    registry.apply_rules(node, parse_rules({"rule": [rule]}))
    arrive(node, dx_image())
    assert close_studies(node) == 1
    assert run_jobs(node, engines(node), ("any",)) == 1
    deliver(node)
    with node.database.reading() as session:
        return [
            (session.get_one(Result, d.result_id).sop_class_uid, d.state)
            for d in all_of(node, Delivery)
        ]


def held(pacs: Pacs) -> dict[str, list[pydicom.Dataset]]:
    found: dict[str, list[pydicom.Dataset]] = {}
    for row in pacs.received:
        if row.path is not None:
            found.setdefault(row.sop_class_uid, []).append(pydicom.dcmread(row.path, force=True))
    return found


def cited(report: pydicom.Dataset) -> set[str]:
    return {
        str(instance.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }


def test_a_pacs_without_comprehensive_3d_sr_gets_an_enhanced_sr_that_cites_the_same_seg(
    node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, ENHANCED, CAPTURE) as pacs:
        assert sent(node, tiny_bundle, pacs) == [
            (SEG, "sent"),
            (COMPREHENSIVE_3D, "replaced"),
            (ENHANCED, "sent"),
        ]
        objects = held(pacs)
        ((seg,), (report,)) = objects[SEG], objects[ENHANCED]
    assert seg.SOPInstanceUID in cited(report)
    replaced = all_of(node, Delivery)[1].last_answer
    assert replaced.startswith(f"SOP class {COMPREHENSIVE_3D} not accepted")
    assert replaced.endswith("BINARY segmentation, Enhanced SR goes instead")
    (destination,) = show_job(node, 1)["destinations"]
    assert destination["forms"] == "BINARY segmentation, Enhanced SR"
    assert list_alerts(node) == []
    assert deliver(node) == 0


def test_a_pacs_that_takes_no_report_gets_pages_beside_the_seg(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, CAPTURE) as pacs:
        found = sent(sqlite_node, tiny_bundle, pacs)
        (page, *_) = held(pacs)[CAPTURE]
    assert [row for row in found if row[1] == "sent"] == [(SEG, "sent"), (CAPTURE, "sent")]
    assert {row for row in found if row[1] != "sent"} == {
        (COMPREHENSIVE_3D, "replaced"),
        (ENHANCED, "replaced"),
    }
    assert page.BurnedInAnnotation == "YES"


def test_a_pacs_that_takes_no_segmentation_gets_a_report_that_cites_none(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, COMPREHENSIVE_3D, CAPTURE) as pacs:
        sent(sqlite_node, tiny_bundle, pacs)
        objects = held(pacs)
    (report,) = objects[COMPREHENSIVE_3D]
    assert cited(report) == {str(dx_image().SOPInstanceUID)}
    assert len(objects[CAPTURE]) >= 1


def test_a_pacs_that_takes_reports_only_gets_a_report_and_no_alert_is_raised(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, COMPREHENSIVE_3D) as pacs:
        sent(sqlite_node, tiny_bundle, pacs)
        assert set(held(pacs)) == {COMPREHENSIVE_3D}
    assert list_alerts(sqlite_node) == []


def test_a_pacs_that_takes_images_only_gets_pages(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, CAPTURE) as pacs:
        found = sent(sqlite_node, tiny_bundle, pacs)
        assert set(held(pacs)) == {CAPTURE}
    assert {state for uid, state in found if uid != CAPTURE} == {"replaced"}


def test_a_pacs_that_takes_nothing_of_ours_raises_an_alert(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path) as pacs:
        found = sent(sqlite_node, tiny_bundle, pacs)
        assert held(pacs) == {}
    assert [state for _, state in found].count("dead") == 1
    assert {state for _, state in found} == {"dead", "replaced"}
    assert [alert["kind"] for alert in list_alerts(sqlite_node)] == ["delivery dead"]


def test_where_no_capture_is_wanted_the_last_refusal_is_the_end(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, CAPTURE) as pacs:
        found = sent(sqlite_node, tiny_bundle, pacs, capture="never")
    assert CAPTURE not in {uid for uid, _ in found}
    assert found[-1][1] == "dead"


def test_a_label_map_gives_way_to_a_binary_segmentation(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, ENHANCED) as pacs:
        sent(sqlite_node, tiny_bundle, pacs, segmentation="labelmap", report="enhanced")
        objects = held(pacs)
    (seg,), (report,) = objects[SEG], objects[ENHANCED]
    assert seg.SegmentationType == "BINARY"
    assert seg.SOPInstanceUID in cited(report)


def test_a_label_map_is_sent_where_it_is_taken(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, LABEL_MAP, COMPREHENSIVE_3D) as pacs:
        assert sent(sqlite_node, tiny_bundle, pacs, Apart, segmentation="labelmap") == [
            (LABEL_MAP, "sent"),
            (COMPREHENSIVE_3D, "sent"),
        ]
        objects = held(pacs)
    assert objects[LABEL_MAP][0].SOPInstanceUID in cited(objects[COMPREHENSIVE_3D][0])


def test_segments_that_overlap_go_as_binary_though_a_label_map_is_wanted(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, LABEL_MAP, COMPREHENSIVE_3D) as pacs:
        assert sent(sqlite_node, tiny_bundle, pacs, segmentation="labelmap") == [
            (SEG, "sent"),
            (COMPREHENSIVE_3D, "sent"),
        ]


def test_probabilities_go_beside_the_binary_segmentation(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, COMPREHENSIVE_3D) as pacs:
        sent(sqlite_node, tiny_bundle, pacs, segmentation="fractional")
        kinds = {str(seg.SegmentationType): seg for seg in held(pacs)[SEG]}
        (report,) = held(pacs)[COMPREHENSIVE_3D]
    assert set(kinds) == {"BINARY", "FRACTIONAL"}
    assert kinds["BINARY"].SOPInstanceUID in cited(report)
    assert len(set(kinds["FRACTIONAL"].pixel_array.ravel().tolist())) > 2


@pytest.mark.parametrize(("wish", "syntax"), [("jpeg2000", JPEG2000Lossless), ("rle", RLELossless)])
def test_a_compressed_segmentation_is_sent_as_it_is_or_gives_way_to_a_plain_one(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, wish: str, syntax: str
) -> None:
    for syntaxes in ((*PLAIN, syntax), PLAIN):
        node_folder = tmp_path / f"{len(syntaxes)}"
        with pacs_taking(node_folder, LABEL_MAP, COMPREHENSIVE_3D, syntaxes=syntaxes) as pacs:
            if len(syntaxes) > 2:
                sent(
                    sqlite_node,
                    tiny_bundle,
                    pacs,
                    Apart,
                    segmentation="labelmap",
                    compression=wish,
                )
            else:  # the same study for a second destination that joins later
                join(sqlite_node, pacs, segmentation="labelmap", compression=wish)
            (row,) = [row for row in pacs.received if row.sop_class_uid == LABEL_MAP]
        assert (row.transfer_syntax == syntax) == (len(syntaxes) > 2)


def join(node: Node, pacs: Pacs, **profile: str) -> None:
    """A second destination for what is done already."""
    config = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": pacs.port}
    registry.add_destination(node, "later", "dimse", config, profile)
    rules = [
        {"name": "all", "models": ["tiny"], "destinations": ["out"]},
        {"name": "later", "models": ["tiny"], "destinations": ["later"]},
    ]
    registry.apply_rules(node, parse_rules({"rule": rules}))
    studies.reopen_study(node, str(dx_image().StudyInstanceUID))
    clock = node.now
    assert isinstance(clock, Clock)
    clock.pass_(60)
    close_studies(node)
    deliver(node)


def test_who_joins_a_finished_job_gets_its_own_forms_of_the_same_result(
    node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path / "1", SEG, COMPREHENSIVE_3D) as first:
        sent(node, tiny_bundle, first)
    with pacs_taking(tmp_path / "2", SEG, ENHANCED, CAPTURE) as second:
        join(node, second, report="enhanced", capture="always")
        objects = held(second)
        assert set(objects) == {SEG, ENHANCED, CAPTURE}
        assert (
            second.hold().items()
            >= {uid: digest for uid, digest in first.hold().items() if uid in second.hold()}.items()
        )
    assert len(all_of(node, Job)) == 1
    layouts = {row.destination: row.layout for row in all_of(node, JobDestination)}
    assert set(layouts) == {"out", "later"}
    assert all(layouts.values())


def test_captures_are_sent_always_where_they_are_wanted(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, COMPREHENSIVE_3D, CAPTURE) as pacs:
        found = sent(sqlite_node, tiny_bundle, pacs, capture="always")
        pages = held(pacs)[CAPTURE]
    assert {uid for uid, _ in found} == {SEG, COMPREHENSIVE_3D, CAPTURE}
    assert len({page.SeriesInstanceUID for page in pages}) == 1
    assert len({page.InstanceNumber for page in pages}) == len(pages)


class Classifying(WarmEngines):
    """A classifier in the place of the bundle's network, and where it looked."""

    def predict(self, digest: str, stacks: Any, *_: Any) -> list[Prediction]:
        import torch
        from torchvision.models import squeezenet1_1

        from inference.saliency import grad_cam, last_convolution, on_source

        torch.manual_seed(0)
        network = squeezenet1_1(weights=None, num_classes=2).eval().requires_grad_(False)
        told = []
        for stack in stacks:
            x, where = self._engine(digest).prepared(stack)
            probability = float(network(x).softmax(1)[0, 1])
            heat = on_source(grad_cam(network, last_convolution(network), x, 1), where)
            found = Finding("Pneumonia", PNEUMONIA, True, probability, 0.1, saliency=heat)
            told.append(Prediction(findings=(found,)))
        return told


def test_a_classification_arrives_with_the_map_of_where_the_network_looked(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, COMPREHENSIVE_3D, CAPTURE) as pacs:
        sent(sqlite_node, tiny_bundle, pacs, Classifying, capture="always")
        (page,), (report,) = held(pacs)[CAPTURE], held(pacs)[COMPREHENSIVE_3D]
    assert "Pneumonia: Present" in page.ImageComments
    assert "Heat map (Grad-CAM)" in page.ImageComments
    red, green, blue = np.moveaxis(page.pixel_array[:, :900].astype(int), 2, 0)
    assert ((red != green) | (green != blue)).mean() > 0.01
    verdicts = [
        item
        for container in report.ContentSequence
        for item in container.get("ContentSequence", ())
        if item.ValueType == "CODE" and item.ConceptCodeSequence[0].CodeMeaning == "Present"
    ]
    assert len(verdicts) == 1


def test_a_prediction_that_was_altered_on_disk_is_not_told(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, CAPTURE) as pacs:
        registry.add_destination(sqlite_node, "never", "folder", {"path": str(tmp_path / "x")})
        node = sqlite_node
        config = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": pacs.port}
        registry.add_destination(node, "out", "dimse", config)
        add_bundle(node, tiny_bundle)
        rule = {"name": "all", "models": ["tiny"], "destinations": ["out"]}
        registry.apply_rules(node, parse_rules({"rule": [rule]}))
        arrive(node, dx_image())
        close_studies(node)
        run_jobs(node, WarmEngines(node), ("any",))
        path = node.results.path(one(node, Job).prediction or "")
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        deliver(node)
    assert [d.state for d in all_of(node, Delivery)] == ["sent", "dead"]
    (alert,) = list_alerts(node)
    assert alert["kind"] == "delivery dead"


def test_a_full_disk_is_no_reason_to_give_up_on_another_form(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(node: Node, job: Job, told: Any, wanted: Iterable[Form], *rest: Any) -> forms.Objects:
        if SrForm(Document.ENHANCED) in list(wanted):
            raise OutOfSpace("less than 1 MiB free")
        return write(node, job, told, wanted, *rest)

    clock, write = sqlite_node.now, forms.write
    assert isinstance(clock, Clock)
    with pacs_taking(tmp_path, SEG, ENHANCED) as pacs:
        with monkeypatch.context() as patched:
            patched.setattr(forms, "write", full)
            told = sent(sqlite_node, tiny_bundle, pacs)
        assert told == [(SEG, "sent"), (COMPREHENSIVE_3D, "pending")]
        assert "no other form yet" in all_of(sqlite_node, Delivery)[1].last_answer
        clock.pass_(3600)
        deliver(sqlite_node)
        assert set(held(pacs)) == {SEG, ENHANCED}


def test_a_form_that_another_entered_meanwhile_costs_an_attempt_that_is_told(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entered(*_: Any) -> None:
        raise IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed"))

    clock = sqlite_node.now
    assert isinstance(clock, Clock)
    with pacs_taking(tmp_path, SEG, ENHANCED) as pacs:
        with monkeypatch.context() as patched:
            patched.setattr(forms, "enter", entered)
            told = sent(sqlite_node, tiny_bundle, pacs)
        assert told == [(SEG, "sent"), (COMPREHENSIVE_3D, "pending")]
        assert "fault of this node: IntegrityError" in all_of(sqlite_node, Delivery)[1].last_answer
        clock.pass_(3600)
        deliver(sqlite_node)
        assert set(held(pacs)) == {SEG, ENHANCED}


def test_a_kept_prediction_is_no_orphan(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, COMPREHENSIVE_3D) as pacs:
        sent(sqlite_node, tiny_bundle, pacs)
    clock = sqlite_node.now
    assert isinstance(clock, Clock)
    clock.pass_(10**7)
    assert reconcile(sqlite_node) == {"temporary": 0, "orphans": 0, "missing": 0}


def test_why_tells_what_went_instead(
    sqlite_node: Node, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, ENHANCED) as pacs:
        sent(sqlite_node, tiny_bundle, pacs)
    told = explain(sqlite_node, str(dx_image().StudyInstanceUID))
    (job,) = [job for revision in told["revisions"] for job in revision["jobs"]]
    assert {d["form"]: d["state"] for d in job["deliveries"]} == {
        "BINARY segmentation": "sent",
        "Comprehensive 3D SR": "replaced",
        "Enhanced SR": "sent",
    }


def test_a_destination_tells_in_which_forms_it_takes_results(
    sqlite_node: Node, tmp_path: Path
) -> None:
    with pacs_taking(tmp_path, SEG, ENHANCED, syntaxes=(*PLAIN, JPEG2000Lossless)) as pacs:
        config = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": pacs.port}
        registry.add_destination(sqlite_node, "out", "dimse", config)
        told = peers.takes(peers.named(sqlite_node, "out"))
        assert pacs.received == []
    assert told == {
        "BINARY segmentation": True,
        "BINARY segmentation in JPEG 2000": True,
        "LABELMAP segmentation": False,
        "LABELMAP segmentation in RLE": False,
        "Comprehensive 3D SR": False,
        "Enhanced SR": True,
        "secondary capture": False,
    }
    with pytest.raises(Unavailable, match="no connection"):
        peers.takes(peers.named(sqlite_node, "out"))
    registry.add_destination(sqlite_node, "folder", "folder", {"path": str(tmp_path)})
    assert peers.takes(peers.named(sqlite_node, "folder")) is None


def test_one_that_takes_nothing_says_so(sqlite_node: Node, tmp_path: Path) -> None:
    with pacs_taking(tmp_path) as pacs:
        config = {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": pacs.port}
        registry.add_destination(sqlite_node, "out", "dimse", config)
        told = peers.takes(peers.named(sqlite_node, "out")) or {}
    assert told and not any(told.values())


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"report": "none", "capture": "never"}, "nobody learns"),
        ({"compression": "rle"}, "one bit a pixel"),
        ({"segmentation": "surface"}, "segmentation is binary, labelmap, fractional, none"),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(
    sqlite_node: Node, profile: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        registry.add_destination(sqlite_node, "out", "folder", {"path": "/x"}, profile)
