"""Random street scenes: houses, trees, people and traffic, drawn on a `Canvas` that records the
class of each pixel."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from unet_utils.demo.canvas import FAR, NEAR, At, Canvas, Color, place, shade

Span = tuple[float, float]  # start and end along the street, metres
ALONG = (
    -math.pi / 2
)  # heading of an object whose local x axis points along the street, such as the front of a house
DARK, WHITE, RED, BLUE = (28, 28, 30), (222, 222, 216), (196, 30, 34), (30, 70, 160)
SIGNS = ((24, 0, RED), (24, 0, BLUE), (4, 0.125, BLUE), (3, 0.25, RED))  # corners, turn, rim
POLES = ("lamp", "lamp", "sign", "sign", "sign", "traffic light", "bare")
# Label, length and half the width in metres; then the side view, in % of the length from the rear
# and cm above ground: the windows (one polygon), the pillars between them, and the outline.
BUS = ((0, 30), (0, 135), (0, 270), (1, 300), (99, 300), (100, 270), (100, 135), (100, 30))
VEHICLES = {
    "hatchback": ("car", 4.1, 0.87, ((10, 98), (17, 132), (34, 138), (55, 134), (71, 100)), (39,), (
        (2, 30), (0, 50), (0, 80), (3, 96), (14, 140), (34, 147), (56, 142), (76, 98), (96, 80), (100, 60), (98, 30))),
    "saloon": ("car", 4.6, 0.88, ((22, 98), (31, 128), (42, 134), (56, 130), (70, 100)), (44,), (
        (2, 30), (0, 50), (1, 88), (15, 97), (29, 136), (42, 143), (57, 138), (75, 96), (96, 78), (100, 58), (98, 30))),
    "van": ("car", 4.7, 0.92, ((9, 115), (11, 180), (72, 178), (82, 115)), (34, 60), (
        (1, 35), (0, 50), (0, 110), (5, 185), (70, 195), (74, 190), (87, 112), (98, 95), (100, 70), (99, 35))),
    "truck": ("truck", 7.5, 1.2, ((80, 150), (80, 250), (95, 250), (96, 150)), (), (
        (0, 70), (0, 320), (73, 320), (74, 290), (96, 290), (100, 150), (100, 40), (76, 40), (74, 70))),
    "bus": ("bus", 11, 1.25, ((2, 135), (2, 250), (98, 250), (98, 135)), tuple(range(14, 98, 14)), BUS),
    "tram": ("train", 20, 1.2, ((2, 135), (2, 250), (98, 250), (98, 135)), tuple(range(10, 98, 10)), BUS),
}  # fmt: skip
CARS = ("hatchback", "hatchback", "hatchback", "saloon", "saloon", "van")
TRAFFIC = (
    *CARS,
    *CARS,
    "truck",
    "bus",
    "motorcycle",
    "motorcycle",
    "motorcycle",
    "bicycle",
    "bicycle",
)


def _house(c: Canvas, x: float, z: float, side: int, length: float, height: float) -> None:
    """Draw a house next to the street; `side` is -1 (left) or 1 (right)."""
    rng, wall, glass, trim = c.rng, c.pick("wall", 14), c.pick("glass", 6), c.choose((0.75, 1.25))
    floor, step, wide, tall = rng.uniform((2.9, 2, 0.4, 0.45), (3.6, 3.4, 0.6, 0.62)).tolist()
    shop, top = (
        c.pick("wall", 20) if rng.random() < 0.5 else None,
        height + max(0, rng.uniform(-2, 3.5)),
    )
    end, front = place(x, z), place(x, z, ALONG)
    c.face(
        end,
        ((0, height), (3 * side, top), (14 * side, top), (14 * side, height)),
        shade(wall, 0.75),
        "building",
    )
    slope = ((0, height, 0), (0, top, -3 * side), (length, top, -3 * side), (length, height, 0))
    c.face(front, slope, c.pick("brown"), "building")
    for at, sign, span, light in ((end, side, 14, 0.8), (front, 1, length, c.lit(-side))):
        paint, edging = shade(wall, light), shade(wall, light * trim)
        c.patch(at, 0, sign * span, 0, height, paint, "building")
        if shop:
            c.patch(at, 0, sign * span, 0, floor, shade(shop, light))
        for level in range(
            int(height / floor) if z < 70 else 0
        ):  # windows farther away are too small to see
            y, half = (
                ((level + 0.27) * floor, step * wide / 2)
                if level or not shop
                else (0.35, step * 0.42)
            )
            c.patch(at, 0, sign * span, level * floor, level * floor + 0.15, edging)
            for u in (sign * np.arange(step / 2, span - step / 2, step)).tolist():
                lamp = c.weather == "dusk" and rng.random() < 0.3
                pane = (255, 220, 150) if lamp else shade(glass, rng.uniform(0.7, 1.4))
                c.patch(at, u - half - 0.1, u + half + 0.1, y - 0.1, y + tall * floor + 0.1, edging)
                c.patch(at, u - half, u + half, y, y + tall * floor, pane)


def _barrier(c: Canvas, x: float, z: float, length: float) -> None:
    """Draw a wall or a fence of bars. As in Cityscapes, the gaps of a fence are labelled as
    fence."""
    kind = c.choose(("wall", "fence"))
    at, height, color = (
        place(x, z, ALONG),
        c.rng.uniform(1, 2.4),
        c.pick("wall" if kind == "wall" else "metal"),
    )
    c.patch(at, 0, length, 0, height, shade(color, 0.85) if kind == "wall" else None, kind)
    c.patch(at, 0, length, height - 0.12, height, shade(color, 1.15), kind)
    for u in np.arange(length, 0, -0.3 if z < 30 else -0.6).tolist() if kind == "fence" else ():
        c.patch(at, u - 0.1, u, 0, height, shade(color, 0.95))


def _tree(c: Canvas, x: float, z: float) -> None:
    size, color, lean = c.rng.uniform(4.5, 9), c.pick("leaf", 8), c.rng.normal(0, 0.2)
    w, wide = 0.03 * size, size * c.rng.uniform(0.26, 0.38)
    trunk = ((-w, 0), (lean - w * 0.6, size * 0.55), (lean + w * 0.6, size * 0.55), (w, 0))
    c.face(place(x, z), trunk, c.pick("brown"), "vegetation")
    for u, v, part in ((-0.45, 0.6, 0.65), (0.45, 0.63, 0.65), (0, 0.74, 0.9)):
        u, v = u + c.rng.normal(0, 0.12), v + c.rng.normal(0, 0.03)
        c.leaves(x + lean + u * wide, size * v, z, wide * part, color)


def _pole(c: Canvas, x: float, z: float, top: str | None = None) -> None:
    """Draw a pole with a lamp, a sign, a traffic light or nothing on it."""
    top, at, color = top or c.choose(POLES), place(x, z), c.pick("metal")
    height = (6.5 if top == "lamp" else 2.7) * c.rng.uniform(0.9, 1.2)
    c.patch(at, -0.07, 0.07, 0, height, color, "pole")
    if top == "lamp":
        arm = -math.copysign(1.7, x)  # over the road
        c.face(
            at,
            ((0, height), (arm, height + 0.25), (arm, height + 0.12), (0, height - 0.15)),
            color,
            "pole",
        )
        c.disc(at, arm, height + 0.15, 0.4, 0.12, color, "pole")
    elif top == "traffic light":
        c.patch(at, -0.2, 0.2, height - 1, height, DARK, "traffic light")
        on = c.rng.integers(3)
        for i, lamp in enumerate(((255, 50, 40), (255, 190, 50), (70, 240, 140))):
            c.disc(at, 0, height - 0.2 - 0.3 * i, 0.13, 0.13, lamp if i == on else (52, 54, 54))
    elif top == "sign":
        corners, turn, rim = c.choose(SIGNS)
        for radius, paint in ((0.42, rim), (0.27, WHITE)):
            c.regular(at, 0, height, radius, paint, "traffic sign", corners, turn)


def _person(c: Canvas, x: float, z: float, label: str = "person") -> None:
    """Draw a walking person or a sitting rider."""
    (size, wide), lift = c.rng.uniform((0.8, 0.65), (1.08, 1)), 0.3 if label == "rider" else 0
    at: At = lambda u, v: (x + u * wide, lift + v * size, z)  # noqa: E731
    coat, trousers, step = c.pick("cloth"), c.pick("cloth"), c.rng.uniform(0.03, 0.24)
    for sign in (-1, 1):
        hip, foot = sign * 0.08, sign * step
        leg = ((foot - 0.07, 0), (hip - 0.11, 0.9), (hip + 0.11, 0.9), (foot + 0.07, 0))
        c.face(at, leg, shade(trousers, 1 - 0.12 * sign), label)
        arm = ((0.2, 1.42), (0.32, 0.85), (0.24, 0.82), (0.12, 1.3))
        c.face(at, [(sign * u, v) for u, v in arm], shade(coat, 0.8), label)
    c.face(
        at,
        ((-0.2, 0.78), (-0.23, 1.38), (-0.1, 1.49), (0.1, 1.49), (0.23, 1.38), (0.2, 0.78)),
        coat,
        label,
    )
    c.disc(at, 0, 1.62, 0.1, 0.14, c.pick("skin"), label)
    c.disc(at, 0, 1.68, 0.11, 0.09, c.pick("hair"), label)


def _cycle(c: Canvas, x: float, z: float, kind: str | None = None, heading: float = 0.8) -> None:
    """Draw a bicycle or a motorcycle, parked across the pavement or (heading near pi / 2) seen from
    behind."""
    kind = kind or c.choose(("bicycle", "bicycle", "motorcycle"))
    motor, turn, color, at = (
        kind == "motorcycle",
        math.cos(heading),
        c.pick("car"),
        place(x, z, heading),
    )
    for end in (-0.58, 0.58):
        c.disc(at, end, 0.34, max(0.34 * turn, 0.1), 0.34, DARK, kind, 0.13 if motor else 0.05)
    frame = ((-0.58, 0.36), (-0.18, 0.85), (0.4, 0.85), (0.58, 0.36), (0, 0.32))
    c.face(at, frame, color if motor else None, kind)
    for (u0, v0), (u1, v1) in pairwise((*frame, frame[0])):
        c.face(at, ((u0, v0 - 0.03), (u0, v0 + 0.03), (u1, v1 + 0.03), (u1, v1 - 0.03)), color)
    for u, v, half in ((-0.18, 0.92, 0.16), (0.35, 1.03, 0.28)):  # saddle and handlebar
        c.patch(place(x + u * turn, z), -half, half, v - 0.04, v + 0.04, DARK, kind)


def _vehicle(c: Canvas, x: float, z: float, heading: float, kind: str) -> None:
    """Draw a vehicle: its side view, extruded over its width; `z` is the near end."""
    label, length, half, windows, pillars, profile = VEHICLES[kind]
    paint, glass, away = c.pick("car", 14), c.pick("glass", 5), math.cos(heading) > 0
    at, axles = place(x, z + length / 2, heading), (-0.31 * length, 0.31 * length)
    taper, wheel = (
        (0.2, 0.34) if label == "car" else (0, 0.5)
    )  # cars get narrower above the lower edge of the windows

    def point(percent: float, height: float, side: int = 1) -> tuple[float, float, float]:
        u = half - taper * min(1, max(0, (height - 90) / 50))
        return side * u, height / 100, (percent / 100 - 0.5) * length

    for w in axles:  # wheels from the front and the back
        for u in (0.14 - half, half - 0.14):
            c.patch(at, u - 0.1, u + 0.1, 0, 0.7, DARK, label, w)
    for a, b in list(pairwise(profile))[:: -1 if away else 1]:  # the farthest faces first
        (u0, y0, w0), (u1, y1, w1) = point(*a), point(*b)
        light = (0.8 if y0 + y1 > 1.1 else 0.6) + 0.35 * abs(w1 - w0) / math.hypot(w1 - w0, y1 - y0)
        window = (
            min(y0, y1) > 0.9 and abs(y1 - y0) > 0.35
        )  # a steep face above the lower edge of the windows
        for inset, color in ((0, shade(paint, light)), (0.08, glass))[: 1 + window]:
            corners = (
                (inset - u0, y0, w0),
                (inset - u1, y1, w1),
                (u1 - inset, y1, w1),
                (u0 - inset, y0, w0),
            )
            c.face(at, corners, color, label, cull=True)
    for side in (-1, 1):
        outline = [point(*corner, side) for corner in profile]
        if c.face(
            at, outline[::side], shade(paint, c.lit(side * math.cos(heading))), label, cull=True
        ):
            c.face(at, [point(*corner, side) for corner in windows], glass)
            for p in pillars:
                pillar = (
                    (p, 100),
                    (p, windows[1][1] + 5),
                    (p + 2, windows[1][1] + 5),
                    (p + 2, 100),
                )
                c.face(at, [point(*corner, side) for corner in pillar], paint)
            for w in axles:
                x, _, z = at(side * half, 0, w)
                for radius, color in ((wheel, DARK), (wheel * 0.6, (140, 142, 144))):
                    c.regular(place(x, z, heading + ALONG), 0, wheel, radius, color, label)
    back = math.copysign(
        length / 2 + 0.01, -math.cos(heading)
    )  # the visible end: lights and number plate
    for u in (0.2 - half, half - 0.2):
        c.patch(at, u - 0.14, u + 0.14, 0.65, 0.81, RED if away else (250, 250, 236), w=back)
    c.patch(at, -0.25, 0.25, 0.48, 0.6, WHITE, w=back)


# Objects on the pavement: probability that a side of the street has them, distance between two of
# them in metres (minimum, and mean of what is added to it), position from 0 (kerb) to 1 (houses);
# of the shadow: half the width, the depth, and the height of the object.
ROADSIDE = (
    (_tree, 0.7, 8, 4, (0.1, 0.1), (1.5, 1, 3)),
    (_pole, 1.0, 9, 3, (0.0, 0.0), (0.1, 0.2, 2)),
    (_person, 1.0, 0.4, 7, (0.0, 1.0), (0.25, 0.2, 1.2)),
    (_cycle, 0.8, 1, 9, (0.8, 1.0), (0.5, 0.2, 0.3)),
)


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street scene.

    Args:
        rng: random generator; the same state gives the same scene.

    Returns:
        The photo `uint8 [512, 1024, 3]` and its official label ids `uint8 [512, 1024]`.
    """
    c = Canvas(rng)
    end, middle, asphalt = rng.uniform(60, 130), -rng.uniform(1.6, 2.2), c.pick("asphalt", 5)
    parked = {side: rng.random() < 0.6 for side in (-1, 1)}
    kerbs = {
        -1: middle - rng.uniform(3.1, 4) - 2.2 * parked[-1],
        1: rng.uniform(1.8, 3) + 2.2 * parked[1],
    }
    start = rng.uniform(14, end - 15)
    crossing = (start, start + 8)
    c.ground(-FAR, FAR, c.pick("grass"), "terrain", 8)
    c.ground(kerbs[-1], kerbs[1], asphalt, "road")
    for side in (-1, 1):
        _roadside(c, side, kerbs[side], end, crossing)
        for z in _spots(c, 3.5, end * 0.8, 5.3, 2, crossing) if parked[side] else ():
            _send(
                c,
                kerbs[side] - side * 1.1,
                z,
                math.pi * (rng.random() < (0.3 if side > 0 else 0.7)),
                CARS,
            )
    _traffic(c, middle, end, crossing)
    _crossing(c, kerbs, asphalt, *crossing)
    for x in range(-80, 81, 9):  # houses and trees at the end of the street
        c.put(end + 20, _house, x, end + 15, 1, 1, max(0.1, rng.uniform(-8, 18)))
        c.put(
            end + 8,
            Canvas.leaves,
            x + rng.uniform(0, 9),
            rng.uniform(2, 5),
            end + 6,
            6,
            c.pick("leaf"),
        )
    c.finish()
    if rng.random() < 0.7:
        c.hood()
    return c.develop()


def _spots(
    c: Canvas, first: float, last: float, least: float, more: float, crossing: Span
) -> Iterator[float]:
    """Yield random positions along the street, except on the crossing: `least` metres apart plus
    `more` on average."""
    z = first + c.rng.exponential(more)
    while z < last:
        if not crossing[0] - least < z < crossing[1] + 3:
            yield z
        z += least + c.rng.exponential(more)


def _roadside(c: Canvas, side: int, kerb: float, end: float, crossing: Span) -> None:
    """Draw the pavement of one side, the houses and gardens behind it, and the objects on it."""
    rng, width, pave = c.rng, c.rng.uniform(3, 7.5), c.pick("paving", 8)
    edge, urban, height = kerb + side * width, rng.uniform(0.3, 1), rng.uniform(10, 21)
    c.ground(kerb, edge, pave, "sidewalk")
    if rng.random() < 0.55:
        c.ground(kerb, kerb + side * rng.uniform(0.7, 1.4), c.pick("grass"), "terrain")
    c.ground(kerb, kerb + side * 0.16, shade(pave, 1.2), "sidewalk")
    for z0, z1 in ((NEAR, crossing[0] - 3), (crossing[1] + 3, end)):
        for a, b in pairwise(np.linspace(z0, z1, 1 + max(1, round((z1 - z0) / 12))).tolist()):
            if rng.random() < urban * 0.93:
                c.put(b, _house, edge, a, side, b - a, height * rng.uniform(0.75, 1.25))
                c.shadow(edge, a, 0, b - a, height * 0.6)
            else:
                c.put(b, _barrier, edge, a, b - a)
                for _ in range(3):
                    c.put(
                        b + 0.1,
                        _tree,
                        edge + side * rng.uniform(2, 9),
                        rng.uniform(max(a, 5), max(b, 6)),
                    )
    for draw, chance, least, more, (near, far), shadow in ROADSIDE:
        if rng.random() < chance:
            for z in _spots(c, 7, end * 0.8, least, more, crossing):
                x = kerb + side * (0.4 + (width - 0.8) * rng.uniform(near, far))
                c.shadow(x, z, *shadow)
                c.put(z, draw, x, z)


def _traffic(c: Canvas, middle: float, end: float, crossing: Span) -> None:
    """Draw road markings or tram rails, and moving vehicles; the camera drives in the right
    lane."""
    tram, z = c.rng.random() < 0.12, c.rng.uniform(2, 8)
    for rail in (-0.72, 0.72, middle * 2 - 0.72, middle * 2 + 0.72) if tram else ():
        c.ground(rail - 0.06, rail + 0.06, (44, 44, 46))
    for dash in np.arange(z, end, 9).tolist():
        c.ground(middle - 0.07, middle + 0.07, WHITE, None, dash, dash + 4)
    for lane, heading in ((0, 0.0), (2 * middle, math.pi)):
        for i, z in enumerate(_spots(c, 10, end, 22, 9, crossing)):
            _send(
                c,
                lane + c.rng.normal(0, 0.2),
                z,
                heading,
                ("tram",) if tram and i == 0 else TRAFFIC,
            )


def _crossing(c: Canvas, kerbs: dict[int, float], asphalt: Color, z0: float, z1: float) -> None:
    """Draw a crossing street, zebra stripes in front of it, and the people and cars there."""
    c.ground(-60, 60, c.pick("paving"), "sidewalk", z0 - 2, z1 + 2)
    c.ground(-60, 60, asphalt, "road", z0, z1)
    c.ground(kerbs[-1], kerbs[1], asphalt, "road", z0 - 4, z1 + 4)
    for x in np.arange(kerbs[-1] + 0.4, kerbs[1] - 0.5).tolist():
        c.ground(x, x + 0.5, WHITE, None, z0 - 3.6, z0 - 0.8)
    for side, z in ((1, z0 - 4), (-1, z1 + 3)):
        c.put(z, _pole, kerbs[side] + side * 0.4, z, "traffic light")
    for _ in range(c.rng.poisson(1)):
        c.put(z0 - 2, _person, c.rng.uniform(kerbs[-1], kerbs[1]), z0 - 2)
    if c.rng.random() < 0.6:
        _send(c, c.rng.uniform(-9, 9), z0, math.pi / 2 * c.choose((-1, 1)), CARS)


def _send(c: Canvas, x: float, z: float, heading: float, kinds: tuple[str, ...]) -> None:
    """Put a vehicle of one of these kinds on the road, its near end at `z`."""
    kind = c.choose(kinds)
    if kind in VEHICLES:
        c.shadow(x, z, 0.9, VEHICLES[kind][1], 1)
        c.put(z, _vehicle, x, z, heading, kind)
    else:
        x += 0.8 * math.cos(heading)  # at the edge of the lane
        c.shadow(x, z, 0.25, 1, 1)
        c.put(z, _cycle, x, z, kind, c.rng.uniform(1.3, 1.5))
        c.put(z - 0.01, _person, x, z, "rider")
