from __future__ import annotations

from itertools import product

import pytest

from dicom_node.domain.model import ModelState, ModelVersion, check_transition
from dicom_node.domain.selection import Criteria
from dicom_node.errors import InvalidTransition

ALLOWED = {
    ("staged", "shadow"),
    ("staged", "active"),
    ("staged", "retired"),
    ("shadow", "active"),
    ("shadow", "retired"),
    ("active", "retired"),
    ("retired", "shadow"),
    ("retired", "active"),
}


@pytest.mark.parametrize(("old", "new"), list(product(ModelState, ModelState)))
def test_a_model_takes_the_steps_of_the_table_and_no_other(
    old: ModelState, new: ModelState
) -> None:
    if (old.value, new.value) in ALLOWED:
        check_transition("lung@1", old, new)
    else:
        with pytest.raises(InvalidTransition, match=f"lung@1 is {old}: cannot become {new}"):
            check_transition("lung@1", old, new)


def test_its_title_is_what_rules_write() -> None:
    version = ModelVersion(1, "lung", "1.2.0", ModelState.ACTIVE, Criteria("image", ("DX",)))
    assert version.title == "lung@1.2.0"
