"""What keeps jobs from being lost or done twice: rows 14 to 20, and all at once, row 30."""

from __future__ import annotations

from tests.faults.defences import Defence

_SCHEDULING = "integration/services/test_schedule.py::test_row_"
_INFERRING = "integration/services/test_infer.py::test_row_"
_CONFINED, _SURVIVE = "integration/test_confined.py::test_row_", "faults/test_jobs_survive.py::"
_CLAIMS, _INFER = "dicom_node.services.claims", "dicom_node.services.infer"
_SCHEDULE, _CHILD = "dicom_node.services.schedule", "dicom_node.worker.confined"
_JUMPS = (
    _SCHEDULING + "20_a_wall_clock_that_jumps_a_day_stops_no_work_and_makes_no_storm[sqlite-back]"
)

DEFENCES = [
    Defence(
        14,
        "what waits is nudged again",
        _SCHEDULING
        + "14_a_nudge_that_dies_with_whoever_took_it_or_was_to_send_it_is_sent_again[sqlite]",
        _SCHEDULE,
        "(Job.nudged_at.is_(None) | again)",
        "Job.nudged_at.is_(None)",
    ),
    Defence(
        14,
        "a queue from which nobody takes is told",
        "integration/services/test_canaries.py::"
        "test_a_queue_that_is_no_longer_served_is_told_until_it_is[sqlite]",
        "dicom_node.services.canaries",
        "            for queue in sorted(self._watch.still(waited), key=str):",
        "            for queue in ():",
    ),
    Defence(
        15,
        "a broker that forgot is told again",
        _SCHEDULING + "15_a_broker_that_forgets_everything_is_nudged_again",
        _SCHEDULE,
        "(Job.nudged_at.is_(None) | again)",
        "Job.nudged_at.is_(None)",
    ),
    Defence(
        15,
        "nudges are not acknowledged",
        "faults/test_nudges.py::test_row_15_a_worker_takes_the_next_nudge_though_redis_swallowed_"
        "its_acknowledgement",
        "dicom_node.services.dispatch",
        '        task_queues={name: {"no_ack": True} for name in QUEUES},',
        "        task_acks_late=True, worker_prefetch_multiplier=1,",
    ),
    Defence(
        15,
        "a broker that is away is tried once",
        _SCHEDULING + "15_a_broker_that_is_gone_costs_its_timeout_and_nothing_else[killed]",
        "dicom_node.services.dispatch",
        '        self._app.conf.broker_transport_options["max_retries"] = len(hosts) - 1\n',
        "",
    ),
    Defence(
        15,
        "a broker that was waited for in vain is left alone for as long",
        _SCHEDULING + "15_a_broker_that_is_gone_costs_its_timeout_and_nothing_else[frozen]",
        "dicom_node.services.dispatch",
        "            self._rests_until = now + (now - begun)\n",
        "            del now\n",
    ),
    Defence(
        15,
        "a Redis that died is started again",
        _SURVIVE + "test_row_15_a_redis_that_is_killed_is_started_again_and_no_job_is_lost",
        "dicom_node.cli.supervise",
        "                _look_after(child)",
        "                pass",
    ),
    Defence(
        16,
        "a claim is a compare-and-set on a locked row",
        _INFERRING + "16_two_workers_that_are_nudged_for_one_job_claim_it_once[postgresql]",
        _CLAIMS,
        "        .where(table.id == row.id, table.state == before, table.token == row.token)",
        "        .where(table.id == row.id)",
        (
            (
                _INFER,
                "        ready = ready.with_for_update(skip_locked=True, of=Job)",
                "        pass",
            ),
        ),
    ),
    Defence(
        17,
        "a stale token writes nothing",
        _INFERRING + "17_a_result_is_discarded_when_the_lease_was_taken_back[sqlite]",
        _CLAIMS,
        "        .where(table.id == row.id, table.state == during, table.token == row.token)",
        "        .where(table.id == row.id)",
    ),
    Defence(
        17,
        "what dead and frozen workers held is taken back",
        _SCHEDULING + "17_a_job_is_taken_back_when_its_beat_stands_still_and_not_before[sqlite]",
        _SCHEDULE,
        "        self._take_back()\n",
        "",
    ),
    Defence(
        17,
        "a worker beats for what its child runs",
        _CONFINED + "17_the_parent_beats_for_what_its_child_runs",
        _CHILD,
        "        with beating(lambda: claims.beat_owned(node), node.settings.worker.lease / 4):",
        "        if True:",
    ),
    Defence(
        17,
        "what a dead child held is failed at once",
        _CONFINED + "17_a_kill_at_each_step_of_a_job_costs_an_attempt_and_leaves_nothing[three]",
        _CHILD,
        "            return break_off(node, reason.removeprefix(LATER), counts)",
        "            return 0",
    ),
    Defence(
        18,
        "attempts are counted before they run",
        _CONFINED + "18_a_study_that_crashes_its_process_is_tried_alone_and_given_up",
        _CLAIMS,
        "            attempts=table.attempts + 1,",
        "",
    ),
    Defence(
        18,
        "what failed before runs alone",
        _CONFINED + "18_a_study_that_crashes_its_process_is_tried_alone_and_given_up",
        _INFER,
        ' == "image" and not first.attempts:',
        ' == "image":',
        ((_INFER, "Job.id != first.id, Job.attempts == 0\n", "Job.id != first.id\n"),),
    ),
    Defence(
        18,
        "what kills its workers is given up",
        _SCHEDULING + "18_a_job_that_kills_its_workers_goes_to_the_dead_letters[sqlite]",
        _SCHEDULE,
        "        last = job.attempts >= node.settings.worker.attempts",
        "        last = False",
    ),
    Defence(
        19,
        "a run has a deadline",
        _CONFINED + "19_a_hang_is_ended_at_the_deadline_and_memory_at_its_limit",
        _CHILD,
        "                if time.monotonic() > until:",
        "                if False:",
    ),
    Defence(
        19,
        "a run has a limit of memory",
        _CONFINED + "19_a_hang_is_ended_at_the_deadline_and_memory_at_its_limit",
        _CHILD,
        "                if _memory(child.pid) > worker.memory_mb << 20:",
        "                if False:",
    ),
    Defence(
        19,
        "a full device gets a smaller batch",
        "unit/inference/test_engine.py::test_row_19_a_full_device_halves_the_batch_and_the_answer_"
        "stays[MemoryError]",
        "inference.runner",
        "                self._lean(error)\n                continue",
        "                raise",
    ),
    Defence(
        20,
        "life is judged by counters, not by the wall clock",
        _SCHEDULING + "20_a_wall_clock_that_jumps_a_day_takes_nothing_back[sqlite]",
        _SCHEDULE,
        "        still = self._processes.still({p.id: p.beat for p in processes})",
        "        still = {\n            p.id for p in processes"
        " if p.beat_at + timedelta(seconds=20) < self._node.now()\n        }",
    ),
    Defence(
        20,
        "a nudge of tomorrow counts as lost",
        _JUMPS,
        _SCHEDULE,
        "has_come(Job.nudged_at, now - after, longest=after)",
        "Job.nudged_at <= now - after",
    ),
    Defence(
        20,
        "a wait that is longer than any counts as over",
        _JUMPS,
        "dicom_node.services.deliveries",
        "has_come(Delivery.next_at, node.now(), longest)",
        "(Delivery.next_at <= node.now())",
    ),
    Defence(
        20,
        "a study's waits begin anew where the clock was set back",
        _JUMPS,
        "dicom_node.services.complete",
        "now if at > now + longest else at for at in",
        "at for at in",
    ),
    Defence(
        20,
        "a file's age is counted from when it was seen, by no clock that jumps",
        _SCHEDULING + "20_a_clock_that_jumps_while_a_commit_waits_costs_no_file[sqlite]",
        _SCHEDULE,
        "            if now - first < GRACE:",
        "            if node.now().timestamp() - path.stat().st_mtime < GRACE:",
    ),
    Defence(
        30,
        "what was not stored is not acknowledged",
        "faults/test_rows_studies.py::test_row_30_a_minute_of_everything_at_random",
        "dicom_node.listener.storage",
        "        return status.Answer(status.SUCCESS) if self._failure is None else self._refuse()",
        "        return status.Answer(status.SUCCESS)",
    ),
]
