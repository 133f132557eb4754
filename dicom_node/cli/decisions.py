"""Owns how rules' verdicts and models' choices are printed, of a stored study or of a trial.

What many candidates share is told once. Refuses to know how they came about.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dicom_node.cli.output import Part, many, say

Labels = Mapping[str, str]
_YES, _NO = ("✓ ", "green"), ("✗ ", "red")
_NAMED = 3  # candidates named one by one; of more, the count is told


def labels_of(series: Sequence[Mapping[str, Any]]) -> Labels:
    """What to call each series: its number, modality and size."""
    return {
        row["series"]: f"series {row['number'] if row['number'] is not None else '-'} "
        f"({row['modality'] or 'no modality'}, {many(row['instances'], 'instance')})"
        for row in series
    }


def print_rules(rules: Sequence[Mapping[str, Any]], labels: Labels, indent: int) -> None:
    """Each rule, whether it matched, and the tree of its verdict for each series."""
    if not rules:
        say("no rule was in force", indent=indent)
    for rule in rules:
        state = "matched" if rule["matched"] else "did not match"
        note = f"; {rule['note']}" if rule["note"] else ""
        say(
            _mark(rule["matched"]),
            "rule ",
            (rule["rule"], "bold"),
            f" {state}{note}",
            indent=indent,
        )
        trees: defaultdict[tuple[Any, ...], list[str]] = defaultdict(list)
        for uid, verdict in rule["verdicts"]:
            trees[tuple(_lines(verdict))].append(uid)
        for lines, uids in trees.items():
            say((_names(uids, labels), "bright_black"), indent=indent + 4)
            for depth, holds, text in lines:
                say(_mark(holds), text, indent=indent + 6 + 2 * depth)
        if not rule["verdicts"]:
            say("there was no image to judge", indent=indent + 4)


def print_choices(choices: Sequence[Mapping[str, Any]], labels: Labels, indent: int) -> None:
    """What each model made of each series or image, and why."""
    for choice in choices:
        by = f" asked by rule {choice['rule']!r}"
        say("model ", (choice["model"], "bold"), by, indent=indent)
        reasons: defaultdict[tuple[bool, str], list[str]] = defaultdict(list)
        for uid, taken, why in choice["reasons"]:
            reasons[taken, why].append(uid)
        for (taken, why), uids in sorted(reasons.items(), key=lambda entry: not entry[0][0]):
            verb = "takes" if taken else "passes over"
            say(_mark(taken), f"{verb} {_names(uids, labels)}: {why}", indent=indent + 4)
        if not reasons:
            say("there was nothing to choose from", indent=indent + 4)


def _mark(holds: bool) -> Part:
    return _YES if holds else _NO


def _names(uids: Sequence[str], labels: Labels) -> str:
    if len(uids) > _NAMED:
        return f"{len(uids)} {'series' if uids[0] in labels else 'images'}"
    return ", ".join(_name(uid, labels) for uid in uids)


def _name(uid: str, labels: Labels) -> str:
    """Of a series, of an image, or of what ``routing.judge_rule`` calls "3 images of" a series."""
    words, _, last = uid.rpartition(" ")
    return f"{words} {labels.get(last, last)}" if words else labels.get(uid, f"image {uid}")


def _lines(verdict: Mapping[str, Any], depth: int = 0) -> list[tuple[int, bool, str]]:
    own = (depth, verdict["holds"], verdict["text"])
    return [own, *(line for part in verdict["parts"] for line in _lines(part, depth + 1))]
