"""Owns the identity of results: every UID and number that we give out, drawn from its inputs.

Refuses randomness and clocks: the same inputs, model, generation and node give the same UIDs, so
that a job that runs twice makes the same object twice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256

from dicom_node.domain.profile import Form, SegForm
from dicom_node.results.types import BuildContext, ModelIdentity, Source

SERIES_BASE = 9_000_000
"""Above the numbers that modalities and reconstructions give to their series."""


_SLOTS = {"binary": 1, "sr": 2, "labelmap": 3, "fractional": 4, "sc": 5}
"""Last digit of the series number by kind of output."""


def make_uid(*parts: object) -> str:
    """``2.25.`` and a UUID of version 8 made of the first 128 bits of SHA-256 (PS3.5 B.2).

    Args:
        parts: anything that JSON can write; JSON keeps ("ab", "c") and ("a", "bc") apart.
    """
    digest = sha256(json.dumps(parts, ensure_ascii=True).encode()).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | 0x8 << 76  # version 8 (RFC 9562, 5.8)
    number = number & ~(0x3 << 62) | 0x2 << 62  # variant
    return f"2.25.{number}"


@dataclass(frozen=True)
class Identity:
    """The UIDs of all objects that one job may make."""

    source: Source
    model: ModelIdentity
    context: BuildContext

    def instance(self, form: Form, page: int = 1) -> str:
        """SOP Instance UID of one form of the result; of its ``page`` where it has several."""
        return self._of_inputs("instance", str(form), page)

    def dimensions(self, form: SegForm) -> str:
        """Dimension Organization UID of a segmentation."""
        return self._of_inputs("dimensions", str(form))

    def tracking(self, what: str, index: int) -> str:
        """Tracking UID of one segment or finding; all forms of the result share it."""
        return self._of_inputs("tracking", what, index)

    def series(self, form: Form) -> str:
        """Series Instance UID: one series per form of output, model and source series.

        The source series is part of it because all images of a series share one Frame of
        Reference (PS3.3 A.1.2.5), and those of two source series need not.
        """
        return make_uid(
            "series",
            str(form),
            *self._common(),
            str(self.source.first.StudyInstanceUID),
            sorted({str(dataset.SeriesInstanceUID) for dataset in self.source.datasets}),
        )

    def series_number(self, form: Form) -> int:
        """Stable for a kind of output and a model of that name, whatever its version."""
        slot = int.from_bytes(sha256(self.model.name.encode()).digest()[:4], "big") % 90_000
        kind = str(form.encoding) if isinstance(form, SegForm) else form.kind
        return SERIES_BASE + 10 * slot + _SLOTS[kind]

    def instance_number(self, page: int | None = None) -> int:
        """Tells the images of one source series apart, and a rerun from what it supersedes.

        Args:
            page: from 1 where one result has several instances in its series.
        """
        number = 1
        if len(self.source.datasets) == 1:
            try:
                number = int(self.source.first.get("InstanceNumber") or 1)
            except (TypeError, ValueError):
                number = 1
        number = (self.context.generation - 1) * 100_000 + min(max(number, 1), 99_999)
        return number if page is None else number * 10 + page

    def device(self) -> str:
        """Device UID: another for every model version and every node."""
        return make_uid("device", self.model.bundle_digest, self.context.node_salt)

    def _of_inputs(self, what: str, *parts: str | int) -> str:
        inputs = sorted(
            (str(dataset.SOPInstanceUID), digest)
            for dataset, digest in zip(self.source.datasets, self.source.digests, strict=True)
        )
        return make_uid(
            what,
            *parts,
            *self._common(),
            inputs,
            sorted(self.model.parameters.items()),
            self.context.generation,
            sorted(sr.sop_instance_uid for sr in self.context.predecessors.values()),
        )

    def _common(self) -> tuple[str, ...]:
        return (self.model.bundle_digest, self.context.builder, self.context.node_salt)
