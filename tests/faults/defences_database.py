"""What keeps a database that does not answer from holding up those who wait: row 5."""

from __future__ import annotations

from tests.faults.defences import Defence

_RECEIVING = "integration/services/test_receive.py::test_row_"
_POSTGRESQL = "dicom_node.store.postgresql"

DEFENCES = [
    Defence(
        5,
        "a lock of PostgreSQL's is waited for so long and no longer",
        _RECEIVING + "05_a_locked_table_is_unavailable_and_no_file_stays",
        _POSTGRESQL,
        "-c lock_timeout={round(1000 * busy)} ",
        "",
    ),
    Defence(
        5,
        "a server that is frozen is given up",
        _RECEIVING
        + "05_a_frozen_server_is_unavailable_and_in_the_commit_unknown[INSERT INTO studies]",
        _POSTGRESQL,
        "            elif time.monotonic() - heard > SILENT_SECONDS:",
        "            elif False:",
    ),
    Defence(
        5,
        "a COMMIT that is not answered counts as unknown",
        _RECEIVING + "05_a_frozen_server_is_unavailable_and_in_the_commit_unknown[COMMIT]",
        _POSTGRESQL,
        "                self.close()\n",
        "",
    ),
]
