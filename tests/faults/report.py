"""Owns what a soak tells of itself: what was done, what it cost, what held.

Refuses to know how any of it was done.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.faults.invariants import Problems


@dataclass
class Report:
    """What was done and what held; `problems` has a list for each invariant."""

    database: str
    seed: int
    minutes: float
    studies: int = 0
    acknowledged: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    attempts: int = 0
    results: int = 0
    sendings: int = 0
    replayed: int = 0
    commitments: int = 0
    healed_after: float = 0.0
    usual: float = 0.0
    problems: dict[str, Problems] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return bool(self.problems) and not any(self.problems.values())

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "faults_in_all": self.faults.total(), "holds": self.holds}

    def as_markdown(self) -> str:
        by_kind = ", ".join(f"{kind} {n}" for kind, n in self.faults.most_common())
        kills = ", ".join(f"{role} {n}" for role, n in self.kills.most_common())
        refused = ", ".join(f"{status} {n}" for status, n in self.refused.most_common())
        rows = {
            "database": self.database,
            "seed": self.seed,
            "minutes": f"{self.minutes:g}, then {self.healed_after:.0f} s to be done",
            "studies": self.studies,
            "instances acknowledged": self.acknowledged,
            "refused, to be sent again": refused or "none",
            "faults": f"{self.faults.total()}: {by_kind}",
            "kills among them": f"{self.kills.total()}: {kills}",
            "jobs": f"{self.jobs}, claimed {self.attempts} times",
            "results": f"{self.results}, sent {self.sendings} times, "
            f"{self.replayed} of them by hand, {self.commitments} committed",
            **{
                name: "holds" if not found else f"BROKEN ({len(found)}): {'; '.join(found[:5])}"
                for name, found in self.problems.items()
            },
        }
        return "\n".join(
            ["| soak | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
        )
