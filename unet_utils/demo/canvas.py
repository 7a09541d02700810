"""A canvas for streets in 3-D: each shape is drawn on a photo and, in the same call, on a map of
label ids.

A pinhole camera in a car looks along the street: x points right, y up, z ahead, in metres. Shapes
have local coordinates u, v, w (right, up, ahead); `place` returns the map from these to the street.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from unet_utils.classes import LABELS

HEIGHT, WIDTH = 512, 1024
NEAR, FAR = 2.2, 400.0  # metres: nothing nearer or farther is drawn
ID = {label.name: label.id for label in LABELS}
ROUGH = {
    "vegetation": 12,
    "terrain": 9,
    "building": 4,
    "wall": 7,
    "road": 5,
    "sidewalk": 7,
    "sky": 1,
}
# Both indexed by label id: texture in grey levels, and colour.
ROUGHNESS = np.array([ROUGH.get(label.name, 2) for label in LABELS], dtype=np.float32)
COLORS = np.array([label.color for label in LABELS], dtype=np.uint8)

Color = tuple[float, ...]
At = Callable[..., tuple[float, float, float]]

# Colours of the haze and of the sky (top, bottom), brightness of clouds, tint of the whole photo.
LIGHTS: dict[str, tuple] = {
    "sun": ((186, 204, 222), (104, 148, 206), (200, 216, 232), 36, (1.05, 1.0, 0.94)),
    "overcast": ((196, 199, 202), (180, 184, 190), (216, 216, 214), 14, (0.9, 0.92, 0.95)),
    "dusk": ((206, 170, 150), (110, 116, 156), (246, 190, 150), 24, (0.84, 0.72, 0.72)),
}
# Classes share colours on purpose: a network has to use shape and position, not only the colour of
# a pixel.
PAINTS = {
    "car": "1c1e22 2a2c32 3c3e44 787c80 9a9ea2 b0b2b4 dededc ececea 961818 1e346e 466086 3a543c "
    "aa9676 c49628",
    "wall": "c4baa4 a8a096 8c8480 cebe96 965c4a b68064 787068 d6d2ca b0a878 6e767e caa48c e0dacc "
    "9aa0a4",
    "cloth": "1e2028 323850 6e6e70 aa2c30 2c5432 c8c4ba 285a96 b48c3c 604634 ce788c 404042 16181c "
    "8a9aa8",
    "brown": "684438 543c36 46382c 5c5246",
    "glass": "343c46 54606c 24282e 6c7c8c",
    "skin": "e2b89c be8c6e 785038",
    "hair": "281e18 5a422c aa8c5a 1e1e20 8a8a88",
    "leaf": "46662c 38562a 5c7434 6e7a3a 4a5a34 8a7430",
    "grass": "627440 7a7a50 5c7a3c 8a8460",
    "metal": "606264 8c8e8e 3c4240 969896 32543c 2c3a5a",
    "asphalt": "545456 646466 707070 7a7876 4a4c50",
    "paving": "96928c a4968c 82807e 6c6c6c 746e68",
}


def place(x: float, z: float, heading: float = 0.0) -> At:
    """Return the map from local coordinates to the street; heading 0 points ahead."""
    cos, sin = math.cos(heading), math.sin(heading)
    return lambda u, v, w=0.0: (x + u * cos + w * sin, v, z - u * sin + w * cos)


def shade(color: Color, factor: float) -> Color:
    """Return a darker or lighter colour."""
    return color[0] * factor, color[1] * factor, color[2] * factor


class Canvas:
    """A photo and its label map, drawn together with one camera and one light."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.focal = rng.uniform(850, 1050)  # pixels
        self.eye = rng.uniform(1.25, 1.6)  # height of the camera, metres
        self.center = WIDTH / 2 + rng.normal(0, 40)
        self.horizon = HEIGHT * rng.uniform(0.38, 0.46)
        self.bend = rng.normal(0, 0.0009)  # curvature of the street: x grows by bend * z^2
        self.weather = str(rng.choice(list(LIGHTS), p=[0.5, 0.35, 0.15]))
        self.haze, *sky, self.tint = LIGHTS[self.weather]
        self.cast = int(rng.choice([-1, 1]))  # shadows fall to the left or to the right
        self.reach = rng.uniform(120, 350)  # metres after which haze replaces 63 % of a colour
        self.waiting: list[tuple] = []
        self.photo = self._sky(*sky)
        self.labels = Image.new("L", (WIDTH, HEIGHT), ID["sky"])
        self.shadows = Image.new("L", (WIDTH, HEIGHT), 0)
        self.photo_pen = ImageDraw.Draw(self.photo)
        self.label_pen = ImageDraw.Draw(self.labels)

    def choose(self, options: Sequence):
        """Return one of the options, all equally likely; several times faster than
        `Generator.choice`."""
        return options[int(self.rng.integers(len(options)))]

    def pick(self, paint: str, spread: float = 10) -> Color:
        """Return one of the colours of that name, slightly varied."""
        base = bytes.fromhex(self.choose(PAINTS[paint].split()))
        lighter, *tint = self.rng.normal(0, spread, 4).tolist()
        varied = [value + lighter + change / 2 for value, change in zip(base, tint, strict=True)]
        return tuple([min(255, max(8, value)) for value in varied])

    def lit(self, normal: float) -> float:
        """Return the brightness of a wall that faces left (-1) or right (1)."""
        return 0.9 - (0.17 * normal * self.cast if self.weather == "sun" else 0)

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Return column and row of a point, pixels."""
        z = max(z, NEAR)
        scale = self.focal / z
        return self.center + scale * (x + self.bend * z * z), self.horizon + scale * (self.eye - y)

    def sees_front(self, at: At, points: Sequence) -> bool:
        """Return whether a polygon shows the camera its front: its corners then go clockwise."""
        flat = [self.project(*at(*point)) for point in points]
        return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise([*flat, flat[0]])) > 0

    def face(
        self, at: At, points: Sequence, color: Color | None = None, label: str | None = None
    ) -> None:
        """Draw a polygon on the photo (unless `color` is None) and on the label map (unless `label`
        is None)."""
        points = [at(*point) for point in points]
        distance = sum(z for _, _, z in points) / len(points)
        paint = self._hazed(color, distance) if color is not None else None
        self._fill([self.project(*point) for point in points], paint, label)

    def patch(
        self, at: At, u0, u1, v0, v1, color: Color | None = None, label: str | None = None, w=0.0
    ) -> None:
        """Draw a rectangle in the plane at depth `w` of the local coordinates."""
        self.face(at, ((u0, v0, w), (u0, v1, w), (u1, v1, w), (u1, v0, w)), color, label)

    def regular(
        self, at: At, u, v, radius, color: Color, label: str, corners: int = 14, turn=0.0
    ) -> None:
        """Draw a regular polygon around (u, v), rotated by `turn` full turns."""
        angles = [2 * math.pi * (turn + i / corners) for i in range(corners)]
        points = [(u + radius * math.cos(a), v + radius * math.sin(a)) for a in angles]
        self.face(at, points, color, label)

    def disc(self, at: At, u, v, ru, rv, color: Color, label: str | None = None, ring=0.0) -> None:
        """Draw an ellipse that faces the camera; with `ring`, only an outline of that thickness on
        the photo."""
        x, y, z = at(u, v)
        column, row = self.project(x, y, z)
        scale = self.focal / max(z, NEAR)
        box = (column - ru * scale, row - rv * scale, column + ru * scale, row + rv * scale)
        if box[2] < 0 or box[0] > WIDTH:
            return
        paint = self._hazed(color, z)
        self.photo_pen.ellipse(box, None if ring else paint, paint, max(1, round(ring * scale)))
        if label is not None:
            self.label_pen.ellipse(box, ID[label])

    def ground(self, x0, x1, color: Color, label: str | None = None, z0=NEAR, z1=FAR) -> None:
        """Draw a strip of the ground that follows the curve of the street."""
        paint = tuple(map(int, color))  # `_light_ground` adds the haze
        self._fill(self._strip(x0, x1, z0, z1), paint, label)

    def shadow(self, x: float, z: float, half: float, depth: float, height: float) -> None:
        """Darken the ground under an object, and next to it in sunshine."""
        shift = self.cast * height * 0.7 if self.weather == "sun" else 0
        strip = self._strip(x - half + min(shift, 0), x + half + max(shift, 0), z, z + depth)
        ImageDraw.Draw(self.shadows).polygon(strip, fill=150)

    def put(self, z: float, draw: Callable, *args) -> None:
        """Store an object at distance `z`; `finish` draws all of them, the farthest first."""
        self.waiting.append((z, draw, args))

    def finish(self) -> None:
        """Light the ground and draw everything that stands on it."""
        self._light_ground()
        for _, draw, args in sorted(self.waiting, key=lambda thing: -thing[0]):
            draw(self, *args)

    def develop(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the photo, with surface texture, exposure and colour of the light added, and the
        label map."""
        labels = np.asarray(self.labels)
        exposure = self.rng.uniform(0.88, 1.15)
        curve = [min(255, int(v * exposure * gain)) for gain in self.tint for v in range(256)]
        row, column = self.rng.integers(256, size=2)
        grain = _texture()[row : row + HEIGHT, column : column + WIDTH] * ROUGHNESS[labels]
        bright = np.array(self.photo.point(curve), dtype=np.int16)
        bright += grain.astype(np.int16)[..., None]
        return bright.clip(0, 255).astype(np.uint8), labels

    def _fill(self, outline: Sequence, paint: tuple[int, ...] | None, label: str | None) -> None:
        if paint is not None:
            self.photo_pen.polygon(outline, fill=paint)
        if label is not None:
            self.label_pen.polygon(outline, fill=ID[label])

    def _hazed(self, color: Color, z: float) -> tuple[int, ...]:
        """Return the colour as seen through `z` metres of air."""
        keep = math.exp(-z / self.reach)
        (r, g, b), (hr, hg, hb) = color, self.haze
        r, g, b = hr + (r - hr) * keep, hg + (g - hg) * keep, hb + (b - hb) * keep
        return min(255, int(r)), min(255, int(g)), min(255, int(b))

    def _strip(self, x0: float, x1: float, z0: float, z1: float) -> list[tuple[float, float]]:
        """Return the outline of a strip of the ground in pixels, with enough points to follow the
        curve."""
        z0, z1 = max(z0, NEAR), max(z1, NEAR)
        steps = 1 + int(7 * math.log(z1 / z0))
        depths = [z0 * (z1 / z0) ** (i / steps) for i in range(steps + 1)]
        there = [self.project(x0, 0, z) for z in depths]
        return there + [self.project(x1, 0, z) for z in reversed(depths)]

    def _sky(self, top: Color, bottom: Color, clouds: float) -> Image.Image:
        """Return a colour gradient with clouds, computed at low resolution and enlarged."""
        t = np.clip(np.arange(64) / (self.horizon / 8), 0, 1)[:, None, None] ** 1.3
        noise = _noise(self.rng, 64, 128, 14) + 0.5 * _noise(self.rng, 64, 128, 5)
        puffs = np.clip(noise, 0, 2)[..., None]
        sky = np.array(top) * (1 - t) + np.array(bottom) * t + clouds * puffs
        small = Image.fromarray(sky.clip(0, 255).astype(np.uint8))
        return small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)

    def _light_ground(self) -> None:
        """Add texture, shadows and haze to the ground, where the row of a pixel determines its
        distance."""
        top = int(self.horizon) + 1
        box = (0, top, WIDTH, HEIGHT)
        ground = np.array(self.photo.crop(box), dtype=np.float32)
        below = np.arange(top, HEIGHT, dtype=np.float32)[:, None] + 0.5 - self.horizon
        z = np.minimum(self.focal * self.eye / below, FAR)
        x = (np.arange(WIDTH, dtype=np.float32) - self.center) / self.focal * z
        rows = (z * 14 + self.rng.integers(512)).astype(np.int32)
        columns = (x * 30).astype(np.int32)
        grain = 4 * _texture()[rows & 511, columns & 511] * np.exp(-z / 25)
        dark = np.asarray(self.shadows.crop(box).filter(ImageFilter.BoxBlur(3)), dtype=np.float32)
        keep = np.exp(-z / self.reach)
        ground += grain[..., None]
        ground *= (keep * (1 - dark / 255))[..., None]
        ground += (1 - keep)[..., None] * np.array(self.haze, dtype=np.float32)
        self.photo.paste(Image.fromarray(ground.clip(0, 255).astype(np.uint8)), box)


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Return smooth noise, standard deviation about 1, features of `cell` pixels, `float32 [height,
    width]`."""
    small = rng.standard_normal((int(height / cell) + 2, int(width / cell) + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@lru_cache
def _texture() -> np.ndarray:
    """Return fine and coarse noise, `float32 [768, 1280]`. All scenes use random crops of it."""
    rng = np.random.default_rng(0)
    return _noise(rng, 768, 1280, 2.5) + 0.6 * _noise(rng, 768, 1280, 40)
