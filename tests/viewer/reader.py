"""Owns a reader: a person's clicks in OHIF in a real browser, and what the pixels then show.

Opens a study, opens a SEG or SR as a double click on its thumbnail does, and gives what is painted
and drawn as arrays in the image's own coordinates. Refuses to know what should be there; that is
`tests.viewer.verdict`'s question.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.servers import lacking, need

_FLAGS = (
    "--no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
    " --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync"
).split()
"""WebGL by software where there is no graphics card; and no talk with anybody but the page."""

_PATIENCE = 120_000.0
"""Milliseconds that OHIF may take for one step, on a busy machine."""

_BORDER = 3
_THUMBNAIL = '[data-cy="study-browser-thumbnail"], [data-cy="study-browser-thumbnail-no-image"]'
Pixels = NDArray[np.uint8]
"""``(rows, columns, 3)`` of the canvas."""


@dataclass(frozen=True)
class Place:
    """Where the canvas lies on the page and on the image.

    Attributes:
        corner: of the picture taken of it, on the page.
        size: width and height of that picture.
        origin: (column, row) in image coordinates, at pixel edges, of its corner.
        step: image coordinates per canvas pixel, columns of the matrix for x and y.
    """

    corner: tuple[int, int]
    size: tuple[int, int]
    origin: NDArray[np.float64]
    step: NDArray[np.float64]

    def on_image(self) -> NDArray[np.float64]:
        """``(rows, columns, 2)``: for the middle of each canvas pixel its (column, row)."""
        x, y = np.meshgrid(np.arange(self.size[0]) + 0.5, np.arange(self.size[1]) + 0.5)
        return self.origin + np.stack([x, y], axis=-1) @ self.step.T

    def on_canvas(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Canvas positions of (column, row) points."""
        moved: NDArray[np.float64] = (points - self.origin) @ np.linalg.inv(self.step).T
        return moved

    @property
    def zoom(self) -> float:
        """Canvas pixels per image pixel."""
        return float(1 / np.sqrt(abs(np.linalg.det(self.step))))


@dataclass(frozen=True)
class Shown:
    """A segment as the viewer lists it."""

    number: int
    label: str
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Painted:
    """One frame in the viewport.

    Attributes:
        bare: without any segment.
        segments: with one segment alone, opaque; by its number.
        place: of the canvas.
    """

    bare: Pixels
    segments: dict[int, Pixels]
    place: Place


@dataclass(frozen=True)
class Measured:
    """A hydrated measurement; points are (column, row) at pixel edges of the image it names."""

    label: str
    tool: str
    values: tuple[str, ...]
    sop_instance_uid: str
    frame: int
    points: NDArray[np.float64]


class NotShown(Exception):
    """OHIF does not show an object, with what it says of it."""


class Reader:
    """One browser page; `open` a study, then ask."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.address = address
        self.complaints: list[str] = []
        page.set_default_timeout(_PATIENCE)
        page.add_init_script(path=Path(__file__).with_name("page.js"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._listen)
        # The driver's own screenshots wait a second for fonts and animations.
        self._tools = page.context.new_cdp_session(page)

    def open(self, study: str, objects: int = 0) -> None:
        """Open a study afresh and wait until its images, and so many display sets, are there."""
        self.complaints.clear()
        self.page.goto(f"{self.address}/viewer?StudyInstanceUIDs={study}")
        self._until("ask.hasImage() && ask.displaySets().length >= " + str(objects))

    def images(self) -> list[tuple[str, int]]:
        """SOP Instance UID and frame of the images in the viewport, in its order."""
        return [(i["sop"], i["frame"]) for i in self._ask("images()")]

    def kinds(self) -> list[str]:
        """Modalities of what the study browser offers."""
        return [s["modality"] for s in self._ask("displaySets()")]

    def screenshot(self, path: Path) -> Path:
        """The whole page as a person sees it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._png())
        return path

    # -- segmentations -------------------------------------------------------------------------

    def open_segmentation(self) -> list[Shown]:
        """Double-click the SEG, say yes to its question; gives the segments that are listed.

        Raises:
            NotShown: it does not load.
        """
        self._double_click("SEG")
        self._say_yes("ask.displaySets().some(s => s.modality == 'SEG' && s.loaded)")
        self._until("ask.joined('SEG') && ask.segments().length > 0")
        return [Shown(s["number"], s["label"], tuple(s["colour"])) for s in self._ask("segments()")]

    def show(self, sop_instance_uid: str, frame: int = 1) -> None:
        """Scroll to an image.

        Raises:
            NotShown: it is not in the viewport.
        """
        if not self._ask(f"show({sop_instance_uid!r}, {frame})"):
            raise NotShown(f"{sop_instance_uid} frame {frame} is not among the images shown")

    def painted(self, sop_instance_uid: str, frame: int, numbers: Sequence[int]) -> Painted:
        """What the canvas shows of each segment on one image; `dress` when all are seen."""
        self.show(sop_instance_uid, frame)
        place = self.place()
        self._ask("plain(true)")
        self._ask("bare('image')")
        self._ask("only([])")
        bare = self._picture(place)
        segments = {}
        for number in numbers:
            self._ask(f"only([{number}])")
            segments[number] = self._picture(place)
        return Painted(bare, segments, place)

    def dress(self) -> None:
        """Show all segments again, in OHIF's own style, as a person finds them."""
        self._ask("plain(false)")
        self._ask("only(ask.segments().map(s => s.number))")
        self._ask("bare('')")

    def place(self) -> Place:
        """Of the canvas on the page and on the image that is shown."""
        told = self._ask("place()")
        x, y, width, height = told["box"]
        start, right, below = (np.array(c, dtype=float) for c in told["corners"])
        step = np.stack([(right - start) / width, (below - start) / height], axis=1)
        # The border of the viewport and the handles beside it light up now and then.
        corner = math.ceil(x) + _BORDER, math.ceil(y) + _BORDER
        size = (
            math.floor(x + width) - _BORDER - corner[0],
            math.floor(y + height) - _BORDER - corner[1],
        )
        return Place(corner, size, start + step @ np.subtract(corner, (x, y)), step)

    # -- reports -------------------------------------------------------------------------------

    def open_report(self) -> int:
        """Double-click the SR, answer nothing yet; gives how many measurements are drawable.

        Raises:
            NotShown: it does not load.
        """
        self._double_click("SR")
        self._until("ask.displaySets().some(s => s.modality == 'SR' && s.loaded) && ask.hasImage()")
        (report,) = (s for s in self._ask("displaySets()") if s["modality"] == "SR")
        return int(report["drawable"])

    def open_text(self) -> str:
        """Double-click an SR that draws nothing; gives the words that are shown of it.

        Raises:
            NotShown: it does not load, or shows no words.
        """
        self._double_click("SR")
        self._until("ask.words().length > 0 && !ask.words().includes('Loading')")
        return str(self._ask("words()"))

    def open_capture(self) -> None:
        """Double-click the secondary capture, and wait until its first page is shown.

        Raises:
            NotShown: it does not load.
        """
        before = self.images()
        self._double_click("OT")
        self._until(f"ask.hasImage() && !ask.images().some(i => i.sop == '{before[0][0]}')")

    def canvas(self) -> tuple[Pixels, Place]:
        """The image alone that is shown, and where it lies."""
        place = self.place()
        self._ask("bare('image')")
        picture = self._picture(place)
        self._ask("bare('')")
        return picture, place

    def drawn(self, sop_instance_uid: str, frame: int = 1) -> tuple[NDArray[np.bool_], Place]:
        """Which pixels of the canvas are covered by lines (not by texts) on an image."""
        self.show(sop_instance_uid, frame)
        place = self.place()
        self._ask("bare('image')")
        bare = self._picture(place)
        self._ask("bare('drawing')")
        with_lines = self._picture(place)
        self._ask("bare('')")
        return (bare != with_lines).any(axis=-1), place

    def hydrate(self) -> list[Measured]:
        """Say yes to the question of the SR; gives the measurements that it becomes.

        Raises:
            NotShown: it cannot be hydrated.
        """
        self._say_yes("ask.displaySets().some(s => s.modality == 'SR' && s.hydrated)")
        self._until("ask.joined('SR')")
        self._ask("settled()")
        return self.measurements()

    def measurements(self) -> list[Measured]:
        """As the measurement service holds them."""
        return [
            Measured(
                m["label"],
                m["tool"],
                tuple(m["values"]),
                m["sop"],
                m["frame"],
                np.array(m["points"], dtype=float)[:, :2],
            )
            for m in self._ask("measurements()")
        ]

    def panel(self) -> str:
        """The text of the measurement panel, opened as by its button."""
        self.page.locator('[data-cy="trackedMeasurements-btn"]').click()
        panel = self.page.locator("#viewerLayoutResizableRightPanel")
        panel.get_by_text(f"Measurements ({len(self.measurements())})").wait_for()
        self._ask("settled()")
        return str(panel.inner_text())

    # -- how -----------------------------------------------------------------------------------

    def _ask(self, what: str) -> Any:
        return self.page.evaluate(f"() => ask.{what}")

    def _listen(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _until(self, condition: str) -> None:
        """Until it holds; sooner, and with what OHIF says, when it has given up."""
        failed = "document.body.innerText.includes('Something went wrong')"
        try:
            self.page.wait_for_function(f"() => window.ask && (({condition}) || {failed})")
        except Exception as error:  # the driver's own, of several kinds
            raise NotShown(f"never: {condition}; {self._said()}") from error
        if self.page.evaluate(f"() => {failed}"):
            raise NotShown(f"OHIF went wrong; {self._said()}")

    def _said(self) -> str:
        return " | ".join(line.splitlines()[0][:300] for line in self.complaints[-4:])

    def _double_click(self, modality: str) -> None:
        label = self.page.locator('[data-cy="series-modality-label"]', has_text=modality)
        try:
            self.page.locator(_THUMBNAIL).filter(has=label).dblclick()
        except Exception as error:  # the driver's own, of several kinds
            raise NotShown(f"no one {modality} to click on among {self.kinds()}") from error

    def _say_yes(self, until: str) -> None:
        self._until("!!document.querySelector('[data-cy=yes-hydrate-btn]')")
        self.page.locator('[data-cy="yes-hydrate-btn"]').click()
        self.page.locator('[data-cy="viewport-notification"]').wait_for(state="detached")
        self._until(until)

    def _picture(self, place: Place) -> Pixels:
        """Of the canvas, as it lies on the page: what a person would see there."""
        (x, y), (width, height) = place.corner, place.size
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        picture = Image.open(io.BytesIO(self._png(clip=clip)))
        return np.asarray(picture.convert("RGB"))

    def _png(self, **options: Any) -> bytes:
        options |= {"format": "png", "optimizeForSpeed": True}
        return base64.b64decode(self._tools.send("Page.captureScreenshot", options)["data"])


@contextmanager
def browser(address: str) -> Iterator[Reader]:
    """A page of a headless Chromium; skips where it, or its driver, is not installed."""
    chromium = need("chromium", "/usr/lib/chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("playwright is not installed")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=_FLAGS)
        try:
            page = running.new_page(viewport={"width": 800, "height": 560})
            yield Reader(page, address)
        finally:
            running.close()
