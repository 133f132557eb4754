"""The bundles that ship: whole, within their size, and right on what nobody has shown them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dicom_node
from inference.bundle import open_bundle
from inference.engine import Engine
from inference.phantoms import CT_FIELD_MM, Lesion, chest_radiograph, ct_volume
from inference.reading import read_files
from tests.data import shared
from tests.stacks import ct, radiograph

BUNDLES = Path(dicom_node.__path__[0]) / "bundles"
NAMES = sorted(path.name for path in BUNDLES.iterdir())


@pytest.fixture(scope="module")
def engines():
    return {name: Engine(open_bundle(BUNDLES / name)) for name in NAMES}


def overlap(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_all_shipped_bundles_together_stay_under_80_megabytes():
    assert sum(path.stat().st_size for path in BUNDLES.rglob("*") if path.is_file()) < 80e6


@pytest.mark.parametrize("name", NAMES)
def test_each_gives_here_what_it_gave_when_it_was_exported(engines, name):
    assert engines[name].check_golden() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_each_card_tells_its_data_its_figures_and_its_limits(name):
    card = (BUNDLES / name / "card.md").read_text()
    for words in ("not for diagnosis", "## Data and licences", "95% interval", "## Limits"):
        assert words in card


def test_lungs_of_a_new_phantom_are_found_on_their_own_sides(engines):
    picture, masks = chest_radiograph(9001, (600, 500))
    (found,) = engines["cxr-lungs"].predict([radiograph(picture, spacing=(0.5, 0.5))])
    for segment, side in zip(found.segments, ("right_lung", "left_lung"), strict=True):
        assert overlap(segment.mask[0], masks[side]) > 0.95
        (area,) = segment.measurements
        assert area.value == pytest.approx(masks[side].sum() * 0.25, rel=0.1)


def test_a_radiograph_that_was_stored_the_other_way_round_keeps_its_sides(engines):
    picture, masks = chest_radiograph(9002, (500, 500))
    mirrored = radiograph(np.ascontiguousarray(picture[:, ::-1]), patient_orientation=("R", "F"))
    (found,) = engines["cxr-lungs"].predict([mirrored])
    assert overlap(found.segments[0].mask[0], masks["right_lung"][:, ::-1]) > 0.95


def test_another_lung_gives_another_number(engines):
    pictures = [
        radiograph(chest_radiograph(9003, (500, 500), **how)[0])
        for how in ({}, {"lung_scale": (1.0, 0.75)}, {"lesion": Lesion("left", density=0.3)})
    ]
    areas = [
        [segment.measurements[0].value for segment in prediction.segments]
        for prediction in engines["cxr-lungs"].predict(pictures)
    ]
    assert areas[1][1] < 0.9 * areas[0][1]
    assert areas[1][0] == pytest.approx(areas[0][0], rel=0.05)
    assert areas[2] != areas[0]


@pytest.mark.parametrize("region", ["head", "chest", "abdomen"])
def test_body_air_and_bone_of_a_new_volume_are_found(engines, region):
    volume, masks = ct_volume(9001, 6, 384, region)
    spacing = CT_FIELD_MM[region] / 384
    (found,) = engines["ct-body"].predict([ct(volume, spacing=(spacing, spacing))])
    least = {"body": 0.98, "air": 0.8, "bone": 0.75}
    for segment, (name, limit) in zip(found.segments, least.items(), strict=True):
        assert overlap(segment.mask, masks[name]) > limit, name
        (volume_ml,) = segment.measurements
        expected = masks[name].sum() * spacing**2 / 1000
        assert volume_ml.value == pytest.approx(expected, rel=0.4)


def test_a_full_size_radiograph_of_a_real_patient_gives_two_lungs(engines):
    path = shared("dicom", "dicom-test-files", "data", "WG04", "J2KI", "RG1_J2KI")
    stack = read_files([path])
    (found,) = engines["cxr-lungs"].predict([stack])
    right, left = (segment.mask[0] for segment in found.segments)
    assert 0.1 < right.mean() < 0.35
    assert 0.1 < left.mean() < 0.35
    columns = np.arange(right.shape[1])
    assert np.average(columns, weights=right.sum(0)) < np.average(columns, weights=left.sum(0))


def test_a_real_head_with_uneven_slices_and_a_tilt_gives_its_volume(engines):
    paths = sorted(shared("dicom", "dcm_qa_ct", "In").rglob("*.dcm"))
    stack = read_files(paths)
    (found,) = engines["ct-body"].predict([stack])
    body, air, bone = (segment.measurements[0].value for segment in found.segments)
    assert 2500 < body < 4500  # ml; an adult's head without the neck
    assert 10 < air < 200
    assert 300 < bone < 1200
