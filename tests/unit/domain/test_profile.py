from __future__ import annotations

from itertools import product

import pytest

from dicom_node.domain.profile import (
    DEFAULT,
    Capture,
    Compression,
    Document,
    Encoding,
    Identifiers,
    Profile,
    ScForm,
    SegForm,
    SrForm,
    after_refusal,
    describe,
    form_of,
    layouts,
)
from dicom_node.errors import ConfigurationError


def every_profile() -> list[Profile]:
    made = []
    for choice in product(Encoding, Compression, Document, Identifiers, Capture):
        try:
            made.append(Profile(*choice))
        except ConfigurationError:
            continue
    return made


PROFILES = every_profile()


def test_most_profiles_make_sense() -> None:
    assert len(PROFILES) > 150


@pytest.mark.parametrize("profile", PROFILES, ids=str)
class TestEveryProfile:
    def test_every_layout_tells_the_result_in_words(self, profile: Profile) -> None:
        for layout in layouts(profile):
            assert any(isinstance(form, SrForm | ScForm) for form in layout)

    def test_a_report_cites_a_segmentation_that_goes_with_it(self, profile: Profile) -> None:
        for layout in layouts(profile):
            for form in layout:
                if isinstance(form, SrForm) and form.cites:
                    assert form.cites in layout

    def test_probabilities_never_go_alone(self, profile: Profile) -> None:
        for layout in layouts(profile):
            kinds = [form.encoding for form in layout if isinstance(form, SegForm)]
            assert Encoding.FRACTIONAL not in kinds or Encoding.BINARY in kinds

    def test_the_first_is_what_was_asked_for(self, profile: Profile) -> None:
        first = next(layouts(profile))
        assert SegForm(profile.segmentation, profile.compression) in first or (
            profile.segmentation is Encoding.NONE
        )
        documents = [form.document for form in first if isinstance(form, SrForm)]
        assert documents == [profile.report] * (profile.report is not Document.NONE)
        if profile.capture is Capture.ALWAYS:
            assert ScForm() in first

    def test_none_comes_twice(self, profile: Profile) -> None:
        found = list(layouts(profile))
        assert len(found) == len(set(found))

    def test_refusing_one_form_after_another_ends(self, profile: Profile) -> None:
        refused: set[str] = set()
        layout = after_refusal(profile, refused)
        for _ in range(50):
            if layout is None:
                break
            assert not refused & {str(form) for form in layout}
            refused.add(str(layout[-1]))
            layout = after_refusal(profile, refused)
        assert layout is None

    def test_its_words_read_back(self, profile: Profile) -> None:
        assert Profile.parse(profile.told()) == profile
        for layout in layouts(profile):
            assert tuple(form_of(str(form)) for form in layout) == layout
            assert describe(layout)

    def test_what_cannot_be_written_is_not_offered(self, profile: Profile) -> None:
        for layout in layouts(profile, {Encoding.LABELMAP, Encoding.FRACTIONAL}):
            encodings = {form.encoding for form in layout if isinstance(form, SegForm)}
            assert encodings <= {Encoding.BINARY}


def test_the_default_is_a_binary_segmentation_and_a_comprehensive_3d_report() -> None:
    assert (SegForm(), SrForm()) == DEFAULT
    assert Profile().told() == {}


def test_what_is_refused_gives_way_to_what_every_archive_keeps() -> None:
    steps = [describe(layout) for layout in layouts(Profile())]
    assert steps == [
        "BINARY segmentation, Comprehensive 3D SR",
        "BINARY segmentation, Enhanced SR",
        "BINARY segmentation, secondary capture",
        "Comprehensive 3D SR, secondary capture",
        "Enhanced SR, secondary capture",
        "secondary capture",
        "Comprehensive 3D SR",
        "Enhanced SR",
    ]


@pytest.mark.parametrize("text", ["", "seg:", "seg:surface", "sr:enhanced:viewer>sc", "pr", "sc:1"])
def test_a_text_that_is_no_form_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        form_of(text)
