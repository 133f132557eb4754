from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from inference.errors import ReadingError
from inference.reading import read
from tests import dicoms

RAMP = np.arange(64 * 48).reshape(64, 48)


def test_a_ct_is_in_hounsfield_units_and_stays_integer():
    stack = read([dicoms.ct_slice(RAMP, intercept=-1024)])
    assert stack.unit == "[hnsf'U]"
    assert stack.pixels.dtype == np.int16
    np.testing.assert_array_equal(stack.pixels[0], RAMP - 1024)


def test_a_ct_without_rescale_type_means_hounsfield_units():
    assert read([dicoms.ct_slice(RescaleType=None)]).unit == "[hnsf'U]"


@pytest.mark.parametrize("attributes", [{"RescaleType": "US"}, {"RescaleSlope": None}])
def test_a_ct_that_is_not_rescaled_to_hounsfield_units_is_raw(attributes):
    assert read([dicoms.ct_slice(**attributes)]).unit == "raw"


def test_a_fractional_slope_gives_floats():
    stack = read([dicoms.ct_slice(RAMP, slope=0.5, intercept=-10.25)])
    assert stack.pixels.dtype == np.float32
    np.testing.assert_allclose(stack.pixels[0], RAMP * 0.5 - 10.25)


def test_a_slope_of_zero_is_refused():
    with pytest.raises(ReadingError, match="RescaleSlope is zero"):
        read([dicoms.ct_slice(slope=0)])


def test_values_beyond_16_bits_widen_the_whole_stack():
    low, high = dicoms.ct_series(2)
    high.PixelData = np.full((64, 64), 32767, "<i2").tobytes()
    high.RescaleIntercept = "1000"
    stack = read([low, high])
    assert stack.pixels.dtype == np.int32
    assert stack.pixels[1].max() == 33767
    np.testing.assert_array_equal(stack.pixels[0], read([low]).pixels[0])


def test_each_slice_is_rescaled_by_its_own_slope():
    one, two = dicoms.ct_series(2)
    two.RescaleSlope = "2"
    stack = read([one, two])
    np.testing.assert_allclose(stack.pixels[1], two.pixel_array * 2.0 - 1024)
    np.testing.assert_allclose(stack.pixels[0], one.pixel_array - 1024.0)


def test_each_frame_of_an_enhanced_ct_is_rescaled_by_its_own_slope():
    enhanced = dicoms.enhanced_ct(3, slopes=[1.0, 2.0, 0.5])
    stack = read([enhanced])
    stored = enhanced.pixel_array.astype(float)
    np.testing.assert_allclose(
        stack.pixels, stored * np.array([1, 2, 0.5])[:, None, None] - 1024, rtol=1e-6
    )
    assert stack.unit == "[hnsf'U]"


@pytest.mark.parametrize("bits", [5, 8, 10, 12, 15, 16])
def test_signed_values_of_any_depth_are_read_whatever_the_unused_bits_hold(bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = np.linspace(low, high, 64 * 64).round().astype(np.int16).reshape(64, 64)
    ds = dicoms.ct_slice(values, bits=bits, intercept=0)
    allocated = ds.BitsAllocated
    dirty = values.astype(f"<u{allocated // 8}") & (2**bits - 1)
    dirty |= (0xABCD << bits) & (2**allocated - 1)  # an overlay of old in the unused bits
    ds.PixelData = dirty.astype(f"<u{allocated // 8}").tobytes()
    np.testing.assert_array_equal(read([ds]).pixels[0], values)


def test_a_high_bit_above_those_stored_shifts_the_values_down():
    values = RAMP % 4096
    ds = dicoms.mr_slice(values << 4, bits=12, HighBit=15)
    np.testing.assert_array_equal(read([ds]).pixels[0], values)


def test_big_endian_values_are_read():
    ds = dicoms.mr_slice(RAMP)
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds.PixelData = RAMP.astype(">u2").tobytes()
    np.testing.assert_array_equal(read([ds]).pixels[0], RAMP)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("bits", [12, 16])
def test_lossless_compression_changes_nothing(syntax, bits):
    plain = dicoms.ct_slice(RAMP - 500, bits=bits)
    packed = dicoms.ct_slice(RAMP - 500, bits=bits)
    packed.compress(syntax, generate_instance_uid=False)
    np.testing.assert_array_equal(read([packed]).pixels, read([plain]).pixels)


def test_float_pixel_data_stays_as_it_is():
    for keyword, dtype in (("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")):
        ds = dicoms.mr_slice(PixelData=None, BitsStored=None, HighBit=None)
        del ds.PixelRepresentation
        ds.BitsAllocated = 8 * int(dtype[-1])
        values = np.linspace(-1, 1, 64 * 64).reshape(64, 64)
        setattr(ds, keyword, values.astype(dtype).tobytes())
        stack = read([ds])
        assert stack.unit == "raw"
        np.testing.assert_allclose(stack.pixels[0], values, rtol=1e-6)
    with pytest.raises(ReadingError, match="32768 bytes declared, at most 16384"):  # of doubles
        read([ds], max_pixels=64 * 64)


def lut(entries, first=0, bits=16, kind="HU"):
    return [
        dicoms.item(
            LUTDescriptor=[len(entries), first, bits], ModalityLUTType=kind, LUTData=list(entries)
        )
    ]


def test_a_modality_lut_maps_and_clips_stored_values():
    values = np.tile(np.arange(-3, 5), (8, 1))
    ds = dicoms.ct_slice(values, RescaleSlope=None, RescaleIntercept=None, RescaleType=None)
    ds.ModalityLUTSequence = lut([10, 20, 30], first=-1 & 0xFFFF)
    ds.ModalityLUTSequence[0]["LUTDescriptor"].VR = "US"
    stack = read([ds])
    assert stack.unit == "[hnsf'U]"
    np.testing.assert_array_equal(stack.pixels[0, 0], [10, 10, 10, 20, 30, 30, 30, 30])


def test_a_modality_lut_in_bytes_is_read():
    ds = dicoms.ct_slice(np.arange(16).reshape(4, 4), signed=False)
    ds.ModalityLUTSequence = lut(range(100, 116))
    ds.ModalityLUTSequence[0]["LUTData"].VR = "OW"
    ds.ModalityLUTSequence[0].LUTData = np.arange(100, 116, dtype="<u2").tobytes()
    np.testing.assert_array_equal(read([ds]).pixels[0].ravel(), range(100, 116))


def test_a_modality_lut_shorter_than_it_says_is_refused():
    ds = dicoms.ct_slice()
    ds.ModalityLUTSequence = lut([1, 2, 3])
    ds.ModalityLUTSequence[0].LUTDescriptor = [4, 0, 16]
    with pytest.raises(ReadingError, match="3 entries instead of 4"):
        read([ds])


def test_a_radiograph_runs_from_dark_0_to_bright_1_over_its_stored_range():
    values = np.array([[0, 1023], [512, 256]])
    stack = read([dicoms.dx_image(values, bits=10)])
    assert stack.unit == "1"
    assert stack.pixels.dtype == np.float32
    np.testing.assert_allclose(stack.pixels[0], values / 1023, atol=1e-6)


@given(
    bits=st.integers(2, 16),
    modality=st.sampled_from(["DX", "CR", "MG"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_monochrome1_of_the_inverse_is_monochrome2(bits, modality, seed):
    values = np.random.default_rng(seed).integers(0, 2**bits, (6, 5))
    two = read([dicoms.dx_image(values, bits=bits, modality=modality)])
    one = read(
        [
            dicoms.dx_image(
                2**bits - 1 - values, bits=bits, modality=modality, photometric="MONOCHROME1"
            )
        ]
    )
    np.testing.assert_allclose(one.pixels, two.pixels, atol=1e-6)
    assert one.photometric == "MONOCHROME1"


def test_an_inverse_presentation_lut_turns_over_once_with_or_without_monochrome1():
    values = np.array([[0, 4095], [0, 0]])
    both = dicoms.dx_image(values, photometric="MONOCHROME1", PresentationLUTShape="INVERSE")
    shape = dicoms.dx_image(values, photometric="MONOCHROME2", PresentationLUTShape="INVERSE")
    for ds in (both, shape):
        np.testing.assert_array_equal(read([ds]).pixels[0], [[1, 0], [1, 1]])


def test_a_negative_slope_turns_a_radiograph_over():
    values = np.array([[0, 4095], [0, 0]])
    ds = dicoms.dx_image(values, RescaleSlope="-1", RescaleIntercept="4095")
    np.testing.assert_array_equal(read([ds]).pixels[0], [[1, 0], [1, 1]])


def test_numbers_are_not_turned_over_by_monochrome1():
    for ds in (dicoms.ct_slice(RAMP), dicoms.mr_slice(RAMP)):
        before = read([ds]).pixels
        ds.PhotometricInterpretation = "MONOCHROME1"
        np.testing.assert_array_equal(read([ds]).pixels, before)


def test_presentation_intent_is_told():
    assert read([dicoms.dx_image(intent="FOR PROCESSING")]).presentation_intent == "FOR PROCESSING"
    assert read([dicoms.ct_slice()]).presentation_intent is None


def colour_clip():
    return np.random.default_rng(0).integers(0, 256, (2, 8, 10, 3), dtype=np.uint8)


def test_colour_by_plane_or_by_pixel_is_the_same_rgb():
    values = colour_clip()
    by_plane = dicoms.us_clip(pixels=values, PlanarConfiguration=1)
    by_plane.PixelData = np.moveaxis(values, -1, 1).tobytes()
    for ds in (dicoms.us_clip(pixels=values), by_plane):
        stack = read([ds])
        assert stack.shape == (2, 8, 10)
        assert stack.pixels.dtype == np.uint8
        np.testing.assert_array_equal(stack.pixels, values)


def test_full_range_ybr_becomes_rgb():
    values = np.full((4, 4, 3), 128, np.uint8)  # grey: luminance 128, no colour difference
    values[0, 0] = (76, 85, 255)  # red, PS3.3 C.7.6.3.1.2
    ds = dicoms.us_image(values, PhotometricInterpretation="YBR_FULL")
    stack = read([ds])
    np.testing.assert_allclose(stack.pixels[0, 0, 0], (255, 0, 0), atol=2)
    np.testing.assert_array_equal(stack.pixels[0, 1, 1], (128, 128, 128))
    assert stack.unit == "1"


def test_subsampled_ybr_becomes_rgb_and_needs_two_thirds_of_the_bytes():
    ds = dicoms.us_image(np.zeros((2, 4, 3), np.uint8), PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = bytes([100, 200, 128, 128] * 4)  # Y Y Cb Cr for each pair of pixels
    np.testing.assert_array_equal(read([ds]).pixels[0, 1, :, 0], [100, 200, 100, 200])
    ds.PixelData = ds.PixelData[:-2]
    with pytest.raises(ReadingError, match="14 bytes instead of 16"):
        read([ds])


@pytest.mark.parametrize("depth", [8, 16])
def test_a_palette_becomes_rgb(depth):
    ds = dicoms.us_image(np.array([[0, 1], [2, 3]], np.uint8))
    ds.PhotometricInterpretation = "PALETTE COLOR"
    palette = {"Red": [255, 0, 0, 10], "Green": [0, 255, 0, 20], "Blue": [0, 0, 255, 30]}
    for name, entries in palette.items():
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [4, 0, depth])
        wide = np.array(entries, "<u2") << 8 if depth == 16 else np.array(entries, "u1")
        setattr(ds, f"{name}PaletteColorLookupTableData", wide.tobytes())
    np.testing.assert_array_equal(
        read([ds]).pixels[0], [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (10, 20, 30)]]
    )


def test_deep_colour_keeps_its_eight_highest_bits():
    values = np.full((2, 2, 3), (0x1234, 0xFFFF, 0x00FF), "<u2")
    ds = dicoms.us_image(np.zeros((2, 2, 3), np.uint8))
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.add_new("PixelData", "OW", values.tobytes())
    np.testing.assert_array_equal(read([ds]).pixels[0, 0, 0], (0x12, 0xFF, 0x00))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Rows": 0}, "Rows x Columns is 0 x 64"),
        ({"NumberOfFrames": 0}, "NumberOfFrames is 0"),
        ({"NumberOfFrames": 2**31 - 1}, "NumberOfFrames is 2147483647"),
        ({"BitsAllocated": 12}, "BitsAllocated is 12"),
        ({"BitsStored": 17, "HighBit": 16}, "do not fit"),
        ({"BitsStored": None}, "BitsStored is absent"),
        ({"SamplesPerPixel": 3}, "PhotometricInterpretation and SamplesPerPixel"),
        ({"PhotometricInterpretation": "Doe^John"}, "are none that we read"),
        ({"PixelData": None}, "has no pixels"),
        ({"FloatPixelData": b"\0" * 4}, "more than one kind"),
        ({"PixelData": b"\0" * 100}, "has 100 bytes instead of 8192"),
        ({"PixelData": b""}, "PixelData is empty"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "is a segmentation"),
    ],
)
def test_what_is_declared_wrong_is_refused_with_the_reason(attributes, reason):
    with pytest.raises(ReadingError, match=reason) as caught:
        read([dicoms.ct_slice(sop_uid="1.2.3", **attributes)])
    assert caught.value.sop_instance_uid == "1.2.3"
    assert "Doe" not in str(caught.value)


def test_a_huge_image_is_refused_before_its_data_is_looked_at():
    ds = dicoms.ct_slice(Rows=46341, Columns=65535)
    with pytest.raises(ReadingError, match="3036957435 values declared"):
        read([ds])


def test_the_limit_counts_all_instances_together():
    series = dicoms.ct_series(3)
    assert read(series, max_pixels=3 * 64 * 64).shape == (3, 64, 64)
    with pytest.raises(ReadingError, match="12288 values declared, at most 12287"):
        read(series, max_pixels=3 * 64 * 64 - 1)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_codestream_larger_than_declared_is_refused_before_decoding(syntax):
    bomb = dicoms.mr_slice(RAMP)
    bomb.compress(syntax, generate_instance_uid=False)
    bomb.Rows = 8
    with pytest.raises(ReadingError, match=r"is \(64, 48, 1\) instead of \(8, 48, 1\)"):
        read([bomb])


def test_jpeg_is_decoded_and_its_declared_size_checked():
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 24), 77, np.uint8)).save(buffer, "JPEG")
    ds = dicoms.us_image(np.zeros((16, 24), np.uint8))
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([buffer.getvalue()])
    ds["PixelData"].is_undefined_length = True
    np.testing.assert_allclose(read([ds]).pixels, 77 / 255, atol=1.5 / 255)
    ds.Columns = 23
    with pytest.raises(ReadingError, match="instead of"):
        read([ds])


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
@pytest.mark.parametrize("kept", [0.01, 0.1, 0.5, 0.95])
def test_a_codestream_that_is_cut_off_is_a_reading_error(syntax, kept):
    ds = dicoms.mr_slice(dicoms.phantom())
    ds.compress(syntax, generate_instance_uid=False)
    whole = ds.PixelData
    ds.PixelData = whole[: int(len(whole) * kept)]
    with pytest.raises(ReadingError):
        read([ds])
    codestream = next(generate_frames(whole, number_of_frames=1))
    ds.PixelData = encapsulate([codestream[: int(len(codestream) * kept)]])
    with pytest.raises(ReadingError):
        read([ds])


@pytest.mark.parametrize("value", ["1.2.840.10008.1.2.4.999", "Doe^John", "1.2.3"])
def test_an_unknown_transfer_syntax_is_refused_and_not_repeated(value):
    ds = dicoms.ct_slice()
    ds.file_meta.TransferSyntaxUID = value
    with pytest.raises(ReadingError, match="none that we know") as caught:
        read([ds])
    assert value not in str(caught.value)


def test_without_file_meta_there_is_no_transfer_syntax():
    ds = dicoms.ct_slice()
    del ds.file_meta
    with pytest.raises(ReadingError, match="TransferSyntaxUID is absent"):
        read([ds])
