from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFont

from dicom_node.errors import ResultError
from dicom_node.results.lettering import _DRAWABLE, _PLAIN, drawable, wrapped, written
from dicom_node.results.marks import Heat, Line, Mark, Rectangle, Region, scale_table
from dicom_node.results.overlay import MARGIN, Entry, Sheet, Sides, overlay, overlay_png

RED, BLUE = (230, 60, 40), (60, 120, 240)
GREY = np.full((90, 60), 100, dtype=np.uint8)


def drawn(*layers: tuple[NDArray[np.bool_], tuple[int, int, int], str]) -> NDArray[np.uint8]:
    png = overlay_png(GREY, layers, "Lungs 1.2.0")
    return np.asarray(Image.open(BytesIO(png)))


def square() -> NDArray[np.bool_]:
    mask = np.zeros(GREY.shape, dtype=bool)
    mask[30:60, 20:40] = True
    return mask


def test_the_border_lies_on_the_border_of_the_mask() -> None:
    page = drawn((square(), RED, "Right lung"))
    picture = page[MARGIN : MARGIN + 900, MARGIN : MARGIN + 600].astype(int)
    line = np.argwhere(np.abs(picture - RED).sum(2) < 30)
    assert line.min(axis=0).tolist() == pytest.approx([300, 200], abs=3)
    assert line.max(axis=0).tolist() == pytest.approx([599, 399], abs=3)


def test_the_border_is_a_thin_line() -> None:
    page = drawn((square(), RED, "Right lung"))
    row = page[MARGIN + 450, MARGIN : MARGIN + 600].astype(int)
    assert 6 <= np.count_nonzero(np.abs(row - RED).sum(1) < 60) <= 14


def test_texture_shows_through_and_the_rest_is_untouched() -> None:
    page = drawn((square(), RED, "Right lung"))
    inside, outside = page[MARGIN + 450, MARGIN + 300], page[MARGIN + 100, MARGIN + 100]
    assert outside.tolist() == [100, 100, 100]
    assert inside[0] > 110 and np.abs(inside.astype(int) - 100).max() < 40


def test_what_was_not_found_stands_in_the_legend_only() -> None:
    empty = np.zeros(GREY.shape, dtype=bool)
    page = drawn((empty, BLUE, "Left lung: not found"))
    picture, legend = page[:, : MARGIN + 600], page[:, MARGIN + 600 :].astype(int)
    assert (picture[MARGIN : MARGIN + 900, MARGIN:] == 100).all()
    assert (np.abs(legend - BLUE).sum(2) < 30).any()


def test_the_legend_never_covers_the_image() -> None:
    many = [(square(), RED, f"Structure {i} with a rather long description") for i in range(40)]
    page = drawn(*many)
    assert page.shape[0] > 900 + 2 * MARGIN
    assert page.shape[1] > 600 + 2 * MARGIN


def test_the_same_input_gives_the_same_picture() -> None:
    layers = [(square(), RED, "Right lung, 12 cm²")]
    assert overlay_png(GREY, layers, "T") == overlay_png(GREY, layers, "T")


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ResultError, match="shape"):
        drawn((np.ones((60, 90), dtype=bool), RED, "Right lung"))


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((4, 4), dtype=np.float32),
        np.zeros((0, 4), dtype=np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(picture: NDArray[np.uint8]) -> None:
    with pytest.raises(ResultError, match="picture of shape"):
        overlay_png(picture, [], "T")


SHEET = Sheet(rows=648, columns=1012, panel=340)  # leaves 600 x 600 for the picture


def page(*marks: Mark, image: NDArray[np.uint8] = GREY[:60], **options: object) -> NDArray[np.int_]:
    """A square picture of 60 x 60 pixels, each 10 x 10 on the page; only the picture comes back."""
    drawn = overlay(image, marks, [], "T", sheet=SHEET, **options)  # type: ignore[arg-type]
    assert drawn.shape == (648, 1012, 3) and drawn.dtype == np.uint8
    return drawn[MARGIN : MARGIN + 600, MARGIN : MARGIN + 600].astype(int)


def near(picture: NDArray[np.int_], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.abs(picture - colour).sum(-1) < 40


def test_a_sheet_keeps_its_size_and_counts_what_it_has_no_room_for() -> None:
    few = [Entry(f"Structure {i}", ("volume 12 ml",), colour=RED) for i in range(5)]
    some, many = (overlay(GREY, [], few * n, "T", "Note", sheet=SHEET) for n in (1, 20))
    assert some.shape == many.shape == (648, 1012, 3)
    assert (some[-MARGIN - 40 : -MARGIN] == many[-MARGIN - 40 : -MARGIN]).all()


def test_colour_stays_colour_below_the_marks() -> None:
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    image[..., 2] = 200
    assert page(image=image)[300, 300].tolist() == [0, 0, 200]
    region = Region(np.ones((60, 60), dtype=bool), RED)
    inside = page(region, image=image)[300, 300]
    assert inside[0] > 20 and inside[2] > 150


def test_a_box_is_drawn_round_its_region_and_leaves_it_alone() -> None:
    picture = page(Rectangle(20, 30, 40, 50, BLUE, "7"))
    line = np.argwhere(near(picture, BLUE))
    line = line[line[:, 0] >= 296]  # above the box stands its number
    assert picture[300:500, 200:400].reshape(-1, 3).tolist().count([100, 100, 100]) == 40_000
    assert line.min(0).tolist() == pytest.approx([297, 197], abs=2)
    assert line.max(0).tolist() == pytest.approx([502, 402], abs=2)


@pytest.mark.parametrize("box", [(0, 0, 60, 60), (-20, -20, 90, 90), (55, 55, 60, 60)])
def test_a_box_at_the_edge_is_still_seen_with_its_number(box: tuple[float, ...]) -> None:
    without, with_number = page(Rectangle(*box, BLUE)), page(Rectangle(*box, BLUE, "7"))
    assert near(without, BLUE).sum() > 100
    assert (without != with_number).any()


@pytest.mark.parametrize(
    "box",
    [(5, 5, 5, 9), (9, 5, 5, 9), (np.nan, 5, 9, 9), (0, 0, np.inf, 9), (70, 5, 80, 9)],
)
def test_a_box_without_an_area_on_the_picture_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ResultError, match="a box"):
        page(Rectangle(*box, BLUE))


@pytest.mark.parametrize(
    "ends", [((10, 10), (50, 40)), ((50, 10), (10, 40)), ((30, 5), (30, 55)), ((5, 30), (55, 30))]
)
def test_a_length_is_drawn_between_its_ends(
    ends: tuple[tuple[float, float], tuple[float, float]],
) -> None:
    picture = page(Line(ends, RED))
    start, end = np.array(ends, dtype=float) * 10
    for share in (0.01, 0.25, 0.5, 0.75, 0.99):
        column, row = np.minimum((start + share * (end - start)).round(), 598).astype(int)
        assert near(picture[row - 2 : row + 3, column - 2 : column + 3], RED).any()
    rows, columns = np.nonzero(near(picture, RED))
    assert min(start[0], end[0]) - 12 <= columns.min() <= columns.max() <= max(*ends)[0] * 10 + 12
    assert abs(rows - 300).max() <= max(abs(ends[0][1] - 30), abs(ends[1][1] - 30)) * 10 + 12


def test_a_length_of_nothing_is_a_mark_and_one_far_outside_is_none() -> None:
    assert (page(Line(((30, 30), (30, 30)), RED)) != page()).any()
    assert (page(Line(((1e9, 1e9), (2e9, 1e9)), RED)) == page()).all()
    with pytest.raises(ResultError, match="a line"):
        page(Line(((np.nan, 1), (2, 3)), RED))


def test_heat_hides_nothing_where_it_is_low_and_shows_most_where_it_is_high() -> None:
    values = np.zeros((60, 60), dtype=np.float32)
    values[:, 20:40], values[:, 40:] = 0.5, 1.0
    changed = np.abs(page(Heat(values)) - 100).sum(-1)
    assert changed[300, 100] == 0
    assert 0 < changed[300, 300] < changed[300, 500]


def test_texture_shows_through_the_hottest_place() -> None:
    image = np.full((60, 60), 60, dtype=np.uint8)
    image[::2] = 180
    image = np.kron(image[:30, :30], np.ones((2, 2), dtype=np.uint8))
    hot = page(Heat(np.ones((60, 60), dtype=np.float32)), image=image)
    assert hot[:, 300].mean(-1).max() - hot[:, 300].mean(-1).min() > 40


def test_heat_that_is_not_finite_or_beyond_1_is_drawn_as_nothing_or_as_1() -> None:
    values = np.zeros((60, 60), dtype=np.float32)
    values[:, :20], values[:, 40:] = np.nan, 7.0
    assert (page(Heat(values))[300, :180] == 100).all()
    assert (page(Heat(values))[300, 500] == page(Heat(np.ones_like(values)))[300, 500]).all()


def test_the_scale_of_heat_grows_lighter_at_every_step() -> None:
    luma = scale_table() @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luma[::5]) > 0).all()  # each of them is rounded to 8 bits


def test_a_legend_says_what_heat_means_with_its_scale() -> None:
    plain, scaled = (
        overlay(GREY, [], [Entry("Heat", scale=scale)], "T", sheet=SHEET) for scale in (False, True)
    )
    legend = scaled[:, 648:].reshape(-1, 3)
    assert not (plain == scaled).all()
    for colour in scale_table()[[0, 128, 255]]:
        assert (legend == colour).all(1).any()


@pytest.mark.parametrize("kind", [Region, Heat])
def test_a_mark_of_another_shape_is_refused(kind: type[Region | Heat]) -> None:
    array = np.ones((4, 4), dtype=bool)
    mark = Region(array, RED) if kind is Region else Heat(array.astype(np.float32))
    with pytest.raises(ResultError, match="shape"):
        page(mark)


def test_a_structure_of_one_pixel_of_a_large_image_is_still_seen() -> None:
    mask = np.zeros((4000, 4000), dtype=bool)
    mask[2000, 3000] = True
    large = np.full((4000, 4000), 100, dtype=np.uint8)
    changed = np.argwhere((page(Region(mask, RED), image=large) != 100).any(-1))
    assert np.abs(changed - (300, 450)).max() <= 4


def test_pixels_are_drawn_as_high_as_they_are_in_the_patient() -> None:
    mask = np.zeros((30, 60), dtype=bool)
    mask[10:20, 20:40] = True
    picture = page(Region(mask, RED), image=GREY[:30, :60], aspect=2.0)
    line = np.argwhere(near(picture, RED))
    assert line.min(0).tolist() == pytest.approx([200, 200], abs=3)
    assert line.max(0).tolist() == pytest.approx([399, 399], abs=3)


def test_boxes_and_lengths_follow_pixels_that_are_not_square() -> None:
    image = GREY[:30, :60]
    box = np.argwhere(near(page(Rectangle(20, 10, 40, 20, RED), image=image, aspect=2.0), RED))
    assert box.min(0).tolist() == pytest.approx([197, 197], abs=2)
    assert box.max(0).tolist() == pytest.approx([402, 402], abs=2)
    ends = ((10.0, 5.0), (50.0, 25.0))
    line = np.argwhere(near(page(Line(ends, RED), image=image, aspect=2.0), RED))
    assert line.mean(0).tolist() == pytest.approx([300, 300], abs=3)
    assert line[:, 0].min() == pytest.approx(100, abs=12)


def test_the_sides_of_the_patient_stand_beside_the_picture() -> None:
    bare = overlay(GREY[:60], [], [], "T", sheet=SHEET)
    told = overlay(GREY[:60], [], [], "T", sheet=SHEET, sides=Sides("R", "A", "L", "P"))
    rows, columns = np.nonzero((bare != told).any(-1))
    inside = (
        (rows >= MARGIN) & (rows < MARGIN + 600) & (columns >= MARGIN) & (columns < MARGIN + 600)
    )
    assert len(rows) > 50 and not inside.any()


def test_a_page_of_words_has_no_picture() -> None:
    drawn = overlay(None, [], [Entry("Not analysed")], "T", "Note", sheet=Sheet(300, 500))
    assert drawn.shape == (300, 500, 3)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize("character", sorted(_DRAWABLE | set("".join(_PLAIN.values()))))
def test_what_is_called_drawable_has_a_glyph(character: str) -> None:
    font = ImageFont.load_default(40)
    box, glyph = font.getmask("\uffff"), font.getmask(character)
    assert (glyph.size, bytes(glyph)) != (box.size, bytes(box))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("12 cm² ± 0.5 mm³", "12 cm² ± 0.5 mm³"),
        ("Épanchement, größer, Łódź", "Epanchement, grosser, Lodz"),
        ("5 µm ≥ 3 – 4", "5 um >= 3 - 4"),
        ("肺炎", "?"),
        ("肺炎 (pneumonia)", "? (pneumonia)"),
        ("Пневмония слева", "? ?"),
        ("결절", "?"),
        ("a\tb\x00c\u200bd", "a b c d"),
    ],
)
def test_text_is_written_in_what_the_font_has(words: str, expected: str) -> None:
    assert written(words) == expected
    assert drawable(words) == ("?" not in expected)


def test_a_question_is_no_lost_character() -> None:
    assert drawable("Nodule?")
    assert written("Nodule?") == "Nodule?"


def test_an_entry_that_cannot_be_drawn_is_drawn_by_its_plain_words() -> None:
    japanese = overlay(GREY, [], [Entry("肺炎: Present", plain="Pneumonia: Present")], "T")
    english = overlay(GREY, [], [Entry("Pneumonia: Present")], "T")
    assert (japanese == english).all()


def width_of(line: str) -> int:
    """Columns that a line takes when it is drawn."""
    drawn = overlay(None, [], [Entry(line)], "", sheet=Sheet(200, 1200))[80:112]
    columns = np.flatnonzero((drawn != drawn[0, 0]).any((0, 2)))
    return int(columns.max()) - MARGIN if len(columns) else 0


@pytest.mark.parametrize(
    "words", ["W" * 5000, "word " * 2000, "a\nb\nc", "", "   ", "W" * 64, "cm² " * 200]
)
def test_any_text_is_wrapped_to_its_width(words: str) -> None:
    for most in (None, 3):
        lines = wrapped(words, 19, 200, most)
        assert max(width_of(line) for line in set(lines[:5])) <= 200
        assert most is None or len(lines) <= most
    if len(words) > 200:
        assert wrapped(words, 19, 200, 3)[-1].endswith("…")


def test_a_raised_digit_is_drawn_small_and_high() -> None:
    def ink(words: str) -> NDArray[np.int_]:
        drawn = overlay(None, [], [Entry(words)], "", sheet=Sheet(200, 600))
        plain = overlay(None, [], [Entry("cm")], "", sheet=Sheet(200, 600))
        return np.argwhere((drawn != plain).any(-1))

    raised, full = ink("cm²"), ink("cm2")
    assert raised[:, 0].max() < full[:, 0].max() and raised[:, 0].min() <= full[:, 0].min() + 2
    assert np.ptp(raised[:, 0]) < 0.8 * np.ptp(full[:, 0])


def test_wrapping_loses_no_word() -> None:
    words = "Areas are measured at the detector's plane and not corrected for magnification."
    assert " ".join(wrapped(words, 19, 200)) == words
    assert "".join(wrapped("W" * 64, 19, 200)) == "W" * 64
