"""Owns the run folder: what was run, on what, how it went, and where it can go on.

Refuses to know how anything is learnt. The folder holds ``recipe.toml`` (as it was given),
``recipe.json`` (all of it, defaults too), ``environment.json``, ``data.json``, ``metrics.csv``,
``checkpoint/last.safetensors`` and, once finished, ``weights.safetensors``. Each file appears whole
or not at all. Neither host nor user is named; samples are, by their data set's pseudonyms.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from training.errors import RunError, listed
from training.prepare import Prepared
from training.recipe import Recipe

WEIGHTS = "weights.safetensors"
METRICS = "metrics.csv"
INSTEAD = "give another --out, or remove the folder"


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows.

    Attributes:
        stage: preparing samples, learning, an epoch that is over, or nothing left to do.
        done: of ``total``: samples, steps of this epoch, or epochs.
        total: see ``done``.
        epoch: counts from 1; 0 before learning.
        epochs: at most.
        part: which samples are prepared, train or val.
        loss: of the last step, or the epoch's mean.
        measures: after an epoch: ``val_loss`` and the headline by its name.
    """

    stage: Literal["prepare", "learn", "epoch", "finished"]
    done: int
    total: int
    epoch: int = 0
    epochs: int = 0
    part: str = ""
    loss: float = float("nan")
    measures: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Checkpoint:
    """Where learning can go on: tensors by name, and everything else as JSON takes it."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A folder that belongs to one recipe.

    Attributes:
        folder: of the run.
        writes: False in all processes of torchrun but the first.
    """

    folder: Path
    writes: bool = True

    @classmethod
    def open(cls, folder: Path, recipe: Recipe, text: str = "") -> Run:
        """A new folder, or one that the same recipe left, but for words that nothing learns from.

        Args:
            folder: made where it is absent.
            recipe: what is run.
            text: its file, kept as it is; a recipe that was altered in memory has none.

        Raises:
            RunError: the folder holds the run of another recipe; tells which keys differ.
        """
        run = cls(folder, int(os.environ.get("RANK", "0")) == 0)
        kept = folder / "recipe.json"
        now = recipe.model_dump(mode="json")
        known = kept.is_file()
        if known:
            differs = _differences(_deciding(json.loads(kept.read_text())), _deciding(now))
            if differs:
                raise RunError(
                    f"{folder.name} holds another recipe's run: {listed(differs)}; {INSTEAD}"
                )
        elif run.writes and folder.is_dir() and _others(folder):
            raise RunError(f"{folder.name} is not empty and holds no run; {INSTEAD}")
        if run.writes:
            folder.mkdir(parents=True, exist_ok=True)
            if text or not known:  # first: from here on the folder is known as a run's
                run._json("recipe.json", now)
            if text:
                run._write("recipe.toml", text.encode())
            (folder / "checkpoint").mkdir(exist_ok=True)
        return run

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to learn."""
        return (self.folder / WEIGHTS).is_file()

    def weights(self) -> dict[str, Tensor]:
        """What a finished run learnt, float32.

        Raises:
            RunError: it is not finished, or the file was altered.
        """
        try:
            return load_file(self.folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self.folder.name}/{WEIGHTS}: {error}; train first") from error

    def environment(self, device: torch.device | str) -> None:
        """Note what this runs on; a run that went on elsewhere tells of each in order."""
        now = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "platform": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "device": str(torch.device(device).type),
        }
        if now["device"] == "cuda":
            now["gpu"] = torch.cuda.get_device_name(device)
        path = self.folder / "environment.json"
        known = json.loads(path.read_text()) if path.is_file() else []
        if now not in known:
            self._json(path.name, [*known, now])

    def data(self, parts: Mapping[str, Prepared]) -> None:
        """Note what is learnt from.

        Raises:
            RunError: the folder's run learnt from other data; tells what differs.
        """
        told = {
            part: {
                "samples": len(p.names),
                "frames": len(p),
                "digest": p.digest,
                "names": list(p.names),
            }
            for part, p in parts.items()
        }
        digests = "".join(f"{part} {p.digest}\n" for part, p in parts.items())
        now = {"digest": hashlib.sha256(digests.encode()).hexdigest(), "parts": told}
        path = self.folder / "data.json"
        if path.is_file():
            before = json.loads(path.read_text())
            if before["digest"] != now["digest"]:
                differs = _other_data(before["parts"], told)
                raise RunError(f"{self.folder.name} learnt from other data: {differs}; {INSTEAD}")
        self._json(path.name, now)

    def metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write ``metrics.csv``, one line an epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write(METRICS, text.getvalue().encode())

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint; one file, so that a kill leaves the old or the new."""
        told = {"scalars": json.dumps(checkpoint.scalars)}
        self._write("checkpoint/last.safetensors", save(checkpoint.tensors, told))

    def load(self) -> Checkpoint | None:
        """The last checkpoint, or None.

        Raises:
            RunError: it cannot be read.
        """
        path = self.folder / "checkpoint" / "last.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                scalars = json.loads((file.metadata() or {})["scalars"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, KeyError, ValueError) as error:
            raise RunError(f"{path.name} is broken ({error}); remove it to begin again") from error
        return Checkpoint(tensors, scalars)

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """Write the weights, which ends the run."""
        self._write(WEIGHTS, save(dict(weights)))

    def _json(self, name: str, value: Any) -> None:
        self._write(name, (json.dumps(value, indent=1) + "\n").encode())

    def _write(self, name: str, content: bytes) -> None:
        if not self.writes:
            return
        path = self.folder / name
        new = path.with_name(path.name + ".new")
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def _deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    """What learning depends on; channels stand in the data's digest."""
    chosen = {name: recipe[name] for name in ("data", "split", "training", "augment")}
    bundle = ("task", "activation", "architecture", "preprocessing")
    return {**chosen, "bundle": {name: recipe["bundle"][name] for name in bundle}}


def _others(folder: Path) -> list[str]:
    """What is in a folder, but for what a kill may have left half written."""
    return [path.name for path in folder.iterdir() if not path.name.endswith(".new")]


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Keys whose values differ, each with both."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            said
            for k in sorted({*before, *now})
            for said in _differences(before.get(k), now.get(k), f"{key}.{k}" if key else k)
        ]
    if before == now:
        return []
    return [f"{key} was {json.dumps(before)[:60]} and is {json.dumps(now)[:60]}"]


def _other_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which samples came, went or changed."""
    said = []
    for part in sorted({*before, *now}):
        old, new = (set(parts.get(part, {}).get("names", [])) for parts in (before, now))
        if gone := sorted(old - new):
            said.append(f"{part} lacks {listed(gone)}")
        if came := sorted(new - old):
            said.append(f"{part} has new {listed(came)}")
        if old == new and before[part]["digest"] != now[part]["digest"]:
            said.append(f"{part} has the same names with other pixels, labels or order")
    return "; ".join(said)
