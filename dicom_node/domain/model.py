"""Owns the life of a model version; refuses to know bundles and weights."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dicom_node.domain.selection import Criteria
from dicom_node.errors import InvalidTransition


class ModelState(StrEnum):
    """What a model version may do."""

    STAGED = "staged"  # added and verified; not run
    SHADOW = "shadow"  # run beside the active version; results kept, never delivered
    ACTIVE = "active"  # run and delivered; one version per name
    RETIRED = "retired"  # no longer run; its results stay explained


TRANSITIONS: dict[ModelState, frozenset[ModelState]] = {
    ModelState.STAGED: frozenset({ModelState.SHADOW, ModelState.ACTIVE, ModelState.RETIRED}),
    ModelState.SHADOW: frozenset({ModelState.ACTIVE, ModelState.RETIRED}),
    ModelState.ACTIVE: frozenset({ModelState.RETIRED}),
    ModelState.RETIRED: frozenset({ModelState.SHADOW, ModelState.ACTIVE}),
}


@dataclass(frozen=True)
class ModelVersion:
    """A model version as the plan needs it."""

    id: int
    name: str
    version: str
    state: ModelState
    criteria: Criteria
    parameters: str = "{}"

    @property
    def title(self) -> str:
        """``name@version``, as rules and people write it."""
        return f"{self.name}@{self.version}"


def check_transition(title: str, old: ModelState, new: ModelState) -> None:
    """Raise InvalidTransition unless the table allows the step."""
    if new not in TRANSITIONS[old]:
        raise InvalidTransition(f"model {title}", old.value, f"become {new.value}")
