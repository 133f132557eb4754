"""Owns the way from a closed study to its jobs: rules, the models they name, the inputs chosen.

Refuses to know how jobs are stored and when they run. A rule's condition is judged candidate by
candidate; its models choose among the candidates that satisfy it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dicom_node.domain.conditions import Condition, Verdict, parse
from dicom_node.domain.job import Input, Priority, inputs_digest
from dicom_node.domain.model import ModelState, ModelVersion
from dicom_node.domain.selection import candidates, choose
from dicom_node.domain.study import Candidate, InstanceFacts, by_series
from dicom_node.errors import ConfigurationError

_KEYS = {"name", "when", "models", "destinations", "priority", "expect_instances", "enabled"}


@dataclass(frozen=True)
class Rule:
    """Which studies go to which models, and where their results go.

    Attributes:
        expect_instances: how many instances that satisfy ``when`` make the study complete.
    """

    name: str
    when: Condition
    models: tuple[str, ...]
    destinations: tuple[str, ...]
    priority: Priority = Priority.ROUTINE
    expect_instances: int | None = None
    enabled: bool = True
    source: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class ModelChoice:
    """What one model made of each candidate that a rule let through."""

    rule: str
    model: str
    taken: tuple[str, ...]
    reasons: tuple[tuple[str, bool, str], ...]  # candidate UID, taken, why


@dataclass(frozen=True)
class RuleVerdict:
    """Whether a rule matched, and its verdict on each series and, where they differ, its images."""

    rule: str
    matched: bool
    verdicts: tuple[tuple[str, Verdict], ...]  # candidate UID (or "3 images of" it), verdict
    note: str = ""


@dataclass(frozen=True)
class JobPlan:
    """A job to be made: one model on chosen inputs, for all rules that want just that."""

    model: ModelVersion
    inputs: tuple[Input, ...]
    priority: Priority
    destinations: tuple[str, ...]
    rules: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of the inputs."""
        return inputs_digest(self.inputs)


@dataclass(frozen=True)
class Plan:
    """What follows from a study, and why."""

    jobs: tuple[JobPlan, ...]
    rules: tuple[RuleVerdict, ...]
    choices: tuple[ModelChoice, ...]


def parse_rules(document: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Read a rules file.

    Args:
        document: as TOML gives it: ``[[rule]]`` tables.

    Raises:
        ConfigurationError: names the rule, the key and what is wrong with it.
    """
    if unknown := sorted(set(document) - {"rule"}):
        raise ConfigurationError(f"unknown key {unknown[0]!r}; rules are [[rule]] tables")
    tables = document.get("rule", [])
    if not isinstance(tables, list):
        raise ConfigurationError("rules are written as [[rule]], with two brackets")
    rules = tuple(_rule(table, n) for n, table in enumerate(tables, 1))
    names = [rule.name for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"two rules are called {twice[0]!r}")
    return rules


def _rule(table: Any, number: int) -> Rule:
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"rule {number}: a table is needed, not {table!r}")
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"rule {number}: name: text is needed")
    where = f"rule {name!r}"
    if unknown := sorted(set(table) - _KEYS):
        raise ConfigurationError(f"{where}: unknown key {unknown[0]!r}; known are {sorted(_KEYS)}")
    priority = table.get("priority", "routine")
    if not isinstance(priority, str) or priority.upper() not in Priority.__members__:
        raise ConfigurationError(f"{where}: priority: stat or routine, not {priority!r}")
    expected = table.get("expect_instances")
    if expected is not None and (type(expected) is not int or expected < 1):  # True is no count
        raise ConfigurationError(f"{where}: expect_instances: a count of at least 1 is needed")
    enabled = table.get("enabled", True)
    if not isinstance(enabled, bool):
        raise ConfigurationError(f"{where}: enabled: true or false is needed")
    return Rule(
        name=name,
        when=parse(table.get("when", {}), f"{where}: when"),
        models=_names(table, "models", where),
        destinations=_names(table, "destinations", where),
        priority=Priority[priority.upper()],
        expect_instances=expected,
        enabled=enabled,
        source=table,
    )


def _names(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    names = table.get(key)
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigurationError(f"{where}: {key}: a list of names is needed")
    return tuple(names)


def judge_rule(rule: Rule, instances: Sequence[InstanceFacts]) -> RuleVerdict:
    """Judge a rule on each series of a study, for ``why`` and ``routes test``.

    Where it holds for some images of a series, and not for all and the series itself, the images'
    verdicts follow the series': models that take images are offered each by itself.
    """
    verdicts: list[tuple[str, Verdict]] = []
    for series in _series(instances):
        whole = rule.when.judge(series)
        verdicts.append((series.uid, whole))
        images: dict[Verdict, list[str]] = {}
        for image in series.instances:
            verdict = rule.when.judge(Candidate(image.sop_instance_uid, (image,)))
            images.setdefault(verdict, []).append(image.sop_instance_uid)
        held = {verdict.holds for verdict in images}
        if True in held and not (held == {True} and whole.holds):
            # Thousands of images share a few verdicts: each is kept once.
            verdicts += [
                (uids[0] if len(uids) == 1 else f"{len(uids)} images of {series.uid}", verdict)
                for verdict, uids in images.items()
            ]
    matched = rule.enabled and any(verdict.holds for _, verdict in verdicts)
    return RuleVerdict(rule.name, matched, tuple(verdicts), "" if rule.enabled else "switched off")


def expected_missing(rule: Rule, instances: Sequence[InstanceFacts]) -> int | None:
    """How many instances a rule that states a count still waits for; None where it says nothing."""
    if rule.expect_instances is None or not rule.enabled:
        return None
    matching = sum(len(s.instances) for s in _series(instances) if rule.when.judge(s).holds)
    return max(rule.expect_instances - matching, 0) if matching else None


def _series(instances: Iterable[InstanceFacts]) -> list[Candidate]:
    """Whole series, whatever the sizes of their images: no model has cut them into stacks yet."""
    images = by_series(instance for instance in instances if instance.is_image)
    return [Candidate(uid, tuple(members)) for uid, members in images.items()]


def plan(
    instances: Sequence[InstanceFacts], rules: Iterable[Rule], models: Sequence[ModelVersion]
) -> Plan:
    """Decide which jobs a complete study makes.

    Rules that want the same model on the same inputs make one job: the more urgent priority, the
    destinations of all. Shadow versions run beside the active one and deliver nowhere.
    """
    verdicts: list[RuleVerdict] = []
    choices: list[ModelChoice] = []
    jobs: dict[tuple[int, str], JobPlan] = {}
    for rule in rules:
        verdict = judge_rule(rule, instances)
        missing = [n for n in rule.models if not _versions(n, models)] if verdict.matched else []
        if missing:
            note = f"names {', '.join(missing)}, of which no version is active"
            verdict = replace(verdict, note=note)
        verdicts.append(verdict)
        if not verdict.matched:
            continue
        for model in (m for name in rule.models for m in _versions(name, models)):
            choice, wanted = _jobs(rule, model, instances)
            choices.append(choice)
            for job in wanted:
                key = (model.id, job.digest)
                jobs[key] = _merge(jobs[key], job) if key in jobs else job
    return Plan(tuple(jobs.values()), tuple(verdicts), tuple(choices))


def _versions(name: str, models: Sequence[ModelVersion]) -> list[ModelVersion]:
    """Active and shadow versions of ``name``, or the one that ``name@version`` names."""
    running = (ModelState.ACTIVE, ModelState.SHADOW)
    return [m for m in models if name in (m.name, m.title) and m.state in running]


def _jobs(
    rule: Rule, model: ModelVersion, instances: Sequence[InstanceFacts]
) -> tuple[ModelChoice, list[JobPlan]]:
    offered = candidates(instances, model.criteria)
    matching = [candidate for candidate in offered if rule.when.judge(candidate).holds]
    chosen = choose(model.criteria, matching)
    reasons = [(c.candidate.uid, c.taken, c.reason) for c in chosen]
    let_through = {candidate.uid for candidate in matching}
    reasons += [
        (c.uid, False, f"rule {rule.name!r} does not hold")
        for c in offered
        if c.uid not in let_through
    ]
    taken = [choice.candidate for choice in chosen if choice.taken]
    destinations = rule.destinations if model.state is ModelState.ACTIVE else ()
    jobs = [
        JobPlan(model, _inputs(candidate), _urgency(rule, candidate), destinations, (rule.name,))
        for candidate in taken
    ]
    uids = tuple(candidate.uid for candidate in taken)
    return ModelChoice(rule.name, model.title, uids, tuple(reasons)), jobs


def _inputs(candidate: Candidate) -> tuple[Input, ...]:
    return tuple(Input(i.sop_instance_uid, i.sha256) for i in candidate.instances)


def _urgency(rule: Rule, candidate: Candidate) -> Priority:
    """STAT by the rule, or because the modality's request said so (0040,1003)."""
    asked = {value.upper() for value in candidate.values("priority")}
    return Priority.STAT if asked & {"STAT", "HIGH"} else rule.priority


def _merge(first: JobPlan, second: JobPlan) -> JobPlan:
    return replace(
        first,
        priority=min(first.priority, second.priority),
        destinations=tuple(dict.fromkeys(first.destinations + second.destinations)),
        rules=first.rules + second.rules,
    )
