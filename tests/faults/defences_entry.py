"""What keeps out who and what does not belong: rows 10 and 13 over TLS, 12 in pixels, 27."""

from __future__ import annotations

from tests.faults.defences import Defence

_TLS, _BUNDLES = "integration/test_tls.py::test_row_", "faults/test_rows_bundles.py::test_row_27_"
_CONNECTIONS, _TRANSPORT = "dicom_node.listener.connections", "dicom_node.dimse.transport"
_ADMISSION, _MODELS = "dicom_node.services.admission", "dicom_node.services.models"
_BUNDLE = "inference.bundle"
_PIXELS, _READING = "unit/inference/test_pixels.py::test_", "inference.reading"

DEFENCES = [
    Defence(
        10,
        "who does not wait for answers waits for the others",
        "faults/test_rows_wire.py::test_row_10_who_holds_up_the_listener_is_cut_off_and_nobody_waits"
        "_for_him[several floods]",
        "dicom_node.dimse.acceptor",
        "                time.sleep(PAUSE)",
        "                pass",
    ),
    Defence(
        10,
        "handshakes are made beside the accept loop",
        _TLS + "10_fifty_clients_that_stall_in_the_handshake_hold_up_nobody[silent]",
        _CONNECTIONS,
        "            threading.Thread(\n"
        '                target=self._handle, args=(client,), name="connection", daemon=True\n'
        "            ).start()",
        "            self._handle(client)",
    ),
    Defence(
        10,
        "one address has a share of the places",
        _TLS + "10_one_address_cannot_take_all_places",
        _CONNECTIONS,
        "        self._per_address = per_address or maximum",
        "        self._per_address = maximum",
    ),
    Defence(
        10,
        "a modality has a share of the places, where one was entered",
        "integration/test_tls.py::test_a_modality_has_no_more_associations_than_its_own",
        "dicom_node.listener.server",
        "            if admission.maximum_associations is not None"
        " and own >= admission.maximum_associations:",
        "            if False:",
    ),
    Defence(
        10,
        "a write has a deadline",
        "faults/test_rows_wire.py::test_row_10_who_holds_up_the_listener_is_cut_off_and_nobody_"
        "waits_for_him[pipelined flood]",
        _TRANSPORT,
        "self.socket.settimeout(max(deadline - time.monotonic(), 0.001))",
        "self.socket.settimeout(3600)",
        ((_TRANSPORT, '    if hasattr(socket, "TCP_USER_TIMEOUT"):', "    if False:"),),
    ),
    Defence(
        12,
        "declared pixels have a cap",
        _PIXELS + "a_huge_image_is_refused_before_its_data_is_looked_at",
        _READING,
        "    if total > max_pixels:",
        "    if False:",
        ((_READING, "    if size > 4 * max_pixels:", "    if False:"),),
    ),
    Defence(
        12,
        "a codestream is as large as it was declared",
        _PIXELS + "a_codestream_larger_than_declared_is_refused_before_decoding",
        "inference.pixels",
        "        if shape != (declared.rows, declared.columns, declared.samples):",
        "        if False:",
    ),
    Defence(
        13,
        "who is turned away is in the audit trail",
        "integration/test_audit_node.py::test_all_that_a_node_does_reaches_the_repository_and_"
        "only_the_trail_names_the_patient",
        "dicom_node.listener.node",
        "        audit.refused(self._node, address, reason, calling)",
        "        pass",
    ),
    Defence(
        13,
        "a client must show a certificate",
        _TLS + "13_a_client_without_a_good_certificate_or_suite_is_turned_away"
        "[nobody-peer did not return a certificate]",
        "dicom_node.dimse.tls",
        "    context.verify_mode = ssl.CERT_REQUIRED",
        "    context.verify_mode = ssl.CERT_OPTIONAL",
    ),
    Defence(
        13,
        "a title is bound to its certificate",
        _TLS + "13_a_modality_is_bound_to_its_certificate",
        _ADMISSION,
        "    if row.certificates and caller.certificate not in row.certificates:",
        "    if False:",
    ),
    Defence(
        13,
        "an identity that is asked for must be given",
        _TLS + "13_a_user_identity_is_asked_for_where_it_was_entered",
        _ADMISSION,
        "    if row.user_name is not None and not _is(row, caller.identity):",
        "    if caller.identity and not _is(row, caller.identity):",
    ),
    Defence(
        27,
        "an unsigned bundle is refused",
        _BUNDLES + "an_unsigned_bundle_is_refused_before_anything_of_it_is_loaded",
        "dicom_node.services.trust",
        "    if content is None:\n",
        "    if content is None: return Trust()\n    if content is None:\n",
    ),
    Defence(
        27,
        "weights are safetensors",
        _BUNDLES + "a_pickle_in_disguise_is_refused_and_not_unpickled",
        _BUNDLE,
        "        return load(content)",
        '        return __import__("pickle").loads(content)',
    ),
    Defence(
        27,
        "files are held against the manifest as they are loaded",
        _BUNDLES + "what_is_swapped_between_check_and_load_is_not_loaded",
        _BUNDLE,
        "    if hashlib.sha256(content).hexdigest() != expected:",
        "    if False:",
    ),
    Defence(
        27,
        "a bundle is the one that was added",
        _BUNDLES + "another_bundle_in_the_place_of_one_that_was_added_runs_no_job",
        _MODELS,
        "    if bundle.digest != digest:",
        "    if False:",
    ),
    Defence(
        27,
        "trust is asked for again when a model is loaded",
        _BUNDLES + "a_key_revoked_since_runs_no_job_and_a_new_signature_lets_it_run",
        _MODELS,
        "    return bundle, trust.check(bundle, node.settings.models)",
        "    return bundle, trust.Trust()",
    ),
]
