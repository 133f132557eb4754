"""The defences of rows 21 to 25: deliveries, and what destinations say of them."""

from __future__ import annotations

from tests.faults.defences import Defence

_DELIVERY = "faults/test_rows_delivery.py::test_row_"
_COMMITMENTS = "integration/services/test_commitments.py::test_row_"
_BREAKER, _STATUS = "dicom_node.services.breaker", "dicom_node.dimse.status"
_DELIVER, _SCHEDULE = "dicom_node.services.deliver", "dicom_node.services.schedule"
_PURGE, _PROMISE = "dicom_node.services.purge", "integration/services/test_purge.py::test_row_"
_ASKING, _TOLD = "dicom_node.services.commitments", "dicom_node.services.confirmations"

DEFENCES = [
    Defence(
        9,
        "a committed UID with two contents keeps the one in quarantine",
        _PROMISE + "09_of_what_was_committed_no_content_goes_by_the_word_of_an_archive",
        _PURGE,
        "        free = settled.where(Instance.committed_at.is_(None))",
        "        free = settled",
    ),
    Defence(
        9,
        "a committed UID with two contents keeps the one that is held",
        _PROMISE + "09_of_what_was_committed_no_content_goes_by_the_word_of_an_archive",
        _PURGE,
        " & set(session.scalars(twice))",
        " & set()",
        ((_PURGE, " & ~_TWO_CONTENTS,", ","),),
    ),
    Defence(
        12,
        "images are decoded where nothing else can hang or die",
        _DELIVERY + "12_images_that_no_decoder_survives_cost_one_attempt_of_one_delivery[crashes]",
        "dicom_node.services.forms",
        "nullcontext(_pictures(source, read)) if read else again",
        "nullcontext(_pictures(source, read or (lambda: "
        "__import__('inference.reading').reading.read_files(files))))",
    ),
    Defence(
        12,
        "who reads images has a deadline",
        _DELIVERY + "12_images_that_no_decoder_survives_cost_one_attempt_of_one_delivery[hangs]",
        "dicom_node.services.pictures",
        "    child.timer.start()",
        "    pass",
    ),
    Defence(
        21,
        "a destination that is away is left alone",
        _DELIVERY
        + "21_a_destination_that_is_down_for_an_hour_delays_no_other_and_is_probed_rarely",
        _BREAKER,
        "    return Destination.closed_until.is_(None)",
        "    return Destination.id.is_not(None)",
    ),
    Defence(
        21,
        "an echo alone forgets no failures",
        _DELIVERY + "21_a_pacs_that_answers_echoes_and_nothing_else_is_left_alone_ever_longer",
        _BREAKER,
        ".values(closed_until=claimed_until, failures=Destination.failures + 1)",
        ".values(closed_until=claimed_until, failures=settings.breaker_failures - 1)",
    ),
    Defence(
        21,
        "an answer is not waited for without end",
        _DELIVERY + "21_a_pacs_that_hangs_is_given_up_and_the_others_flow[hangs]",
        "dicom_node.dimse.transport",
        "                if lost or time.monotonic() - quiet_since > sock.limits.idle:",
        "                if lost:",
    ),
    Defence(
        21,
        "a write is not waited for without end",
        _DELIVERY + "21_a_pacs_that_hangs_is_given_up_and_the_others_flow[closes its window]",
        "dicom_node.dimse.transport",
        "                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))",
        "                self.socket.settimeout(None)",
        (("dicom_node.dimse.transport", 'if hasattr(socket, "TCP_USER_TIMEOUT"):', "if False:"),),
    ),
    Defence(
        21,
        "one process probes",
        _DELIVERY + "21_a_closed_destination_is_probed_by_one_process",
        _BREAKER,
        "    mine = Destination.id == destination_id, Destination.closed_until == row.closed_until",
        "    mine = (Destination.id == destination_id,)",
    ),
    Defence(
        22,
        "an answer that is lost is tried again",
        _DELIVERY
        + "22_a_pacs_that_is_full_then_not_and_one_that_drops_its_response_get_the_same_bytes",
        "dicom_node.destinations.dimse",
        "        raise DestinationClosed(_answered(answer), Retry.LATER)",
        "        raise DestinationClosed(_answered(answer), Retry.NEVER)",
    ),
    Defence(
        22,
        "who is full is asked again",
        _DELIVERY
        + "22_a_pacs_that_is_full_then_not_and_one_that_drops_its_response_get_the_same_bytes",
        _STATUS,
        "    return Meaning.NEVER if refused or status ==",
        "    return Meaning.NEVER if status or status ==",
    ),
    Defence(
        23,
        "what is refused for good is not sent again",
        _DELIVERY + "23_what_is_refused_for_good_is_dead_with_an_alert_until_it_is_retried[43264]",
        _STATUS,
        "    refused = status & 0xFF00 == 0xA900 or status & 0xF000 == 0xC000",
        "    refused = False",
    ),
    Defence(
        23,
        "somebody is told of it",
        _DELIVERY + "23_what_is_refused_for_good_is_dead_with_an_alert_until_it_is_retried[43264]",
        _DELIVER,
        '    alert_once(session, now, kind, subject, f"{answer}; {follows}")',
        "    del now, kind, subject, answer, follows",
    ),
    Defence(
        23,
        "whose a result is is looked at before it is sent",
        _DELIVERY + "23_a_result_whose_study_names_another_patient_now_is_dead_with_an_alert",
        _DELIVER,
        "    if same_study and not conflicting_patients([patient_of(header), sending.patient]):",
        "    if True:",
    ),
    Defence(
        24,
        "a lost answer is asked for again",
        _COMMITMENTS
        + "24_a_lost_answer_is_asked_for_again_then_queried_and_counts_when_it_comes_late",
        _ASKING,
        "            row.confirm_at = node.now() + _patience(node)",
        "            row.confirm_at = None",
    ),
    Defence(
        24,
        "a commitment that fails has consequences",
        _COMMITMENTS + "24_what_a_commitment_fails_for_is_sent_again_as_the_same_bytes",
        _TOLD,
        "        elif uid in report.failed and row.id not in asked_since:",
        "        elif False:",
    ),
    Defence(
        24,
        "what is committed stays so, and a report counts once",
        _COMMITMENTS + "24_a_commitment_that_comes_twice_counts_once",
        _TOLD,
        "        elif row.answered_at is not None:",
        "        elif False:",
        (
            (
                "dicom_node.domain.delivery",
                "DOUBTED = ARRIVED - {DeliveryState.COMMITTED}",
                "DOUBTED = ARRIVED",
            ),
        ),
    ),
    Defence(
        24,
        "what is committed is not purged before an archive confirms that it holds it",
        _PROMISE + "24_what_was_committed_stays_without_an_archive",
        _PURGE,
        "    unsafe = {row.id for row in owed if row.sop_instance_uid not in archived}",
        "    unsafe = set()",
    ),
    Defence(
        25,
        "what the dead were sending is taken back",
        _DELIVERY
        + "25_a_sender_that_is_killed_at_a_step_leaves_nothing_lost_and_nothing_altered[claimed]",
        _SCHEDULE,
        "                take_back(node, row)",
        "                pass",
    ),
    Defence(
        25,
        "what kills its senders is given up",
        "integration/services/test_schedule.py::test_row_25_a_delivery_that_kills_its_senders_goes_"
        "to_the_dead_letters[sqlite]",
        "dicom_node.services.deliver",
        "        row.attempts >= settings.attempts and not isinstance(outcome, Untried)",
        "        False",
    ),
    Defence(
        25,
        "a question is to be asked again before it is asked",
        _DELIVERY + "25_a_sender_that_is_killed_at_a_step_leaves_nothing_lost_and_nothing_altered"
        "[question written]",
        _ASKING,
        "            row.confirm_at = node.now() + _patience(node)",
        "            row.confirm_at = None",
    ),
]
