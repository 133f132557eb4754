"""Owns in which forms a destination gets a result, and what follows where it refuses one of them.

A profile is what an administrator says of a destination; a layout is a set of objects that
together tell a result. A profile asks for one layout and has others behind it, down to the
secondary capture that every archive keeps. Refuses to know how a form is built or sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar

from dicom_node.errors import ConfigurationError


class Encoding(StrEnum):
    """Segmentation Type (PS3.3 C.8.20.2.3)."""

    BINARY = "binary"  # what every viewer shows
    LABELMAP = "labelmap"  # newer and smaller; no overlapping segments
    FRACTIONAL = "fractional"  # probabilities; hardly a viewer shows it, so BINARY goes beside it
    NONE = "none"


class Compression(StrEnum):
    """Of the pixels of segmentations; always without loss."""

    NONE = "none"
    RLE = "rle"
    JPEG2000 = "jpeg2000"


class Document(StrEnum):
    """The SOP class of the structured report."""

    COMPREHENSIVE_3D = "comprehensive-3d"
    ENHANCED = "enhanced"  # older, for archives that do not know the other
    NONE = "none"


class Identifiers(StrEnum):
    """What the tracking identifier of a drawn group says."""

    VIEWER = "viewer"  # the viewer's tool, by which OHIF makes it an annotation that can be edited
    PLAIN = "plain"  # what is tracked, in words


class Capture(StrEnum):
    """When the secondary capture is sent."""

    FALLBACK = "fallback"  # where the destination takes no segmentation or no report
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True)
class SegForm:
    """A segmentation."""

    encoding: Encoding = Encoding.BINARY
    compression: Compression = Compression.NONE
    kind: ClassVar = "seg"

    def __str__(self) -> str:
        packed = "" if self.compression is Compression.NONE else f":{self.compression}"
        return f"seg:{self.encoding}{packed}"

    @property
    def words(self) -> str:
        """For people."""
        packed = {Compression.RLE: " in RLE", Compression.JPEG2000: " in JPEG 2000"}
        return f"{self.encoding.upper()} segmentation{packed.get(self.compression, '')}"


@dataclass(frozen=True)
class SrForm:
    """A structured report, and the segmentation that it cites where it cites one."""

    document: Document = Document.COMPREHENSIVE_3D
    identifiers: Identifiers = Identifiers.VIEWER
    cites: SegForm | None = SegForm()
    kind: ClassVar = "sr"

    def __str__(self) -> str:
        return f"sr:{self.document}:{self.identifiers}>{self.cites or 'none'}"

    @property
    def words(self) -> str:
        """For people."""
        names = {Document.COMPREHENSIVE_3D: "Comprehensive 3D SR", Document.ENHANCED: "Enhanced SR"}
        return names[self.document]


@dataclass(frozen=True)
class ScForm:
    """Secondary captures: pages with the overlay and the findings burned in."""

    kind: ClassVar = "sc"

    def __str__(self) -> str:
        return "sc"

    @property
    def words(self) -> str:
        """For people."""
        return "secondary capture"


Form = SegForm | SrForm | ScForm
Layout = tuple[Form, ...]


def form_of(text: str) -> Form:
    """The form that ``str`` made into this text."""
    kind, _, rest = text.partition(":")
    if kind == SegForm.kind:
        encoding, _, compression = rest.partition(":")
        return SegForm(Encoding(encoding), Compression(compression or Compression.NONE))
    if kind == SrForm.kind:
        first, _, cited = rest.partition(">")
        document, _, identifiers = first.partition(":")
        cites = form_of(cited) if cited != "none" else None
        if not isinstance(cites, SegForm | None):
            raise ValueError(f"{text!r} cites no segmentation")
        return SrForm(Document(document), Identifiers(identifiers), cites)
    if text == ScForm.kind:
        return ScForm()
    raise ValueError(f"{text!r} is no form")


def describe(layout: Layout) -> str:
    """A layout in words."""
    return ", ".join(form.words for form in layout)


@dataclass(frozen=True)
class Profile:
    """What a destination wants. The default shows in every viewer that we know of."""

    segmentation: Encoding = Encoding.BINARY
    compression: Compression = Compression.NONE
    report: Document = Document.COMPREHENSIVE_3D
    identifiers: Identifiers = Identifiers.VIEWER
    capture: Capture = Capture.FALLBACK

    def __post_init__(self) -> None:
        if self.report is Document.NONE and self.capture is Capture.NEVER:
            raise ConfigurationError(
                "neither report nor capture: then nobody learns that nothing was found, "
                "or that nothing was analysed"
            )
        if self.segmentation is Encoding.BINARY and self.compression is Compression.RLE:
            raise ConfigurationError(
                "RLE holds whole bytes and a binary segmentation has one bit a pixel: "
                "compress it as jpeg2000, or send labelmap"
            )

    @classmethod
    def parse(cls, told: Mapping[str, str]) -> Profile:
        """From plain words, as they are stored; what is not told is the default.

        Raises:
            ConfigurationError: names the key or the value that is not known.
        """
        values: dict[str, Any] = {}
        for key, value in told.items():
            if key not in _CHOICES:
                raise ConfigurationError(f"profile: unknown key {key!r}; known: {list(_CHOICES)}")
            try:
                values[key] = _CHOICES[key](value)
            except ValueError:
                known = ", ".join(_CHOICES[key])
                raise ConfigurationError(f"profile: {key} is {known}, not {value!r}") from None
        return cls(**values)

    def told(self) -> dict[str, str]:
        """Plain words, for `parse`; only what differs from the default."""
        return {k: str(v) for k, v in asdict(self).items() if v != getattr(_DEFAULT, k)}


def layouts(profile: Profile, cannot: Collection[Encoding] = ()) -> Iterator[Layout]:
    """What to offer a destination, the best first.

    A compressed segmentation gives way to a plain one, others to BINARY, that to none; the report
    gives way to Enhanced SR, that to the capture; where not even that is taken, to a report alone.

    Args:
        profile: of the destination.
        cannot: what this result cannot be written as: overlapping segments as LABELMAP, or
            FRACTIONAL where no probabilities were kept.
    """
    wanted = list(dict.fromkeys(_layouts(profile, cannot)))
    bare = [tuple(form for form in layout if not isinstance(form, ScForm)) for layout in wanted]
    for layout in dict.fromkeys((*wanted, *bare)):
        if any(not isinstance(form, SegForm) for form in layout):  # a segmentation alone is silent
            yield layout


def _layouts(profile: Profile, cannot: Collection[Encoding]) -> Iterator[Layout]:
    for segmentations in _segmentations(profile, cannot):
        cited = segmentations[0] if segmentations else None
        refused = profile.segmentation is not Encoding.NONE and not segmentations
        for document in _documents(profile):
            layout: Layout = segmentations
            if document is not Document.NONE:
                layout += (SrForm(document, profile.identifiers, cited),)
            lacks = refused or document is Document.NONE
            always = profile.capture is Capture.ALWAYS
            if always or (lacks and profile.capture is Capture.FALLBACK):
                layout += (ScForm(),)
            yield layout


def first_layout(told: Mapping[str, str]) -> Layout:
    """What a destination with this profile gets where it refuses nothing."""
    return next(layouts(Profile.parse(told)))


def after_refusal(
    profile: Profile, refused: Collection[str], cannot: Collection[Encoding] = ()
) -> Layout | None:
    """The best layout without any of the ``refused`` forms (as text); None where none is left."""
    for layout in layouts(profile, cannot):
        if not any(str(form) in refused for form in layout):
            return layout
    return None


def _segmentations(profile: Profile, cannot: Collection[Encoding]) -> Iterator[tuple[SegForm, ...]]:
    """Sets of segmentations, the one that reports cite first."""
    plain = SegForm()
    wanted = SegForm(profile.segmentation, profile.compression)
    if wanted.encoding is not Encoding.NONE:
        for form in (wanted, replace(wanted, compression=Compression.NONE)):
            if form.encoding in cannot:
                continue
            if form.encoding is Encoding.FRACTIONAL:
                yield plain, form
            else:
                yield (form,)
        yield (plain,)
    yield ()


def _documents(profile: Profile) -> Iterator[Document]:
    chain = (Document.COMPREHENSIVE_3D, Document.ENHANCED, Document.NONE)
    yield from chain[chain.index(profile.report) :]


_CHOICES: dict[str, type[StrEnum]] = {
    "segmentation": Encoding,
    "compression": Compression,
    "report": Document,
    "identifiers": Identifiers,
    "capture": Capture,
}
_DEFAULT = Profile()
DEFAULT: Layout = next(layouts(_DEFAULT))
"""What is built where no destination asks for anything else."""
