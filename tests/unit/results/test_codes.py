import re

import pytest
from pydicom.sr._concepts_dict import concepts

from dicom_node.results import codes
from inference import measure
from inference.types import Code

OURS = {**vars(codes), **vars(measure)}  # what a model measures has its codes there
TABLE = [value for value in OURS.values() if isinstance(value, Code)] + [
    code
    for table in (codes.PROCEDURES, codes.MODALITIES, codes.LATERALISED)
    for code in table.values()
]
DICTIONARY: dict[tuple[str, str], set[str]] = {}
for scheme, keywords in concepts.items():
    for values in keywords.values():
        for value, (meaning, _) in values.items():
            DICTIONARY.setdefault((scheme, value), set()).add(meaning)

REVIEWED = {
    # Not in pydicom's dictionary, or there with the fully specified name of SNOMED only.
    ("RFC5646", "en", "English"),  # TID 1204
    ("UMLS", "C0034375", "Qualitative Evaluations"),  # TID 1500 row 12
    ("SCT", "276214006", "Finding category"),  # TID 1501 row 3a
    ("SCT", "260753009", "Source"),  # highdicom, for images without a purpose
    ("SCT", "2667000", "Absent"),  # IHE AIR
    ("SCT", "246112005", "Severity"),  # CID 3716's concept name
    ("UCUM", "{pixels}", "pixels"),  # CID 83
    ("UCUM", "mm", "millimeter"),  # CID 7460
    ("UCUM", "ml", "milliliter"),  # CID 7462
    ("SCT", "3341006", "Right lung"),
    ("SCT", "44029006", "Left lung"),
    ("SCT", "9846003", "Right kidney"),
    ("SCT", "18639004", "Left kidney"),
}


@pytest.mark.parametrize("code", TABLE, ids=lambda code: code.meaning)
def test_code_scheme_and_meaning_agree_with_the_dictionary(code: Code) -> None:
    known = code.meaning in DICTIONARY.get((code.scheme, code.value), set())
    assert known != ((code.scheme, code.value, code.meaning) in REVIEWED)


def test_every_reviewed_exception_is_still_in_the_table() -> None:
    assert {(c.scheme, c.value, c.meaning) for c in TABLE} >= REVIEWED


@pytest.mark.parametrize("code", TABLE, ids=lambda code: code.meaning)
def test_codes_fit_their_value_representations(code: Code) -> None:
    assert len(code.value) <= 16 and len(code.scheme) <= 16 and len(code.meaning) <= 64
    assert re.fullmatch(r"[!-~ ]+", code.value + code.scheme + code.meaning)
