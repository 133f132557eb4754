"""Owns generated radiographs and CT volumes whose true masks are known; refuses to know DICOM.

Numpy only. They are drawn to be told apart by a network and to change the numbers of a report
when their arguments change, not to be mistaken for a patient: every picture is a sum of smooth
shapes and noise, every mask the exact region that was drawn. The same arguments give the same
bytes. Training mixes them in; the demo sends them through a whole node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
CHEST_ORIENTATION = ("L", "F")
"""Rows run to the patient's left and columns to the feet: the right lung is at the image's left."""


@dataclass(frozen=True)
class Lesion:
    """A round opacity in one lung of a radiograph.

    Attributes:
        side: of the patient.
        across: place between the spine (0) and the chest wall (1).
        down: place between apex (0) and diaphragm (1).
        radius: as a share of the image's shorter side.
        density: added brightness, 0..1.
    """

    side: Literal["right", "left"]
    across: float = 0.5
    down: float = 0.5
    radius: float = 0.05
    density: float = 0.25


def chest_radiograph(
    seed: int,
    size: tuple[int, int] = (1024, 1024),
    *,
    lung_scale: tuple[float, float] = (1.0, 1.0),
    lesion: Lesion | None = None,
    noise: float = 0.02,
) -> tuple[NDArray[np.float32], dict[str, Mask]]:
    """A frontal radiograph with its lungs.

    Args:
        seed: draws the body's shape, the exposure and the noise.
        size: rows, columns.
        lung_scale: size of the patient's (right, left) lung against the drawn one; 0.5 to 1.1.
        lesion: an opacity to add; the lung masks do not change for it.
        noise: standard deviation of the quantum noise in brightness.

    Returns:
        Brightness ``(rows, columns)`` in 0..1, bone bright (MONOCHROME2), oriented as
        ``CHEST_ORIENTATION``; and masks ``right_lung``, ``left_lung``, ``lesion`` of that shape.
        As in the hand-drawn masks that models learn from, the lung behind the heart belongs to
        the lung and what lies behind the diaphragm's dome does not.
    """
    rng = np.random.default_rng(seed)
    draw = rng.uniform
    rows, columns = size
    tall = rows / columns
    zoom, shift = draw(0.88, 1.12), draw(-0.06, 0.06, 2)
    x, y = np.meshgrid(
        np.linspace(-1, 1, columns) / zoom + shift[0],
        np.linspace(-1, 1, rows) * min(tall, 1.25) / zoom + shift[1],
    )
    tilt = draw(-0.06, 0.06)
    x, y = x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)
    edge = draw(0.008, 0.02)

    wall = draw(0.68, 0.84)
    apex, base = draw(-0.82, -0.7), draw(0.42, 0.68)
    sides: dict[str, tuple[Array, Mask]] = {}
    for sign, name, scale in ((-1, "right", lung_scale[0]), (1, "left", lung_scale[1])):
        sides[name] = _lung(
            rng,
            sign * x,
            y,
            edge=edge,
            wall=wall * draw(0.94, 1.04),
            apex=apex,
            base=base - 0.04 * (sign < 0),
            scale=scale,
        )

    half = 0.97 + 0.1 * np.tanh(4 * (-y - 0.45)) - 0.06 * np.cos(3 * y)  # shoulders, waist
    body = _inside(half - np.abs(x), 0.03) * _inside(y + 1.05 - 0.5 * np.abs(x) ** 1.5, 0.05)
    neck = _inside(draw(0.22, 0.3) - np.abs(x), 0.03)
    body = np.maximum(body, neck)
    picture = body * (0.62 + 0.12 * np.sqrt(np.clip(1 - (x / 1.15) ** 2, 0, 1)))
    picture += 0.1 * body * _inside(y - base, 0.15)

    air = draw(0.3, 0.48)
    vessels = _clouds(rng, size, 60) * 0.6 + _clouds(rng, size, 25) * 0.6
    haze = _clouds(rng, size, 5) * draw(0.0, 0.12)
    for membership, _ in sides.values():
        picture -= membership * (air - 0.05 * vessels - np.abs(haze))

    picture += draw(0.14, 0.24) * np.exp(-((x / draw(0.12, 0.16)) ** 2)) * body
    spine = np.exp(-((x / 0.085) ** 2)) * (0.6 + 0.4 * np.sin(y * draw(34, 44)))
    picture += 0.05 * spine * body
    picture -= 0.1 * np.exp(-(((x - 0.01) / 0.035) ** 2)) * _inside(-0.35 - y, 0.05)  # trachea
    heart_x, heart_y = draw(0.08, 0.18), base - draw(0.22, 0.3)
    heart = ((x - heart_x) / draw(0.3, 0.4)) ** 2 + ((y - heart_y) / draw(0.26, 0.34)) ** 2
    picture += draw(0.15, 0.28) * _inside(1 - heart, 0.12) * _inside(base + 0.1 - y, 0.1)
    for sign in (-1, 1):
        hilum = ((x - sign * 0.2) / 0.09) ** 2 + ((y + 0.08) / 0.16) ** 2
        picture += 0.09 * np.exp(-hilum)
        clavicle = y + 0.62 + 0.28 * (np.abs(x) - 0.3) - 0.05 * np.sin(5 * np.abs(x))
        picture += 0.09 * np.exp(-((clavicle / 0.035) ** 2)) * _inside(sign * x - 0.1, 0.03) * body
    picture += _ribs(rng, x, y, wall) * body
    gas_x, gas_y, gas = draw(0.25, 0.5), base + draw(0.12, 0.3), draw(0.0, 0.25)
    bubble = ((x - gas_x) / draw(0.08, 0.2)) ** 2 + ((y - gas_y) / draw(0.05, 0.1)) ** 2
    picture -= gas * _inside(1 - bubble, 0.2)  # the stomach's, below the left diaphragm

    masks = {f"{name}_lung": mask for name, (_, mask) in sides.items()}
    masks["lesion"] = np.zeros(size, bool)
    if lesion is not None:
        out = lesion.across * (wall - 0.15) + 0.15
        centre = (-out if lesion.side == "right" else out, apex + lesion.down * (base - apex))
        reach = 2 * lesion.radius * (min(rows, columns) / columns) / zoom
        distance = np.hypot(x - centre[0], y - centre[1]) / reach
        picture += lesion.density * _inside(1 - distance, 0.15)
        masks["lesion"] = distance < 1

    picture = np.clip((picture - 0.02) * draw(0.8, 1.05), 0, None) ** draw(0.7, 1.5)
    picture += rng.normal(0, 1, size) * noise * (0.4 + 0.6 * np.clip(picture, 0, 1))
    return np.clip(picture, 0, 1).astype(np.float32), masks


def _lung(
    rng: np.random.Generator,
    x: Array,
    y: Array,
    *,
    edge: float,
    wall: float,
    apex: float,
    base: float,
    scale: float,
) -> tuple[Array, Mask]:
    """Soft membership and exact mask of one lung; ``x`` grows from the spine outwards."""
    draw = rng.uniform
    medial = 0.12 + 0.04 * np.cos(3 * y + draw(0, 1))
    medial += draw(0.0, 0.05) * np.exp(-(((y + 0.05) / 0.2) ** 2))
    outer = medial + (wall - medial) * scale
    bottom = apex + (base - apex) * scale
    dome = bottom + draw(0.12, 0.24) * ((x - draw(0.3, 0.42)) / 0.4) ** 2
    down = np.clip((y - apex) / (bottom - apex), 0, 1)
    shape = (1 - np.clip(1 - down / draw(0.5, 0.7), 0, 1) ** 2.2) ** (1 / 2.2)
    lateral = 0.2 * wall + (outer - 0.2 * wall) * shape
    limits = (x - medial, lateral - x, dome - y, y - apex)
    membership = np.prod([_inside(limit, edge) for limit in limits], axis=0)
    return membership, np.logical_and.reduce([limit > 0 for limit in limits])


def _ribs(rng: np.random.Generator, x: Array, y: Array, wall: float) -> Array:
    """Rear ribs falling outwards, front ribs falling inwards; brightness to add."""
    draw = rng.uniform
    count, strength = draw(9.5, 12), draw(0.02, 0.07)
    across = np.abs(x)
    cage = _inside(wall * 1.08 - across, 0.03) * _inside(0.75 - y, 0.1) * _inside(y + 0.9, 0.05)
    rear = np.sin(count * np.pi * (y + 0.25 * (across - 0.45) ** 2 * 3 + 0.05 * across))
    front = np.sin(count * np.pi * 0.9 * (y - 0.55 * across) + 1)
    bright = np.clip(rear, 0.2, 1) - 0.2 + 0.6 * (np.clip(front, 0.4, 1) - 0.4) * (across > 0.3)
    return np.asarray(strength * cage * bright)


def _inside(distance: Array, edge: float) -> Array:
    """1 well inside (``distance`` > 0), 0 well outside, smooth over ``edge``."""
    return np.asarray(0.5 * (1 + np.tanh(distance / edge)))


def _clouds(rng: np.random.Generator, size: tuple[int, int], cells: int) -> Array:
    """Smooth noise of unit deviation at the grid, about ``cells`` blobs along each axis."""
    grid = rng.normal(size=(cells + 1, cells + 1))
    rows, columns = (_interpolation(n, cells) for n in size)
    return np.asarray(rows @ grid @ columns.T)


def _interpolation(points: int, cells: int) -> Array:
    """``(points, cells + 1)`` weights that interpolate linearly between grid points."""
    at = np.linspace(0, cells, points)
    return np.asarray(np.clip(1 - np.abs(at[:, None] - np.arange(cells + 1)[None]), 0, 1))


# --- computed tomography -----------------------------------------------------------------------

Region = Literal["head", "chest", "abdomen"]
CT_FIELD_MM: dict[Region, float] = {"head": 250.0, "chest": 400.0, "abdomen": 420.0}
"""Width of the square field that is drawn; pixel spacing is this by ``size``."""


def ct_volume(
    seed: int,
    slices: int = 40,
    size: int = 512,
    region: Region = "chest",
    *,
    air_scale: float = 1.0,
    noise: float = 15.0,
) -> tuple[NDArray[np.int16], dict[str, Mask]]:
    """Axial slices of one region of a body on a table.

    Args:
        seed: draws the body, its fillings, the table and the noise.
        slices: frames, drawn from the region's lower end to its upper end.
        size: rows and columns.
        region: what is drawn.
        air_scale: size of lungs, sinuses and bowel gas against the drawn ones; 0.3 to 1.1.
        noise: standard deviation in Hounsfield units.

    Returns:
        Hounsfield units ``(slices, size, size)``: rows run to the patient's left, columns to the
        back (orientation 1, 0, 0, 0, 1, 0), frames to the head. And masks of that shape:
        ``body`` (the filled outline, without table and clothes), ``air`` (inside the body),
        ``bone``; the latter two lie within the first.
    """
    rng = np.random.default_rng(seed)
    anatomy = _Anatomy(rng, size)
    volume = np.empty((slices, size, size), np.int16)
    masks = {name: np.zeros(volume.shape, bool) for name in ("body", "air", "bone")}
    plan = {"head": _head, "chest": _chest, "abdomen": _abdomen}[region](rng, anatomy, air_scale)
    table = _table(rng)
    for i, height in enumerate(np.linspace(0, 1, slices)):
        canvas = _Canvas(anatomy)
        table(canvas)
        plan(canvas, float(height))
        grain = rng.normal(0, 1, (size, size))
        grain = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1)) / np.sqrt(3)
        volume[i] = np.clip(canvas.hu + noise * grain, -1024, 3071).astype(np.int16)
        for name, mask in canvas.masks().items():
            masks[name][i] = mask
    return volume, masks


class _Anatomy:
    """The grid and what stays the same in every slice."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        turn, shift = rng.uniform(-0.12, 0.12), rng.uniform(-0.06, 0.06, 2)
        x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
        self.level = y.astype(np.float32)  # the table does not turn with the patient
        self.side = x.astype(np.float32)
        x, y = x - shift[0], y - shift[1]
        self.x = (x * np.cos(turn) - y * np.sin(turn)).astype(np.float32)
        self.y = (x * np.sin(turn) + y * np.cos(turn)).astype(np.float32)
        self.edge = 2.0 / size
        self.cloud = _clouds(rng, (size, size), 40).astype(np.float32)
        self.fine = _clouds(rng, (size, size), 110).astype(np.float32)


class _Canvas:
    """One slice while it is drawn; later shapes lie on top of earlier ones."""

    def __init__(self, anatomy: _Anatomy) -> None:
        self.a = anatomy
        self.hu = np.full(anatomy.x.shape, -1000, np.float32)
        self._body = np.zeros(self.hu.shape, bool)
        self._air = np.zeros(self.hu.shape, bool)
        self._bone = np.zeros(self.hu.shape, bool)

    def radius(
        self, x: float, y: float, width: float, height: float, power: float = 2.0
    ) -> NDArray[np.float32]:
        """1 on a superellipse's outline, less inside; the grid's shape."""
        across = np.abs(self.a.x - x) / max(width, 1e-3)
        down = np.abs(self.a.y - y) / max(height, 1e-3)
        return np.asarray((across**power + down**power) ** (1 / power), np.float32)

    def fill(
        self,
        radius: NDArray[np.float32],
        hu: float | NDArray[np.float32],
        scale: float,
        kind: Literal["", "body", "air", "bone"] = "",
    ) -> None:
        """Paint where ``radius`` < 1; ``scale`` is the shape's half width, for a sharp edge."""
        soft = np.clip((1 - radius) * scale / (2 * self.a.edge) + 0.5, 0, 1)
        inside = radius < 1
        if kind != "body":  # nothing of the body lies outside its skin
            soft *= self._body
            inside &= self._body
        self.hu += soft * (hu - self.hu)
        if kind == "body":
            self._body |= inside
        elif kind:
            self._air &= ~inside
            self._bone &= ~inside
            target = self._air if kind == "air" else self._bone
            target |= inside

    def clear(
        self, radius: NDArray[np.float32], hu: float | NDArray[np.float32], scale: float
    ) -> None:
        """Paint soft tissue or fluid where ``radius`` < 1: neither air nor bone."""
        self.fill(radius, hu, scale)
        self._air &= radius >= 1
        self._bone &= radius >= 1

    def masks(self) -> dict[str, Mask]:
        """What was drawn; air and bone where their own values still show."""
        return {
            "body": self._body,
            "air": self._air & self._body & (self.hu < -400),
            "bone": self._bone & self._body & (self.hu > 200),
        }


def _table(rng: np.random.Generator) -> Callable[[_Canvas], None]:
    """A curved couch, a sheet, and now and then a head holder or a tube beside the patient."""
    draw = rng.uniform
    top, curve, thick = draw(0.5, 0.85), draw(0.0, 0.35), draw(0.06, 0.14)
    shell, foam, width = draw(-300, 300), draw(-950, -700), draw(0.5, 0.95)
    sides, holder = draw(0.6, 0.9), draw() < 0.5
    tube_x, tube_y, tube = draw(-0.9, 0.9), draw(-0.95, -0.8), draw(0.0, 0.03)

    def paint(canvas: _Canvas) -> None:
        x, y = canvas.a.side, canvas.a.level
        depth = y - (top - curve * x**2)
        inside = (np.abs(x) < width) & (depth > 0) & (depth < thick)
        skin = inside & ((depth < 0.012) | (depth > thick - 0.012))
        canvas.hu[inside] = foam
        canvas.hu[skin] = shell
        if holder:
            wall = np.abs(np.abs(x) - sides - 0.05 * (y - top)) < 0.008
            canvas.hu[wall & (y > -0.1) & (y < top)] = shell
        canvas.hu[np.hypot(x - tube_x, y - tube_y) < tube] = 80

    return paint


_Plan = Callable[[_Canvas, float], None]


def _trunk(rng: np.random.Generator) -> Callable[[_Canvas, float], tuple[float, float]]:
    """Outline with fat and muscle, spine; gives half width and half height inside the fat."""
    draw = rng.uniform
    wide, high, power = draw(0.62, 0.9), draw(0.4, 0.6), draw(2.0, 2.8)
    fat, taper = draw(0.04, 0.16), draw(-0.08, 0.08)
    bone, marrow = draw(450, 900), draw(220, 400)

    def paint(canvas: _Canvas, height: float) -> tuple[float, float]:
        scale = 1 + taper * (height - 0.5)
        a, b = wide * scale, high * scale
        wobble = 0.03 * canvas.a.cloud * 0.2
        canvas.fill(canvas.radius(0, 0, a, b, power) + wobble, -100, b, "body")
        a, b = a - fat, b - fat
        canvas.fill(canvas.radius(0, 0, a, b, power) + wobble, 50 + 10 * canvas.a.cloud, b)
        y = b * 0.62
        canvas.fill(canvas.radius(0, y, 0.1, 0.085), bone, 0.09, "bone")
        canvas.fill(canvas.radius(0, y, 0.085, 0.07), marrow + 40 * canvas.a.fine, 0.08, "bone")
        canvas.fill(canvas.radius(0, y + 0.13, 0.055, 0.05), bone, 0.05, "bone")
        canvas.clear(canvas.radius(0, y + 0.125, 0.035, 0.03), 20, 0.03)
        return a, b

    return paint


def _cage(canvas: _Canvas, a: float, b: float, *, height: float, bone: float, phase: float) -> None:
    """Ribs cut obliquely: patches on a ring that travel round it from slice to slice."""
    ring = canvas.radius(0, 0, a * 0.93, b * 0.93, 2.3)
    angle = np.arctan2(canvas.a.y / b, np.abs(canvas.a.x) / a)
    beat = np.cos(9 * angle + phase + 40 * height) - 0.35
    radius = 1 - np.minimum(0.045 - np.abs(ring - 1), 0.05 * beat) * 12
    canvas.fill(np.asarray(radius, np.float32), bone, 0.05, "bone")


def _chest(rng: np.random.Generator, anatomy: _Anatomy, air_scale: float) -> _Plan:
    draw = rng.uniform
    trunk, bone, phase = _trunk(rng), draw(400, 900), draw(0, 6)
    lungs = [(draw(0.4, 0.5), draw(0.75, 0.95)) for _ in range(2)]
    density, contrast = draw(-900, -780), draw(30, 330)
    texture = density + 45 * anatomy.fine + 40 * anatomy.cloud
    vessels = np.where(anatomy.fine > 2.1, 0, texture).astype(np.float32)

    def paint(canvas: _Canvas, height: float) -> None:
        a, b = trunk(canvas, height)
        _cage(canvas, a, b, height=height, bone=bone, phase=phase)
        open_ = np.sqrt(max(0.0, 1 - ((height - 0.45) / 0.62) ** 2))
        for sign, (wide, high) in zip((-1, 1), lungs, strict=True):
            w, h = a * wide * open_ * air_scale, b * high * open_ * air_scale
            if min(w, h) > 0.03:
                at = sign * a * 0.46
                canvas.fill(canvas.radius(at, -0.02 * b, w, h, 2.3), vessels, min(w, h), "air")
        heart = max(0.0, 1 - abs(height - 0.3) / 0.35)
        if heart > 0.1:
            w, h = 0.27 * heart, 0.22 * heart
            canvas.clear(canvas.radius(0.06, -0.12, w, h), 40 + contrast / 2, w)
        canvas.clear(canvas.radius(0.07, b * 0.42, 0.05, 0.05), 40 + contrast, 0.05)
        if height > 0.45:
            canvas.fill(canvas.radius(0.0, b * 0.15, 0.04, 0.035), -980, 0.035, "air")
        canvas.fill(canvas.radius(0, -b * 0.93, 0.1, 0.03), bone * 0.7, 0.03, "bone")

    return paint


def _abdomen(rng: np.random.Generator, anatomy: _Anatomy, air_scale: float) -> _Plan:
    draw = rng.uniform
    trunk, bone, phase = _trunk(rng), draw(400, 900), draw(0, 6)
    contrast = draw(0, 280)
    organs = [
        (draw(-0.5, 0.5), draw(-0.25, 0.3), draw(0.05, 0.2), draw(0.05, 0.16), draw(-20, 120))
        for _ in range(9)
    ]
    gas = [
        (draw(-0.5, 0.5), draw(-0.35, 0.1), draw(0.02, 0.12), draw(0.02, 0.1), draw(0, 1))
        for _ in range(int(rng.integers(3, 10)))
    ]

    def paint(canvas: _Canvas, height: float) -> None:
        a, b = trunk(canvas, height)
        canvas.fill(canvas.radius(0, -0.05, a * 0.85, b * 0.75), -90 + 20 * anatomy.cloud, b)
        if height > 0.4:
            grow = (height - 0.4) / 0.6
            w = 0.42 * grow
            canvas.fill(canvas.radius(-a * 0.4, -0.05, w, b * 0.7 * grow), 60 + contrast / 4, w)
            canvas.fill(canvas.radius(a * 0.62, 0.1, 0.2 * grow, 0.2 * grow), 55 + contrast / 3, w)
            _cage(canvas, a, b, height=height, bone=bone, phase=phase)
        for x, y, w, h, hu in organs:
            canvas.fill(canvas.radius(x * a, y, w, h), hu, min(w, h))
        for sign in (-1, 1):
            canvas.fill(canvas.radius(sign * a * 0.42, b * 0.4, 0.09, 0.1), 30 + contrast, 0.09)
        canvas.fill(canvas.radius(0.03, b * 0.38, 0.045, 0.045), 40 + contrast, 0.045)
        for x, y, w, h, at in gas:
            size = air_scale * np.sqrt(max(0.0, 1 - ((height - at) / 0.35) ** 2))
            if min(w, h) * size > 0.012:
                wall = canvas.radius(x * a, y, w * size + 0.015, h * size + 0.015)
                canvas.fill(wall, 35, min(w, h))
                canvas.fill(
                    canvas.radius(x * a, y, w * size, h * size), -960, min(w, h) * size, "air"
                )
        if height < 0.35:
            for sign in (-1, 1):
                wing = canvas.radius(sign * a * 0.6, b * 0.3, 0.22, 0.3)
                angle = np.abs(canvas.a.y - 0.25 - 0.7 * (sign * canvas.a.x - a * 0.5)) / 0.045
                blade = np.asarray(np.maximum(wing, angle), np.float32)
                canvas.fill(blade, bone + 60 * anatomy.fine, 0.045, "bone")

    return paint


def _head(rng: np.random.Generator, anatomy: _Anatomy, air_scale: float) -> _Plan:
    draw = rng.uniform
    wide, high, power = draw(0.52, 0.72), draw(0.62, 0.82), draw(1.9, 2.4)
    skull, bone, scalp = draw(0.04, 0.085), draw(700, 1500), draw(0.03, 0.09)
    cells = anatomy.fine
    sinuses = [(draw(0.12, 0.26), draw(0.35, 0.6), draw(0.05, 0.14)) for _ in range(2)]
    tilt = draw(-0.08, 0.08)

    def paint(canvas: _Canvas, height: float) -> None:
        close = np.sqrt(max(0.05, 1 - (max(0.0, height - 0.55) / 0.5) ** 2))
        a, b = wide * close, high * close
        base = height < 0.4
        canvas.fill(canvas.radius(0, tilt, a, b, power) + 0.006 * anatomy.cloud, 20, a, "body")
        for sign in (-1, 1):
            if 0.15 < height < 0.45:
                ear = canvas.radius(sign * (a + 0.03), tilt + 0.05, 0.06, 0.1)
                canvas.fill(ear, 0, 0.05, "body")
        if height < 0.4:  # the nose
            canvas.fill(canvas.radius(0, tilt - b, 0.1, 0.12), 10, 0.1, "body")
        a, b = a - scalp, b - scalp
        if min(a, b) < 0.06:
            return
        canvas.fill(canvas.radius(0, tilt, a, b, power), bone + 120 * cells, a, "bone")
        a, b = a - skull, b - skull
        if min(a, b) < 0.03:
            return
        canvas.clear(canvas.radius(0, tilt, a, b, power), 35 + 4 * anatomy.cloud, a)
        if not base:
            for sign in (-1, 1):
                ventricle = canvas.radius(sign * 0.1, tilt, 0.05, 0.2 * close)
                canvas.fill(ventricle, 5, 0.05)
            return
        _skull_base(canvas, a, b, tilt)

    def _skull_base(canvas: _Canvas, a: float, b: float, y: float) -> None:
        front = canvas.radius(0, y - b * 0.55, a * 0.6, b * 0.42)
        canvas.fill(front, bone * 0.6 + 250 * cells, 0.2, "bone")
        gaps = np.where(cells > 0.2, front, np.float32(2))
        canvas.clear(gaps.astype(np.float32), 40, 0.2)
        for sign, (x, depth, r) in zip((-1, 1), sinuses, strict=True):
            size = r * air_scale
            canvas.fill(
                canvas.radius(sign * x, y - b * depth, size + 0.02, size * 1.2 + 0.02),
                bone,
                size,
                "bone",
            )
            canvas.fill(canvas.radius(sign * x, y - b * depth, size, size * 1.2), -950, size, "air")
            petrous = canvas.radius(sign * a * 0.7, y + b * 0.2, 0.2, 0.12)
            canvas.fill(petrous, bone, 0.12, "bone")
            honeycomb = np.where(cells > 0.5, petrous, np.float32(2))
            canvas.fill(honeycomb.astype(np.float32), -850, 0.1 * air_scale, "air")
            canvas.fill(
                canvas.radius(sign * 0.045, y - b * 0.75, 0.03 * air_scale, b * 0.3),
                -900,
                0.03,
                "air",
            )
        canvas.fill(canvas.radius(0, y + b * 0.45, 0.2, 0.16), bone, 0.15, "bone")
        canvas.clear(canvas.radius(0, y + b * 0.45, 0.13, 0.1), 30, 0.1)

    return paint
