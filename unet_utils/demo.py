"""The demo set: street scenes drawn by us, in exactly the format of the Kaggle pairs.

Every scene is a small 3-D street seen through a pinhole camera: x points right, y up, z ahead, in metres. Shapes are
drawn far to near on a photo and, in the same call, on a map of official label ids, so the true classes are known.
"""

import json
import math
import tempfile
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from shutil import rmtree

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from unet_utils.classes import LABELS
from unet_utils.decoding import SIDE, jpeg, shrink

HEIGHT, WIDTH = 512, 1024
NEAR, FAR = 2.2, 400.0  # metres: nothing is drawn outside
SPLITS = ("train", "val")
STAMP = "demo.json"  # written last, says how the set was made
VERSION = 1  # of the drawings: raise it to have existing demo sets drawn again
ID = {label.name: label.id for label in LABELS}
ROUGH = {"vegetation": 12, "terrain": 9, "building": 4, "wall": 7, "road": 5, "sidewalk": 7, "sky": 1}
ROUGHNESS = np.array([ROUGH.get(label.name, 2) for label in LABELS], dtype=np.float32)  # texture, in grey levels
COLORS = np.array([label.color for label in LABELS], dtype=np.uint8)  # both are indexed by label id


def _rgb(text: str) -> list[tuple[int, ...]]:
    return [tuple(bytes.fromhex(color)) for color in text.split()]


# Classes share colours on purpose: a network has to look at shape and place, not only at the colour of a pixel.
PAINTS = {
    "car": _rgb("1c1e22 2a2c32 3c3e44 787c80 9a9ea2 b0b2b4 dededc ececea 961818 1e346e 466086 3a543c aa9676 c49628"),
    "wall": _rgb("c4baa4 a8a096 8c8480 cebe96 965c4a b68064 787068 d6d2ca b0a878 6e767e caa48c e0dacc 9aa0a4"),
    "cloth": _rgb("1e2028 323850 6e6e70 aa2c30 2c5432 c8c4ba 285a96 b48c3c 604634 ce788c 404042 16181c 8a9aa8"),
    "roof": _rgb("783e30 543c36 484a50 605c5a"),
    "glass": _rgb("343c46 54606c 24282e 6c7c8c"),
    "skin": _rgb("e2b89c be8c6e 785038"),
    "hair": _rgb("281e18 5a422c aa8c5a 1e1e20 8a8a88"),
    "leaf": _rgb("46662c 38562a 5c7434 6e7a3a 4a5a34 8a7430"),
    "grass": _rgb("627440 7a7a50 5c7a3c 8a8460"),
    "trunk": _rgb("46382c 5c5246"),
    "fence": _rgb("584230 3c403e 969896 32543c b8b4a8"),
    "pole": _rgb("606264 8c8e8e 3c4240"),
    "asphalt": _rgb("545456 646466 707070 7a7876 4a4c50"),
    "paving": _rgb("96928c a4968c 82807e 6c6c6c 746e68"),
    "bin": _rgb("3c5a3c 2c3a5a 50443a 8a6a28 303234"),
}
PROFILES = [  # cars from the side: share of the length from the rear, height in metres
    ((0.02, 0.3), (0, 0.5), (0, 0.8), (0.03, 0.96), (0.14, 1.4), (0.34, 1.47), (0.56, 1.42), (0.76, 0.98), (0.96, 0.8),
     (1, 0.6), (0.98, 0.3)),
    ((0.02, 0.3), (0, 0.5), (0.01, 0.88), (0.15, 0.97), (0.29, 1.36), (0.42, 1.43), (0.57, 1.38), (0.75, 0.96),
     (0.96, 0.78), (1, 0.58), (0.98, 0.3)),
    ((0.01, 0.35), (0, 0.5), (0, 1.1), (0.05, 1.85), (0.1, 1.95), (0.7, 1.95), (0.74, 1.9), (0.87, 1.12), (0.98, 0.95),
     (1, 0.7), (0.99, 0.35)),
]  # fmt: skip


class Canvas:
    """A photo and its label map, drawn together through one camera."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.focal, self.eye = rng.uniform(850, 1050), rng.uniform(1.25, 1.6)
        self.center, self.horizon = WIDTH / 2 + rng.normal(0, 40), HEIGHT * rng.uniform(0.38, 0.46)
        self.bend = rng.normal(0, 0.0009)  # the street bends: x grows by bend * z^2
        self.light = str(rng.choice(["sun", "overcast", "dusk"], p=[0.5, 0.35, 0.15]))
        self.cast = int(rng.choice([-1, 1]))  # where shadows fall: left or right
        self.haze = {"sun": (186, 204, 222), "overcast": (196, 199, 202), "dusk": (206, 170, 150)}[self.light]
        self.reach = rng.uniform(120, 350)  # metres after which haze has taken 63 % of a colour
        self.waiting: list[tuple] = []
        self.shadows = Image.new("L", (WIDTH, HEIGHT), 0)
        self.labels = Image.new("L", (WIDTH, HEIGHT), ID["sky"])
        self.photo = _sky(self)
        self.pens = [ImageDraw.Draw(image) for image in (self.photo, self.labels, self.shadows)]

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Column and row of a point."""
        z = max(z, NEAR)
        scale = self.focal / z
        return self.center + scale * (x + self.bend * z * z), self.horizon + scale * (self.eye - y)

    def face(self, points, color=None, label=None, haze=True, cull=False) -> bool:
        """Draws a polygon of (x, y, z) points; without a colour or without a label only on the other picture.

        With `cull`, a polygon that turns its back to the camera is not drawn, and the answer is False.
        """
        flat = [self.project(*point) for point in points]
        if cull and sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(flat, flat[1:] + flat[:1], strict=True)) <= 0:
            return False
        if color is not None:
            self.pens[0].polygon(flat, fill=self.hazed(color, sum(p[2] for p in points) / len(points) if haze else 0))
        if label is not None:
            self.pens[1].polygon(flat, fill=ID[label])
        return True

    def shape(self, plane, points, color=None, label=None) -> None:
        """A polygon of (u, v) points on a plane, which is a function (u, v) -> (x, y, z)."""
        self.face([plane(u, v) for u, v in points], color, label)

    def patch(self, plane, u0, u1, v0, v1, color=None, label=None) -> None:
        """A rectangle on a plane."""
        self.shape(plane, ((u0, v0), (u0, v1), (u1, v1), (u1, v0)), color, label)

    def disc(self, x, y, z, rx, ry, color=None, label=None, ring=0.0) -> None:
        """An upright ellipse with radii in metres; with `ring` the photo gets only an outline of that thickness."""
        (u, v), scale = self.project(x, y, z), self.focal / max(z, NEAR)
        if not -rx * scale < u < WIDTH + rx * scale:
            return
        box = (u - rx * scale, v - ry * scale, u + rx * scale, v + ry * scale)
        if color is not None and ring:
            self.pens[0].ellipse(box, None, self.hazed(color, z), max(1, round(ring * scale)))
        elif color is not None:
            self.pens[0].ellipse(box, self.hazed(color, z))
        if label is not None:
            self.pens[1].ellipse(box, ID[label])

    def ground(self, x0, x1, color=None, label=None, z0=NEAR, z1=FAR, shadow=0) -> None:
        """A piece of the ground that follows the bend of the street; with `shadow` (0 to 255) a shadow instead."""
        z0, z1 = max(z0, NEAR), max(z1, NEAR)
        steps = 1 + int(7 * math.log(z1 / z0))
        depths = [z0 * (z1 / z0) ** (i / steps) for i in range(steps + 1)]
        points = [(x0, 0, z) for z in depths] + [(x1, 0, z) for z in depths[::-1]]
        if shadow:
            self.pens[2].polygon([self.project(*point) for point in points], fill=shadow)
        else:
            self.face(points, color, label, haze=False)

    def shadow(self, x, z, half, depth, height, strength=130) -> None:
        """Darkens the ground under a thing, and beside it when the sun shines."""
        shift = self.cast * height * 0.7 if self.light == "sun" else 0
        self.ground(x - half + min(shift, 0), x + half + max(shift, 0), z0=z - depth, z1=z + depth, shadow=strength)

    def put(self, z: float, draw, *args) -> None:
        """Remembers a thing; all of them are drawn later, the farthest first."""
        self.waiting.append((z, draw, args))

    def pick(self, paint: str, spread: float = 10) -> tuple[float, ...]:
        """One of the colours of that name, varied a little."""
        base = PAINTS[paint][self.rng.integers(len(PAINTS[paint]))]
        lighter, *tint = self.rng.normal(0, spread, 4).tolist()
        return tuple([min(255, max(8, value + lighter + change / 2)) for value, change in zip(base, tint, strict=True)])

    def lit(self, normal: float) -> float:
        """How bright a wall is that looks left (-1) or right (1)."""
        return 0.9 - (0.17 * normal * self.cast if self.light == "sun" else 0)

    def hazed(self, color, z: float) -> tuple[int, ...]:
        """The colour as seen through `z` metres of air."""
        (r, g, b), (hr, hg, hb), keep = color, self.haze, math.exp(-z / self.reach)
        r, g, b = hr + (r - hr) * keep, hg + (g - hg) * keep, hb + (b - hb) * keep
        return min(255, int(r)), min(255, int(g)), min(255, int(b))


def _shade(color, factor: float) -> tuple[float, float, float]:
    return color[0] * factor, color[1] * factor, color[2] * factor


def _upright(x: float, z: float, stretch: float = 1.0, lift: float = 0.0):
    """The plane that faces the camera at (x, z)."""
    return lambda u, v: (x + u * stretch, v + lift, z)


def _along(x: float, z: float):
    """The plane along the street at x, from z on."""
    return lambda u, v: (x, v, z + u)


def _placed(x: float, z: float, heading: float):
    """Maps a thing's own coordinates (right, up, ahead) to the street's; heading 0 drives away from the camera."""
    cos, sin = math.cos(heading), math.sin(heading)
    return lambda u, y, w: (x + u * cos + w * sin, y, z - u * sin + w * cos)


def _box(c: Canvas, at, u, y, w, color, label: str) -> None:
    """A box, given by its ranges along the three axes of `at`."""
    (u0, u1), (y0, y1), (w0, w1) = u, y, w
    for light, corners in (
        (1.1, ((u0, y1, w0), (u0, y1, w1), (u1, y1, w1), (u1, y1, w0))),
        (0.9, ((u0, y0, w0), (u0, y1, w0), (u1, y1, w0), (u1, y0, w0))),
        (0.8, ((u1, y0, w1), (u1, y1, w1), (u0, y1, w1), (u0, y0, w1))),
        (c.lit(-1), ((u0, y0, w1), (u0, y1, w1), (u0, y1, w0), (u0, y0, w0))),
        (c.lit(1), ((u1, y0, w0), (u1, y1, w0), (u1, y1, w1), (u1, y0, w1))),
    ):
        c.face([at(*corner) for corner in corners], _shade(color, light), label, cull=True)


# Things that stand ---------------------------------------------------------------------------------------------------


def _building(c: Canvas, side: int, x: float, z0: float, z1: float, height: float, exposed: bool) -> None:
    """A house beside the street; `side` is -1 (left) or 1, `exposed` says whether its near end can be seen."""
    rng, wall, tiles = c.rng, c.pick("wall", 14), c.pick("roof")
    top = height + (rng.uniform(1.5, 3.5) if rng.random() < 0.6 else 0)
    style = rng.uniform(2.9, 3.6), rng.uniform(2.0, 3.4), rng.uniform(0.4, 0.6), rng.uniform(0.45, 0.62)
    colors = c.pick("glass", 6), rng.choice([0.75, 1.25]), c.pick("wall", 20) if rng.random() < 0.5 else None
    front, end = _along(x, z0), lambda u, v: (x + side * u, v, z0)
    c.patch(end, 0, 30, 0, height, _shade(wall, 0.8), "building")
    c.shape(end, ((0, height), (3, top), (30, top), (30, height)), _shade(wall, 0.75), "building")
    if exposed:
        _windows(c, end, 30, height, _shade(wall, 0.8), style, colors)
    c.patch(front, 0, z1 - z0, 0, height, _shade(wall, c.lit(-side)), "building")
    c.face([(x, height, z0), (x + 3 * side, top, z0), (x + 3 * side, top, z1), (x, height, z1)], tiles, "building")
    if z0 < 90:
        _windows(c, front, z1 - z0, height, _shade(wall, c.lit(-side)), style, colors)


def _windows(c: Canvas, plane, length: float, height: float, wall, style, colors) -> None:
    (floor, step, wide, tall), (glass, contrast, shop) = style, colors
    if shop:
        c.patch(plane, 0, length, 0, floor, shop)
    for level in range(int(height / floor)):
        c.patch(plane, 0, length, level * floor, level * floor + 0.15, _shade(wall, contrast))
        arcade = shop and level == 0  # shops have wide, low windows
        low, half = level * floor + (0.35 if arcade else floor * 0.27), step * (0.42 if arcade else wide / 2)
        for u in np.arange(step / 2, length - step / 2, step).tolist():
            lamp = c.light == "dusk" and c.rng.random() < 0.3
            pane = (255, 220, 150) if lamp else _shade(glass, c.rng.uniform(0.7, 1.4))
            c.patch(plane, u - half - 0.1, u + half + 0.1, low - 0.1, low + tall * floor + 0.1, _shade(wall, contrast))
            c.patch(plane, u - half, u + half, low, low + tall * floor, pane)


def _barrier(c: Canvas, x: float, z0: float, z1: float, height: float, kind: str) -> None:
    """A wall, or a fence of bars; as in Cityscapes the gaps of a fence are labelled fence too."""
    plane, length, color = _along(x, z0), z1 - z0, c.pick("wall" if kind == "wall" else "fence")
    c.patch(plane, 0, length, 0, height, _shade(color, 0.85) if kind == "wall" else None, kind)
    c.patch(plane, 0, length, height - 0.12, height, _shade(color, 1.15), kind)
    if kind == "fence":
        c.patch(plane, 0, length, 0.2, 0.3, color)
        for u in np.arange(length, 0, -0.3 if z0 < 30 else -0.6).tolist():
            c.patch(plane, u - 0.1, u, 0, height, _shade(color, 0.95))


def _leaves(c: Canvas, x, y, z, rx, ry, color, count: int) -> None:
    """A crown or a bush: dark leaves first, then lighter ones, lightest towards the sun."""
    rng = c.rng
    for i, (turn, far, size, hue) in enumerate(rng.random((count, 4)).tolist()):
        t, far = i / count, math.sqrt(far) * 0.85
        u, v = far * math.cos(6.28 * turn), far * math.sin(6.28 * turn)
        size = (0.1 + 0.24 * size) * (1.3 - 0.7 * t)
        light = 0.5 + 0.5 * t + 0.2 * v - 0.12 * u * c.cast + 0.2 * (hue - 0.5)
        tint = color[0] * light * (0.85 + 0.3 * hue), color[1] * light, color[2] * light
        low = max(y + v * ry, size * rx * 0.8)  # bushes stand on the ground
        c.disc(x + u * rx, low, z, size * rx, size * rx * 0.9, tint, "vegetation")


def _tree(c: Canvas, x: float, z: float, size: float, color) -> None:
    lean, w, wide = c.rng.normal(0, 0.2), 0.03 * size, size * c.rng.uniform(0.26, 0.38)
    trunk = ((-w, 0), (lean - w * 0.6, size * 0.55), (lean + w * 0.6, size * 0.55), (w, 0))
    c.shape(_upright(x, z), trunk, c.pick("trunk"), "vegetation")
    for u, v, part in ((-0.45, 0.6, 0.65), (0.45, 0.63, 0.65), (0, 0.74, 0.9)):
        u, v = u + c.rng.normal(0, 0.12), v + c.rng.normal(0, 0.03)
        _leaves(c, x + lean + u * wide, size * v, z, wide * part, wide * part, color, int(min(45, 5 + 500 / z)))


def _pole(c: Canvas, x: float, z: float, height: float, top: str, side: int) -> None:
    """A pole with a lamp, a sign, a traffic light or nothing on it."""
    plane, color, w = _upright(x, z), c.pick("pole"), 0.05 if top == "sign" else 0.08
    c.patch(plane, -w, w, 0, height, color, "pole")
    if top == "lamp":
        arm = -1.7 * side
        c.shape(plane, ((0, height), (arm, height + 0.25), (arm, height + 0.12), (0, height - 0.15)), color, "pole")
        c.disc(x + arm, height + 0.15, z, 0.4, 0.12, (255, 240, 200) if c.light == "dusk" else color, "pole")
    elif top == "light":
        c.patch(plane, -0.2, 0.2, height - 1, height, (30, 32, 32), "traffic light")
        on = c.rng.integers(3)
        for i, lamp in enumerate(((255, 50, 40), (255, 190, 50), (70, 240, 140))):
            c.disc(x, height - 0.2 - 0.3 * i, z, 0.13, 0.13, lamp if i == on else (52, 54, 54))
    elif top == "sign":
        red, blue, white, yellow = _rgb("c41e22 1e46a0 e8e8e4 ecbe28")
        round_, square = ((24, 0, red, white), (24, 0, blue, white)), (4, 0.125, blue, white)
        kinds = (*round_, square, (3, 0.25, red, white), (4, 0.25, white, yellow))
        corners, turn, rim, inner = kinds[c.rng.integers(len(kinds))]
        for radius, paint in ((0.42, rim), (0.27, inner)):
            angles = [2 * math.pi * (turn + i / corners) for i in range(corners)]
            ring = [(radius * math.cos(a), height + radius * math.sin(a)) for a in angles]
            c.shape(plane, ring, paint, "traffic sign")


# Things that move ----------------------------------------------------------------------------------------------------


def _person(c: Canvas, x: float, z: float, height: float, label: str = "person", lift: float = 0.0) -> None:
    """Somebody who walks or, with `lift`, rides."""
    rng, s = c.rng, height / 1.75
    plane = _upright(x, z, s * rng.uniform(0.65, 1.05), lift)
    coat, legs, step = c.pick("cloth"), c.pick("cloth"), rng.uniform(0.03, 0.24)
    hem = s * rng.choice([0.8, 0.8, 0.55])  # a jacket or a coat
    for sign in (-1, 1):
        hip, foot, dim = sign * 0.08, sign * step, 1 - 0.12 * sign
        leg = ((foot - 0.07, 0), (hip - 0.11, s * 0.9), (hip + 0.11, s * 0.9), (foot + 0.07, 0))
        c.shape(plane, leg, _shade(legs, dim), label)
        c.patch(plane, foot - 0.08, foot + 0.13, 0, 0.08, (36, 34, 32), label)
        arm = ((sign * 0.2, s * 1.42), (sign * 0.32, s * 0.85), (sign * 0.24, s * 0.82), (sign * 0.12, s * 1.3))
        c.shape(plane, arm, _shade(coat, 0.8), label)
    torso = ((-0.2, hem), (-0.23, s * 1.38), (-0.1, s * 1.49), (0.1, s * 1.49), (0.23, s * 1.38), (0.2, hem))
    c.shape(plane, torso, coat, label)
    c.disc(x, lift + 1.62 * s, z, 0.1 * s, 0.14 * s, c.pick("skin"), label)
    c.disc(x, lift + 1.68 * s, z, 0.11 * s, 0.09 * s, c.pick("hair"), label)


def _cycle(c: Canvas, x: float, z: float, turn: float, kind: str, ridden: bool) -> None:
    """A bicycle or a motorcycle; `turn` is 1 seen from the side and near 0 seen from behind."""
    motor, color = kind == "motorcycle", c.pick("car")
    plane, wheel = _upright(x, z, turn), 0.32 if motor else 0.35
    for end in (-0.58, 0.58):
        hub, wide = x + end * max(0, turn - 0.15), max(wheel * turn, 0.1)
        c.disc(hub, wheel, z, wide, wheel, (34, 34, 36), kind, 0.13 if motor else 0.05)
    frame = ((-0.58, 0.36), (-0.18, 0.85), (0.4, 0.85), (0.58, 0.36), (0, 0.32))
    c.shape(plane, frame, color if motor else None, kind)
    for (u0, v0), (u1, v1) in pairwise((*frame, frame[0])):
        c.shape(plane, ((u0, v0 - 0.03), (u0, v0 + 0.03), (u1, v1 + 0.03), (u1, v1 - 0.03)), color)
    for u, v, half in ((-0.18, 0.92, 0.1 + 0.13 * turn), (0.35, 1.03, 0.28)):  # saddle and handlebar
        c.patch(_upright(x + u * turn, z), -half, half, v - 0.04, v + 0.04, (32, 32, 34), kind)
    if ridden:
        _person(c, x, z, 1.5, "rider", 0.3)


def _car(c: Canvas, x: float, z: float, heading: float) -> None:
    """A car: the profile of its side, drawn out across its width and narrower towards the roof."""
    rng, paint, glass, at = c.rng, c.pick("car"), c.pick("glass", 5), _placed(x, z, heading)
    outline = PROFILES[rng.choice(3, p=[0.48, 0.38, 0.14])]
    length, half = rng.uniform(3.9, 4.7), rng.uniform(0.83, 0.92)
    profile = [((t - 0.5) * length, y, half - 0.2 * min(1, max(0, (y - 0.9) / 0.5))) for t, y in outline]
    axles = (-0.31 * length, 0.31 * length)
    _box(c, at, (0.1 - half, half - 0.1), (0.08, 0.4), (-0.46 * length, 0.46 * length), (16, 16, 18), "car")
    for w in axles:
        for u in (0.12 - half, half - 0.12):
            _box(c, at, (u - 0.1, u + 0.1), (0, 0.5), (w - 0.26, w + 0.26), (24, 24, 26), "car")
    for (w0, y0, h0), (w1, y1, h1) in sorted(pairwise(profile), key=lambda ends: -at(0, 0, ends[0][0] + ends[1][0])[2]):
        flat = abs(w1 - w0) / math.hypot(w1 - w0, y1 - y0)  # 1 for the roof, 0 for the tail
        corners = [at(-h0, y0, w0), at(-h1, y1, w1), at(h1, y1, w1), at(h0, y0, w0)]
        seen = c.face(corners, _shade(paint, (0.8 if y0 + y1 > 1.1 else 0.6) + 0.35 * flat), "car", cull=True)
        if seen and max(y0, y1) > 1.3 and abs(y1 - y0) > 0.3:
            inner = [
                (sign * (h0 + t * (h1 - h0) - 0.09), t) for sign, t in ((-1, 0.08), (-1, 0.92), (1, 0.92), (1, 0.08))
            ]
            c.face([at(u, y0 + t * (y1 - y0), w0 + t * (w1 - w0)) for u, t in inner], glass)
    for sign in (-1, 1):
        side, color = [at(sign * h, y, w) for w, y, h in profile], _shade(paint, c.lit(sign * math.cos(heading)))
        if not c.face(side[::sign], color, "car", cull=True):
            continue
        cabin = [(w, y, h) for w, y, h in profile if y > 1.2 or (y > 0.94 and abs(w) < 0.4 * length)]
        middle, sill = sum(w for w, _, _ in cabin) / len(cabin), min(y for _, y, _ in cabin) + 0.03
        c.face([at(sign * h, max(sill, y - 0.08), middle + (w - middle) * 0.9) for w, y, h in cabin], glass)
        pillar = ((half, 0.9, -0.05), (half - 0.19, 1.4, -0.05), (half - 0.19, 1.4, 0.05), (half, 0.9, 0.05))
        c.face([at(sign * u, y, middle + w) for u, y, w in pillar], _shade(paint, 0.8))
        for w in axles:
            for radius, rubber in ((0.35, (22, 22, 24)), (0.21, (140, 142, 144))):
                rim = [(0.34 + radius * math.sin(a), w + radius * math.cos(a)) for a in np.linspace(0, 6, 14).tolist()]
                c.face([at(sign * half, y, w) for y, w in rim], rubber, "car")
    _lights(c, at, heading, -length / 2 - 0.01, half - 0.17, 0.72)


def _lights(c: Canvas, at, heading: float, back: float, half: float, y: float) -> None:
    """Tail lights or headlights, and the number plate, on the end that we see."""
    if abs(math.cos(heading)) < 0.3:
        return
    away = math.cos(heading) > 0
    plane = lambda u, v: at(u, v, back if away else -back)  # noqa: E731
    for u in (-half, half):
        c.patch(plane, u - 0.14, u + 0.14, y - 0.08, y + 0.08, (200, 26, 24) if away else (250, 250, 236))
    c.patch(plane, -0.25, 0.25, y - 0.25, y - 0.13, (228, 228, 222))


def _large(c: Canvas, x: float, z: float, heading: float, kind: str) -> None:
    """A truck, a bus or a tram, whose label is `train`: boxes with windows."""
    at, color, glass = _placed(x, z, heading), c.pick(c.rng.choice(["car", "wall"]), 20), c.pick("glass", 5)
    half, top, length = {"truck": (1.2, 3.2, 7.5), "bus": (1.25, 3.0, 11), "train": (1.2, 3.4, 24)}[kind]
    back = -length / 2
    for w in (-0.3 * length, 0.3 * length):
        _box(c, at, (0.05 - half, half - 0.05), (0, 0.9), (w - 0.5, w + 0.5), (26, 26, 28), kind)
    parts = [(back, -back, 0.3, top, color)]
    if kind == "truck":  # load and cab, the farther one first
        parts = [(back, 0.2 * length, 0.8, top, color), (0.23 * length, -back, 0.4, 2.5, c.pick("car"))]
    for w0, w1, y0, y1, paint in sorted(parts, reverse=math.cos(heading) > 0):
        _box(c, at, (-half, half), (y0, y1), (w0, w1), paint, kind)
    spans = [(0.8, 0.95)] if kind == "truck" else [(i / 9 + 0.01, i / 9 + 0.1) for i in range(9)]
    for sign in (-1, 1):
        for a, b in spans:
            pane = [at(sign * half, y, back + w * length) for w, y in ((a, 1.4), (a, 2.3), (b, 2.3), (b, 1.4))]
            c.face(pane[::sign], glass, cull=True)
    away = math.cos(heading) > 0
    if kind != "truck" or not away:
        c.patch(lambda u, v: at(u, v, back if away else -back), -0.85 * half, 0.85 * half, 1.35, 2.35, glass)
    _lights(c, at, heading, back - 0.01, half - 0.25, 0.85)


# Whole streets -------------------------------------------------------------------------------------------------------


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws one street.

    Args:
        rng: the only source of chance: the same state gives the same scene.

    Returns:
        The photo `uint8 [512, 1024, 3]` and its official label ids `uint8 [512, 1024]`.
    """
    c = Canvas(rng)
    end, middle, asphalt = rng.uniform(60, 130), -rng.uniform(1.6, 2.2), c.pick("asphalt", 5)
    parked = {side: rng.random() < 0.6 for side in (-1, 1)}
    kerbs = {-1: middle - rng.uniform(3.1, 4) - 2.2 * parked[-1], 1: rng.uniform(1.8, 3) + 2.2 * parked[1]}
    start = rng.uniform(14, 40) if rng.random() < 0.4 else 2 * FAR
    crossing = (start, start + rng.uniform(6, 9))
    c.ground(-FAR, FAR, c.pick("grass"), "terrain", 8)
    c.ground(kerbs[-1], kerbs[1], asphalt, "road")
    for side in (-1, 1):
        _roadside(c, side, kerbs[side], end, crossing)
        if parked[side]:
            _parked(c, side, kerbs[side], end, crossing)
    _road(c, kerbs, middle, asphalt, end, crossing)
    _background(c, end)
    _light_ground(c)
    for _, draw, args in sorted(c.waiting, key=lambda thing: -thing[0]):
        draw(c, *args)
    if rng.random() < 0.7:
        _hood(c)
    return _develop(c), np.asarray(c.labels)


def _background(c: Canvas, end: float) -> None:
    """What closes the street far away: houses and trees."""
    leaf = c.pick("leaf")
    for x in range(-80, 81, 9):
        if c.rng.random() < 0.6:
            height, wall = c.rng.uniform(8, 18), c.pick("wall")
            c.put(end + 20, Canvas.patch, _upright(x, end + 15), 0, 9, 0, height, wall, "building")
        c.put(end + 8, _leaves, x + c.rng.uniform(0, 9), c.rng.uniform(2, 5), end + 6, 7, 5, leaf, 24)


def _roadside(c: Canvas, side: int, kerb: float, end: float, crossing: tuple[float, float]) -> None:
    """Pavement, the houses, gardens and fences behind it, and everything that stands on it."""
    rng, width, pave, leaf = c.rng, c.rng.uniform(2.5, 7), c.pick("paving", 8), c.pick("leaf", 8)
    edge = kerb + side * width
    c.ground(kerb, edge, pave, "sidewalk")
    if rng.random() < 0.45:
        c.ground(kerb, kerb + side * rng.uniform(0.7, 1.4), c.pick("grass"), "terrain")
    c.ground(kerb, kerb + side * 0.16, _shade(pave, 1.2), "sidewalk")
    free = lambda z: not crossing[0] - 3 < z < crossing[1] + 3  # noqa: E731
    urban, height, exposed, z = rng.uniform(0.3, 1), rng.uniform(10, 21), False, rng.uniform(NEAR, 6)
    while z < end:
        z1 = min(z + rng.uniform(8, 16), end, crossing[0] - 3 if z < crossing[0] - 3 else FAR)
        if not free(z + 0.01):
            z1, exposed = crossing[1] + 3, True
        elif rng.random() < urban * 0.93:
            c.put(z1, _building, side, edge, z, z1, height * rng.uniform(0.75, 1.25), exposed)
            exposed = False
            if side != c.cast and c.light == "sun":
                c.ground(edge, edge - side * height * 0.45, z0=z, z1=z1, shadow=120)
        else:
            _garden(c, side, edge, z, z1, leaf)
            exposed = True
        z = z1
    if rng.random() < 0.7:
        for z in filter(free, np.arange(rng.uniform(7, 16), end * 0.8, rng.uniform(8, 16)).tolist()):
            x, size = kerb + side * 0.8, rng.uniform(4.5, 8)
            c.shadow(x, z, size / 4, size / 6, size / 2, 90)
            c.put(z, _tree, x, z, size, leaf)
    for z in filter(free, np.arange(rng.uniform(8, 14), end * 0.8, rng.uniform(9, 16)).tolist()):
        top = str(rng.choice(["lamp", "sign", "light", "none"], p=[0.3, 0.42, 0.16, 0.12]))
        size = {"lamp": 6.5, "sign": 2.4, "light": 3.2, "none": 4}[top] * rng.uniform(0.9, 1.1)
        c.shadow(kerb + side * 0.4, z, 0.08, 0.1, 2)
        c.put(z, _pole, kerb + side * 0.4, z, size, top, side)
    for _ in range(rng.poisson(3.5)):
        x, z = kerb + side * rng.uniform(0.7, max(0.9, width - 0.4)), rng.uniform(8, 40)
        for friend in range(rng.choice([1, 1, 2, 3]) * free(z)):
            c.shadow(x + 0.6 * friend, z, 0.25, 0.12, 1.2)
            c.put(z, _person, x + 0.6 * friend, z, rng.uniform(1.4, 1.9))
    for _ in range(rng.poisson(1.3)):
        x, z = edge - side * rng.uniform(0.7, 1.5), rng.uniform(6, 25)
        kind = "motorcycle" if rng.random() < 0.3 else "bicycle"
        for i in range(rng.integers(1, 4) * free(z)):
            c.shadow(x, z + i, 0.5, 0.12, 0.3)
            c.put(z + i, _cycle, x, z + i, rng.uniform(0.4, 0.9), kind, False)
    for _ in range(rng.poisson(0.6)):  # bins and boxes
        z, kind = rng.uniform(8, 30), "dynamic" if rng.random() < 0.5 else "static"
        c.shadow(edge - side * 0.5, z, 0.35, 0.4, 1)
        at, height = _placed(edge - side * 0.5, z, 0), rng.uniform(0.9, 1.4)
        c.put(z, _box, at, (-0.3, 0.3), (0, height), (-0.35, 0.35), c.pick("bin"), kind)


def _garden(c: Canvas, side: int, edge: float, z0: float, z1: float, leaf) -> None:
    """An open stretch: grass and trees behind a wall or a fence, or a yard."""
    kind = c.rng.choice(["wall", "fence", "open", "yard"], p=[0.35, 0.45, 0.1, 0.1])
    if kind == "yard":
        c.ground(edge, edge + side * 12, c.pick("paving"), "parking" if c.rng.random() < 0.5 else "ground", z0, z1)
    elif kind != "open":
        c.put(z1, _barrier, edge, z0, z1, c.rng.uniform(1.0, 2.4), kind)
    for _ in range(1 if kind == "yard" else 3):
        z = c.rng.uniform(max(z0, 5), max(z1, 6))
        c.put(z1 + 0.1, _tree, edge + side * c.rng.uniform(2, 9), z, c.rng.uniform(5, 10), leaf)


def _parked(c: Canvas, side: int, kerb: float, end: float, crossing: tuple[float, float]) -> None:
    """A row of parked cars, sometimes on a paved lane of its own."""
    rng, z = c.rng, c.rng.uniform(5, 14)
    if rng.random() < 0.25:
        c.ground(kerb, kerb - side * 2.1, c.pick("paving"), "parking")
    while z < end * 0.8:
        if rng.random() < 0.75 and not crossing[0] - 6 < z < crossing[1] + 4:
            x = kerb - side * 1.1
            c.shadow(x, z, 0.9, 2.2, 1, 180)
            c.put(z, _car, x, z, rng.normal(0, 0.03) + math.pi * (rng.random() < (0.3 if side > 0 else 0.7)))
        z += rng.uniform(5.2, 6.5)


def _road(c: Canvas, kerbs: dict, middle: float, asphalt, end: float, crossing: tuple[float, float]) -> None:
    """Repairs, markings, tram rails, the crossing, and the traffic. We drive on the right."""
    rng, white = c.rng, (208, 208, 202)
    for _ in range(rng.poisson(3)):
        x, z = rng.uniform(kerbs[-1], kerbs[1] - 1), rng.uniform(4, 30)
        c.ground(x, x + rng.uniform(0.5, 1), _shade(asphalt, rng.uniform(0.8, 1.15)), None, z, z + rng.uniform(1, 12))
    tram = rng.random() < 0.13
    for rail in (-0.72, 0.72, middle * 2 - 0.72, middle * 2 + 0.72) if tram else ():
        c.ground(rail - 0.1, rail + 0.1, _shade(asphalt, 0.85))
        c.ground(rail - 0.04, rail + 0.04, _shade(asphalt, 0.5))
    for z in np.arange(rng.uniform(2, 8), end, 9).tolist():
        c.ground(middle - 0.07, middle + 0.07, white, None, z, z + 4)
    z0, z1 = crossing
    if z0 < FAR:
        c.ground(-60, 60, c.pick("paving"), "sidewalk", z0 - 2, z1 + 2)
        c.ground(-60, 60, asphalt, "road", z0, z1)
        c.ground(kerbs[-1], kerbs[1], asphalt, "road", z0 - 4, z1 + 4)
        for x in np.arange(kerbs[-1] + 0.4, kerbs[1] - 0.5, 1.0).tolist():
            c.ground(x, x + 0.5, white, None, z0 - 3.6, z0 - 0.8)
        for side, z in ((1, z0 - 4), (-1, z1 + 3)):
            c.put(z, _pole, kerbs[side] + side * 0.4, z, 3.3, "light", side)
        for _ in range(rng.poisson(1)):
            c.put(z0 - 2, _person, rng.uniform(kerbs[-1], kerbs[1]), z0 - 2, rng.uniform(1.5, 1.9))
        if rng.random() < 0.6:
            x = rng.uniform(-9, 9)
            c.shadow(x, z0 + 2, 2.2, 0.9, 1, 180)
            c.put(z0 + 2, _car, x, z0 + 2, math.pi / 2 * rng.choice([-1, 1]))
    for lane, heading in ((rng.normal(0, 0.2), 0.0), (2 * middle + rng.normal(0, 0.2), math.pi)):
        z = rng.uniform(9, 32)
        while z < end and rng.random() < 0.8:
            chance, x = rng.random(), lane
            kind = "train" if tram else "truck" if chance < 0.07 else "bus" if chance < 0.12 else None
            length = {"train": 12, "truck": 3.7, "bus": 5.5}.get(kind, 2.2 if chance > 0.35 else 0.6)  # half of it
            z += length + 4 if kind else 0
            if z0 - 6 < z < z1 + 4:  # the junction stays clear
                z = z1 + 6
            tram = tram and not kind
            if kind:
                c.put(z - length + 2, _large, x, z, heading, kind)  # by its near end: it hides what is beside it
            elif chance < 0.35:
                x += 1.2 * math.cos(heading)
                c.put(z, _cycle, x, z, rng.uniform(0.12, 0.5), "motorcycle" if chance < 0.2 else "bicycle", True)
            else:
                c.put(z, _car, x, z, heading)
            c.shadow(x, z, 0.95 if length > 1 else 0.25, length, 1, 180)
            z += length + rng.uniform(12, 35)


def _hood(c: Canvas) -> None:
    """The hood of the camera's own car, which Cityscapes labels void."""
    top, half, color = HEIGHT * c.rng.uniform(0.88, 0.95), WIDTH * c.rng.uniform(0.45, 0.7), c.pick("car")
    for inset in range(0, 60, 4):
        box = (WIDTH / 2 - half + 2 * inset, top + inset, WIDTH / 2 + half - 2 * inset, 1.3 * HEIGHT)
        c.pens[0].ellipse(box, tuple(int(v * (0.75 - 0.006 * inset)) for v in color))
        c.pens[1].ellipse(box, ID["ego vehicle"])


# Light and texture ---------------------------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth noise of standard deviation about 1 with bumps of `cell` pixels, float32 [height, width]."""
    small = rng.standard_normal((int(height / cell) + 2, int(width / cell) + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _sky(c: Canvas) -> Image.Image:
    """A gradient with clouds, made small and enlarged."""
    top, bottom, clouds = {
        "sun": ((104, 148, 206), (200, 216, 232), 36),
        "overcast": ((180, 184, 190), (216, 216, 214), 14),
        "dusk": ((110, 116, 156), (246, 190, 150), 24),
    }[c.light]
    t = np.clip(np.arange(64) / (c.horizon / 8), 0, 1)[:, None, None] ** 1.3
    puffs = np.clip(_noise(c.rng, 64, 128, 14) + 0.5 * _noise(c.rng, 64, 128, 5), 0, 2)[..., None]
    sky = np.array(top) * (1 - t) + np.array(bottom) * t + clouds * puffs
    return Image.fromarray(sky.clip(0, 255).astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


@lru_cache
def _texture(coarse: float) -> np.ndarray:
    """Fine and coarse noise, the same for all scenes, which take a random piece of it: float32 [768, 1280]."""
    rng = np.random.default_rng(0)
    return _noise(rng, 768, 1280, 2.5) + coarse * _noise(rng, 768, 1280, 40)


def _light_ground(c: Canvas) -> None:
    """Texture in perspective, shadows and haze for the ground, where the row of a pixel tells its distance."""
    top = int(c.horizon) + 1
    box = (0, top, WIDTH, HEIGHT)
    ground = np.array(c.photo.crop(box), dtype=np.float32)
    z = np.minimum(c.focal * c.eye / (np.arange(top, HEIGHT, dtype=np.float32) + 0.5 - c.horizon), FAR)[:, None]
    x = (np.arange(WIDTH, dtype=np.float32) - c.center) / c.focal * z
    rows, columns = (z * 14 + c.rng.integers(512)).astype(np.int32), (x * 30).astype(np.int32)
    grain = 3 * _texture(2.0)[rows & 511, columns & 511] * np.exp(-z / 25)
    dark = np.asarray(c.shadows.crop(box).filter(ImageFilter.BoxBlur(3)), dtype=np.float32)
    keep, light = np.exp(-z / c.reach), 1 - dark / 255
    ground += grain[..., None]
    ground *= (keep * light)[..., None]
    ground += (1 - keep)[..., None] * np.array(c.haze, dtype=np.float32)
    c.photo.paste(Image.fromarray(ground.clip(0, 255, out=ground).astype(np.uint8)), box)


def _develop(c: Canvas) -> np.ndarray:
    """The colour of the light, exposure, and the texture of surfaces: `uint8 [512, 1024, 3]`."""
    tint = {"sun": (1.05, 1.0, 0.94), "overcast": (0.9, 0.92, 0.95), "dusk": (0.84, 0.72, 0.72)}[c.light]
    exposure = c.rng.uniform(0.88, 1.15)
    photo = c.photo.point([min(255, int(level * exposure * gain)) for gain in tint for level in range(256)])
    row, column = c.rng.integers(256, size=2)
    grain = _texture(0.0)[row : row + HEIGHT, column : column + WIDTH] * ROUGHNESS[np.asarray(c.labels)]
    bright = np.array(photo, dtype=np.int16)
    bright += grain.astype(np.int16)[..., None]
    return bright.clip(0, 255, out=bright).astype(np.uint8)


# The set on disk -----------------------------------------------------------------------------------------------------


def _scene(split: str, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]))


def demo_truth(split: str, index: int, seed: int = 0) -> np.ndarray:
    """The true class map of a demo pair, drawn again.

    Args:
        split: `train` or `val`.
        index: the number in the file's name, from 1.
        seed: the seed that `make_demo` was given.

    Returns:
        Official label ids, `uint8 [256, 256]`: of each pixel, the label at its centre in the large picture.
    """
    labels = _scene(split, index, seed)[1]
    rows, columns = HEIGHT // SIDE, WIDTH // SIDE
    return labels[rows // 2 :: rows, columns // 2 :: columns]


def _write_pair(path: Path, split: str, index: int, seed: int) -> None:
    photo, labels = _scene(split, index, seed)
    pair = np.hstack([shrink(photo), jpeg(shrink(COLORS[labels]), 75)])
    Image.fromarray(pair).save(path, "JPEG", quality=95, subsampling="4:2:0")


def _is_complete(folder: Path, settings: str, counts: dict[str, int]) -> bool:
    stamp = folder / STAMP
    return (
        stamp.is_file()
        and stamp.read_text() == settings
        and all(len(list((folder / split).glob("*.jpg"))) == count for split, count in counts.items())
    )


def make_demo(root: str | Path, train: int = 240, val: int = 60, seed: int = 0, progress: bool = True) -> Path:
    """Writes the demo set as `root/cityscapes_data/{train,val}/1.jpg ...`, unless it is there already.

    The set is drawn in a folder beside and moved into place when complete, so half a set is never taken for one.

    Args:
        root: folder that gets `cityscapes_data`.
        train: number of training pairs.
        val: number of validation pairs.
        seed: another seed draws other streets.
        progress: show a bar.

    Returns:
        The folder `root/cityscapes_data`.

    Raises:
        FileExistsError: `root/cityscapes_data` holds something else than a demo set; it is left alone.
    """
    root, counts = Path(root), {"train": train, "val": val}
    folder, settings = root / "cityscapes_data", json.dumps({"version": VERSION, "seed": seed} | counts)
    if _is_complete(folder, settings, counts):
        return folder
    if folder.exists() and any(folder.iterdir()) and not (folder / STAMP).is_file():
        raise FileExistsError(f"{folder} holds other pictures than the demo set: give make_demo another folder.")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=root) as beside:
        part = Path(beside) / "cityscapes_data"
        for split in SPLITS:
            (part / split).mkdir(parents=True)
        jobs = [(split, index) for split in SPLITS for index in range(1, counts[split] + 1)]
        for split, index in tqdm(jobs, desc="drawing the demo set", unit="pair", disable=not progress):
            _write_pair(part / split / f"{index}.jpg", split, index, seed)
        (part / STAMP).write_text(settings)
        if not _is_complete(folder, settings, counts):  # nobody else was quicker
            rmtree(folder, ignore_errors=True)
            part.rename(folder)
    return folder
