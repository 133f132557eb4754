"""Owns the way from encoded pixel data to values in a stated unit; one frame at a time.

Refuses to know where a frame lies or which other frames there are. Everything declared is held
against limits and against the bytes at hand before anything is allocated or decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID, JPEG2000TransferSyntaxes, RLELossless

from inference.attributes import Frame, about, get, integer, number, numbers, text
from inference.errors import ReadingError
from inference.types import Unit

PROJECTIONS = frozenset({"CR", "DX", "MG", "IO", "PX", "RG", "RF", "XA"})
"""Modalities whose images are shadows on a detector: no positions, spacing at the detector."""

BRIGHTNESS = PROJECTIONS | {"US", "IVUS"}
"""Modalities whose stored values are brightness and nothing more."""

MAX_FRAMES = 65_536
"""Of one instance: more are no image of a patient but an attack on our lists."""

_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_PALETTE = "PALETTE COLOR"
_SEGMENTATIONS = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_ITEM_HEADER = 8


@dataclass(frozen=True)
class Layout:
    """What an instance declares of its pixels (PS3.3 C.7.6.3)."""

    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    keyword: str
    syntax: UID

    @property
    def colour(self) -> bool:
        """True when its frames become RGB."""
        return self.photometric not in _GREY

    @property
    def floating(self) -> bool:
        """True for Float and Double Float Pixel Data, whose values have no declared range."""
        return self.keyword != "PixelData"

    @property
    def values(self) -> int:
        """How many values it decodes to."""
        return self.frames * self.rows * self.columns * (3 if self.colour else 1)

    @property
    def bounds(self) -> tuple[int, int]:
        """Lowest and highest value that the stored bits can hold."""
        if self.signed:
            return -(2 ** (self.stored - 1)), 2 ** (self.stored - 1) - 1
        return 0, 2**self.stored - 1


def layout(dataset: Dataset) -> Layout:
    """Reads what is declared and refuses what no image that we read can declare.

    Raises:
        ReadingError: an attribute is absent or outside what the standard allows, or the object
            is a segmentation, whose pixels are labels and not an image.
    """
    if text(dataset, "SOPClassUID") in _SEGMENTATIONS:
        raise ReadingError("is a segmentation, not an image")
    keywords = [k for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if k in dataset]
    if len(keywords) != 1:
        raise ReadingError("has more than one kind of pixel data" if keywords else "has no pixels")
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        raise ReadingError("TransferSyntaxUID is absent")
    syntax = UID(syntax)
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise ReadingError("TransferSyntaxUID is none that we know")
    floating = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}.get(keywords[0])
    stored = floating or integer(dataset, "BitsStored")
    declared = Layout(
        frames=integer(dataset, "NumberOfFrames", 1),
        rows=integer(dataset, "Rows"),
        columns=integer(dataset, "Columns"),
        samples=integer(dataset, "SamplesPerPixel"),
        allocated=integer(dataset, "BitsAllocated", floating),
        stored=stored,
        high=stored - 1 if floating else integer(dataset, "HighBit", stored - 1),
        signed=bool(floating) or integer(dataset, "PixelRepresentation") == 1,
        photometric=text(dataset, "PhotometricInterpretation"),
        keyword=keywords[0],
        syntax=syntax,
    )
    _check(declared)
    return declared


def _check(declared: Layout) -> None:
    if not (0 < declared.rows < 2**16 and 0 < declared.columns < 2**16):
        raise ReadingError(f"Rows x Columns is {declared.rows} x {declared.columns}")
    if not 0 < declared.frames <= MAX_FRAMES:
        raise ReadingError(f"NumberOfFrames is {declared.frames}")
    if declared.allocated not in ((32, 64) if declared.floating else (8, 16, 32)):
        raise ReadingError(f"BitsAllocated is {declared.allocated}")
    if not 0 < declared.stored <= declared.high + 1 <= declared.allocated:
        raise ReadingError(
            f"BitsStored {declared.stored} and HighBit {declared.high} do not fit"
            f" BitsAllocated {declared.allocated}"
        )
    samples = 3 if declared.photometric in _COLOUR else 1
    if declared.photometric not in _COLOUR | _GREY | {_PALETTE} or declared.samples != samples:
        raise ReadingError("PhotometricInterpretation and SamplesPerPixel are none that we read")
    if declared.photometric == _PALETTE and not declared.syntax.is_little_endian:
        raise ReadingError("a palette in big endian, which pydicom takes for little")
    if declared.floating and declared.colour:
        raise ReadingError("floating point pixels are not grey")


def check_data(dataset: Dataset, declared: Layout) -> None:
    """Holds what is declared against the bytes that are there, and decodes nothing.

    For compressed frames the size in the codestream must be the declared one: a decoder
    allocates what the codestream says.

    Raises:
        ReadingError: too few bytes, or a codestream of another size.
    """
    data = get(dataset, declared.keyword)
    if not isinstance(data, bytes | bytearray):
        raise ReadingError(f"{declared.keyword} is empty")
    if not declared.syntax.is_encapsulated:
        bits = declared.allocated * declared.samples
        if declared.photometric == "YBR_FULL_422":
            bits = bits * 2 // 3
        needed = math.ceil(declared.frames * declared.rows * declared.columns * bits / 8)
        if len(data) < needed:
            raise ReadingError(f"{declared.keyword} has {len(data)} bytes instead of {needed}")
        return
    if len(data) < declared.frames * _ITEM_HEADER:
        raise ReadingError(f"{declared.keyword} is too short for {declared.frames} frames")
    if declared.syntax == RLELossless:
        return  # expands 64 fold at most (PS3.5 G.3.2), and holds no size of its own
    is_j2k = declared.syntax in JPEG2000TransferSyntaxes
    for codestream in _codestreams(dataset, declared):
        shape = _j2k_shape(codestream) if is_j2k else _jpeg_shape(codestream)
        if shape != (declared.rows, declared.columns, declared.samples):
            raise ReadingError(
                f"the compressed image is {shape} instead of"
                f" {(declared.rows, declared.columns, declared.samples)}"
            )


def _codestreams(dataset: Dataset, declared: Layout) -> Iterator[bytes]:
    offsets = get(dataset, "ExtendedOffsetTable"), get(dataset, "ExtendedOffsetTableLengths")
    return generate_frames(
        dataset.PixelData,
        number_of_frames=declared.frames,
        extended_offsets=offsets if all(offsets) else None,
    )


def _jpeg_shape(data: bytes) -> tuple[int, int, int] | None:
    """Rows, columns, components from the frame header of JPEG or JPEG-LS (T.81 B.2.2)."""
    i = data.find(b"\xff\xd8") + 2
    while 2 <= i <= len(data) - 10:
        if data[i] != 0xFF:
            return None
        if data[i + 1] == 0xFF:  # a fill byte
            i += 1
            continue
        if data[i + 1] in _START_OF_FRAME:
            return _be(data, i + 5, 2), _be(data, i + 7, 2), data[i + 9]
        i += 2 + _be(data, i + 2, 2)
    return None


def _j2k_shape(data: bytes) -> tuple[int, int, int] | None:
    """Rows, columns, components from the SIZ marker segment (15444-1 A.5.1)."""
    i = data.find(b"\xff\x4f\xff\x51")
    if i < 0 or len(data) < i + 42:
        return None
    width, height, left, top = (_be(data, i + 8 + 4 * k, 4) for k in range(4))
    return height - top, width - left, _be(data, i + 40, 2)


def _be(data: bytes, start: int, size: int) -> int:
    return int.from_bytes(data[start : start + size], "big")


def decode(dataset: Dataset, declared: Layout) -> Iterator[NDArray[Any]]:
    """Yields the stored values of each frame, (rows, columns) or, for colour, RGB uint8.

    Bits outside those stored (overlays of old) are masked off. Colour comes out as sRGB-like
    8 bits whatever it was stored as.

    Raises:
        ReadingError: no decoder for the transfer syntax, or the data cannot be decoded.
    """
    with about(dataset, "decoded"):
        try:
            decoder = get_decoder(declared.syntax)
        except NotImplementedError:
            decoder = None
        if decoder is None or not decoder.is_available:
            raise ReadingError(f"no decoder for transfer syntax {declared.syntax.name}")
        options: dict[str, Any] = {"allow_excess_frames": False}
        shifted = declared.high != declared.stored - 1 and not declared.syntax.is_encapsulated
        if shifted:
            options["correct_unused_bits"] = False
        frames: Iterable[NDArray[Any]]
        if declared.syntax.is_encapsulated:
            # Not iter_array: pydicom 3.0.2 then corrects signs in what some decoders made
            # read-only, and fails.
            whole, _ = decoder.as_array(dataset, **options)
            frames = whole.reshape(declared.frames, declared.rows, declared.columns, -1)
            frames = frames if declared.samples > 1 else frames[..., 0]
        else:
            frames = (stored for stored, _ in decoder.iter_array(dataset, **options))
        for stored in frames:
            values = _from_high_bit(stored, declared) if shifted else stored
            yield _as_rgb8(values, dataset, declared) if declared.colour else values


def _from_high_bit(stored: NDArray[Any], declared: Layout) -> NDArray[Any]:
    """Values whose most significant bit is not the top one of those stored (PS3.5 8.1.1)."""
    up = np.left_shift(stored, declared.allocated - 1 - declared.high)
    return np.asarray(np.right_shift(up, declared.allocated - declared.stored))


def _as_rgb8(stored: NDArray[Any], dataset: Dataset, declared: Layout) -> NDArray[np.uint8]:
    bits = declared.stored
    if declared.photometric == _PALETTE:
        stored = apply_color_lut(stored, dataset)[..., :3]
        descriptor = numbers(dataset, "RedPaletteColorLookupTableDescriptor", 3) or (0, 0, 0)
        bits = int(descriptor[2])
    if bits > 8:
        stored = np.right_shift(stored, bits - 8)
    elif bits < 8:
        stored = stored.astype(np.uint16) * 255 // (2**bits - 1)
    return stored.astype(np.uint8, copy=False)


@dataclass(frozen=True)
class Transform:
    """From stored values to ``unit``: ``lut`` first where there is one, then scale and offset.

    ``exact`` when integers stay integers.
    """

    unit: Unit
    scale: float = 1.0
    offset: float = 0.0
    lut: NDArray[np.uint16] | None = None
    lut_first: int = 0
    exact: bool = False

    def looked_up(self, stored: NDArray[Any]) -> NDArray[Any]:
        """After the modality LUT, or as it was (PS3.3 C.11.1.1.1)."""
        if self.lut is None:
            return stored
        index = stored.astype(np.int64) - self.lut_first
        return self.lut[np.clip(index, 0, len(self.lut) - 1)]

    def floats(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """The frame as float32 in ``unit``."""
        values = self.looked_up(stored)
        wide = np.float64 if values.dtype.itemsize > 2 else np.float32
        scaled: NDArray[Any] = values.astype(wide)
        scaled *= self.scale
        scaled += self.offset
        return scaled.astype(np.float32, copy=False)


def transform(frame: Frame, declared: Layout, modality: str) -> Transform:
    """How the stored values of a frame become values in their unit.

    - CT whose rescale or modality LUT gives Hounsfield units: ``[hnsf'U]``. The type may be
      absent, then it means HU (PS3.3 C.8.2.1); without any rescale the values are ``raw``.
    - Brightness (radiographs, ultrasound): ``1``, linear from the lowest to the highest value
      that the stored bits can hold, 0 dark and 1 bright: turned over for MONOCHROME1 or an
      INVERSE presentation LUT shape, which say the same and count once (C.8.11.3.1.2). A
      positive rescale then changes nothing, a negative one turns over. VOI windows are for
      eyes and differ by maker; models take percentiles afterwards. Values that are meant FOR
      PROCESSING may be linear in dose or inverted in ways that no attribute tells reliably:
      see `ImageStack.presentation_intent`.
    - All else ``raw``: the modality's numbers after its rescale, never turned over, since they
      mean what they are (an ADC map stays one); see `ImageStack.photometric`.

    Raises:
        ReadingError: the rescale or the LUT makes no sense.
    """
    if declared.colour:
        return Transform("1", exact=True)
    if declared.floating:
        return Transform("raw")
    items = get(frame.dataset, "ModalityLUTSequence")
    lut, first, bits = _lut(items[0], declared) if items else (None, 0, 0)
    slope = number(frame, "RescaleSlope") if lut is None else 1.0
    intercept = number(frame, "RescaleIntercept") if lut is None else 0.0
    if slope == 0:
        raise ReadingError("RescaleSlope is zero")
    if modality in BRIGHTNESS:
        low, high = (0, 2**bits - 1) if lut is not None else declared.bounds
        turned = (
            declared.photometric == "MONOCHROME1"
            or text(frame, "PresentationLUTShape") == "INVERSE"
        ) != (slope is not None and slope < 0)
        scale = 1 / (high - low or 1)
        if turned:
            return Transform("1", -scale, high * scale, lut, first)
        return Transform("1", scale, -low * scale, lut, first)
    rescaled = lut is not None or (slope is not None and intercept is not None)
    type_ = text(items[0], "ModalityLUTType") if items else text(frame, "RescaleType") or "HU"
    unit: Unit = "[hnsf'U]" if modality == "CT" and rescaled and type_ == "HU" else "raw"
    scale, offset = (1.0 if slope is None else slope), intercept or 0.0
    exact = scale == 1 and offset == int(offset) and abs(offset) < 2**16 and declared.stored <= 16
    return Transform(unit, scale, offset, lut, first, exact)


def _lut(item: Dataset, declared: Layout) -> tuple[NDArray[np.uint16], int, int]:
    """A modality LUT, the stored value of its first entry, and its depth (PS3.3 C.11.1.1)."""
    descriptor = numbers(item, "LUTDescriptor", 3)
    data = get(item, "LUTData")
    if descriptor is None or data is None:
        raise ReadingError("ModalityLUTSequence is incomplete")
    # US or SS by the pixel representation, and written as either: bring both to what is meant.
    count = int(descriptor[0]) % 2**16 or 2**16
    first = int(descriptor[1]) % 2**16
    if declared.signed and first >= 2**15:
        first -= 2**16
    bits = int(descriptor[2])
    if not 8 <= bits <= 16:
        raise ReadingError(f"a modality LUT of {bits} bits")
    if isinstance(data, bytes):
        order = "<" if declared.syntax.is_little_endian else ">"
        data = np.frombuffer(data, f"{order}u2" if len(data) >= 2 * count else "u1")
    entries = np.atleast_1d(np.asarray(data, dtype=np.int64)).astype(np.uint16)
    if len(entries) < count:
        raise ReadingError(f"a modality LUT of {len(entries)} entries instead of {count}")
    return entries[:count], first, bits
