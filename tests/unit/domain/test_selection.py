from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dicom_node.domain.selection import Criteria, candidates, choose, plane
from dicom_node.domain.study import InstanceFacts

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
IMAGE = Criteria(unit="image", modality=("DX", "CR"))
SERIES = Criteria(unit="series", modality=("CT",))


def radiograph(number: int, **told: Any) -> InstanceFacts:
    basis = InstanceFacts(
        f"1.9.{number}", "1.2", "1.1", "", modality="DX", view="PA", rows=9, columns=9
    )
    return replace(basis, **told)


def ct(series: str, count: int = 3, **told: Any) -> list[InstanceFacts]:
    basis = InstanceFacts(
        "",
        "1.2",
        series,
        "",
        modality="CT",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        rows=512,
        columns=512,
        orientation=AXIAL,
        thickness_mm=5.0,
        kernel="B30f",
        acquired="20240101120000",
        series_number=1,
    )
    uids = told.pop("sop_instance_uid", None)
    return [replace(basis, sop_instance_uid=uids or f"{series}.{n}", **told) for n in range(count)]


def judged(criteria: Criteria, *instances: InstanceFacts) -> dict[str, tuple[bool, str]]:
    """By candidate: taken, why."""
    choices = choose(criteria, candidates(instances, criteria))
    return {c.candidate.uid: (c.taken, c.reason) for c in choices}


def test_each_image_is_a_candidate_for_a_model_of_images() -> None:
    report = radiograph(3, is_image=False)
    assert [c.uid for c in candidates([radiograph(1), radiograph(2), report], IMAGE)] == [
        "1.9.1",
        "1.9.2",
    ]


@pytest.mark.parametrize(
    ("wish", "told", "reason"),
    [
        ({}, {"modality": "CT"}, "modality CT"),
        ({}, {"modality": ""}, "modality not told"),
        ({"sop_class": ("1.3",)}, {}, "SOP class 1.2"),
        ({}, {"image_type": ("ORIGINAL", "PRIMARY", "localizer")}, "image type LOCALIZER"),
        ({}, {"image_type": ("DERIVED", "SECONDARY")}, "derived image"),
        ({"body_part": ("CHEST",)}, {"body_part": "HAND"}, "body part HAND"),
        ({"view_position": ("PA", "AP")}, {"view": "LL"}, "view position LL"),
        ({"orientation": "axial"}, {}, "orientation not told"),
        ({"orientation": "axial"}, {"orientation": CORONAL}, "orientation coronal"),
        (
            {"thickness_mm": (0.5, 3.0)},
            {"thickness_mm": 5.0},
            "slice thickness 5 mm, not 0.5 to 3 mm",
        ),
        ({"instances": (2, 9)}, {}, "1 images, not 2 to 9"),
        ({"kernel": ("sharp",)}, {"kernel": "soft"}, "kernel soft"),
        ({"kernel": ("sharp",)}, {}, "kernel not told"),
        (
            {"description_excludes": ("post.?op",)},
            {"series_description": "Chest POST-OP"},
            "series description matches /post.?op/",
        ),
    ],
)
def test_what_does_not_fit_is_passed_over_with_the_reason(
    wish: dict[str, Any], told: dict[str, Any], reason: str
) -> None:
    assert judged(replace(IMAGE, **wish), radiograph(1, **told)) == {"1.9.1": (False, reason)}


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"body_part": ("CHEST",)}, {"body_part": ""}),
        ({"body_part": ("CHEST",)}, {"body_part": "chest"}),
        ({"view_position": ("PA",)}, {"view": ""}),
        ({"thickness_mm": (0.5, 3.0)}, {"thickness_mm": None}),
        ({"thickness_mm": (0.5, 3.0)}, {"thickness_mm": 3.0}),
        ({"allow_derived": True}, {"image_type": ("DERIVED", "PRIMARY")}),
        ({}, {"image_type": ("DERIVED", "PRIMARY"), "lossy": True}),  # by its compression alone
        ({"orientation": "any"}, {}),
        ({"kernel": ("sharp", "^B[67]")}, {"kernel": "b70f"}),
        ({"modality": ()}, {"modality": ""}),
    ],
)
def test_what_a_modality_leaves_out_does_not_count_against_it(
    wish: dict[str, Any], told: dict[str, Any]
) -> None:
    assert judged(replace(IMAGE, **wish), radiograph(1, **told)) == {"1.9.1": (True, "fits")}


def test_all_that_fit_are_taken_where_the_model_wants_all() -> None:
    every = replace(IMAGE, take="all")
    chosen = judged(every, radiograph(1), radiograph(2, view="LL"), radiograph(3))
    assert [taken for taken, _ in chosen.values()] == [True, True, True]
    pa_only = replace(every, view_position=("PA",))
    chosen = judged(pa_only, radiograph(1), radiograph(2, view="LL"), radiograph(3))
    assert [taken for taken, _ in chosen.values()] == [True, False, True]


def test_the_thinnest_series_is_taken_and_the_others_say_why_not() -> None:
    chosen = judged(SERIES, *ct("1.5"), *ct("1.1", thickness_mm=1.0), *ct("1.3", thickness_mm=None))
    by = "thinnest, most_instances, first_acquired"
    assert chosen == {
        "1.5": (False, f"fits, but another comes before it by {by}"),
        "1.1": (True, f"first of 3 by {by}"),
        "1.3": (False, f"fits, but another comes before it by {by}"),
    }


def test_a_tie_of_thickness_is_decided_by_the_next_ranks() -> None:
    def best(*instances: InstanceFacts) -> str:
        (taken,) = (uid for uid, (taken, _) in judged(SERIES, *instances).items() if taken)
        return taken

    assert best(*ct("1.1", 3), *ct("1.2", 4)) == "1.2"
    assert best(*ct("1.1", 3, frames=2), *ct("1.2", 4)) == "1.1"  # frames are what counts
    later = ct("1.1", acquired="20240101120001")
    assert best(*later, *ct("1.2")) == "1.2"
    unknown = ct("1.1", acquired="")
    assert best(*unknown, *ct("1.2")) == "1.2"
    assert best(*ct("1.1", series_number=4), *ct("1.2", series_number=3)) == "1.2"
    assert best(*ct("1.2"), *ct("1.1")) == best(*ct("1.1"), *ct("1.2")) == "1.1"


def test_kernels_may_rank_in_the_order_of_the_wish() -> None:
    wish = replace(SERIES, kernel=("^B7", "^B3"), rank=("kernel_order",))
    chosen = judged(wish, *ct("1.1", kernel="B30f"), *ct("1.2", kernel="B70f"))
    assert [chosen[uid][0] for uid in ("1.1", "1.2")] == [False, True]


def test_a_localiser_inside_a_series_is_left_out_of_its_stack() -> None:
    scout = ct("1.1", 1, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), sop_instance_uid="9")
    (candidate,) = candidates([*scout, *ct("1.1")], SERIES)
    assert [i.sop_instance_uid for i in candidate.instances] == ["1.1.0", "1.1.1", "1.1.2"]
    assert judged(SERIES, *scout, *ct("1.1"))["1.1"] == (
        True,
        "fits; 1 localiser or derived instances left out",
    )


def test_a_series_of_localisers_only_is_passed_over_as_such() -> None:
    scouts = ct("1.1", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    assert judged(SERIES, *scouts)["1.1"] == (False, "image type LOCALIZER")


def test_instances_on_another_grid_are_left_out_of_the_stack() -> None:
    tilted = ct("1.1", 1, orientation=CORONAL, sop_instance_uid="8")
    small = ct("1.1", 1, rows=256, sop_instance_uid="9")
    taken, reason = judged(SERIES, *tilted, *small, *ct("1.1"))["1.1"]
    assert taken
    assert reason == "fits; 2 instances of another size or orientation left out"


def test_noise_in_the_cosines_makes_no_other_grid() -> None:
    noisy = ct("1.1", 1, orientation=(1.0, -1e-5, 0.0, -0.0, 1.0, 2e-4), sop_instance_uid="9")
    (candidate,) = candidates([*ct("1.1"), *noisy], SERIES)
    assert len(candidate.instances) == 4


def test_planes_are_named_by_the_nearest_axis_of_their_normal() -> None:
    assert [plane(o) for o in (AXIAL, CORONAL, SAGITTAL, None)] == [
        "axial",
        "coronal",
        "sagittal",
        None,
    ]
    assert plane((1.0, 0.0, 0.0, 0.0, 0.9, 0.436)) == "axial"
