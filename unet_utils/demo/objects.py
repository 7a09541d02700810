"""What stands in a street: houses, trees, poles, people and vehicles, each drawn by one function.

All take the canvas, the place on the ground (`x`, `z` in metres) and what is special about them;
colours and shapes are random."""

import math
from itertools import pairwise

import numpy as np

from unet_utils.demo.canvas import HEIGHT, ID, WIDTH, At, Canvas, Color, place, shade

# Heading of an object whose local u axis points along the street, such as the front of a house.
ALONG = -math.pi / 2
DARK, WHITE, RED, BLUE = (28, 28, 30), (222, 222, 216), (196, 30, 34), (30, 70, 160)
LINE_NUMBER = (255, 190, 50)
LAMPS = ((255, 50, 40), (255, 190, 50), (70, 240, 140))  # of a traffic light, from the top
SIGNS = ((24, 0, RED), (24, 0, BLUE), (4, 0.125, BLUE), (3, 0.25, RED))  # corners, turn, rim
POLES = ("lamp", "lamp", "sign", "sign", "sign", "traffic light", "bare")

# Label, length and half the width in metres; then the side view, in % of the length from the rear
# and cm above ground: the windows (one polygon), the pillars between them, and the outline.
BUS_WINDOWS = ((2, 135), (2, 250), (98, 250), (98, 135))
BUS = ((0, 30), (0, 135), (0, 270), (1, 300), (99, 300), (100, 270), (100, 135), (100, 30))
VEHICLES = {
    "hatchback": (
        "car", 4.1, 0.87, ((10, 98), (17, 132), (34, 138), (55, 134), (71, 100)), (39,),
        ((2, 30), (0, 50), (0, 80), (3, 96), (14, 140), (34, 147), (56, 142), (76, 98), (96, 80),
         (100, 60), (98, 30)),
    ),
    "saloon": (
        "car", 4.6, 0.88, ((22, 98), (31, 128), (42, 134), (56, 130), (70, 100)), (44,),
        ((2, 30), (0, 50), (1, 88), (15, 97), (29, 136), (42, 143), (57, 138), (75, 96), (96, 78),
         (100, 58), (98, 30)),
    ),
    "van": (
        "car", 4.7, 0.92, ((9, 115), (11, 180), (72, 178), (82, 115)), (34, 60),
        ((1, 35), (0, 50), (0, 110), (5, 185), (70, 195), (74, 190), (87, 112), (98, 95), (100, 70),
         (99, 35)),
    ),
    "truck": (
        "truck", 7.5, 1.2, ((80, 150), (80, 250), (95, 250), (96, 150)), (),
        ((0, 70), (0, 320), (73, 320), (74, 290), (96, 290), (100, 150), (100, 40), (76, 40),
         (74, 70)),
    ),
    "bus": ("bus", 11, 1.25, BUS_WINDOWS, range(14, 98, 14), BUS),
    "tram": (
        "train", 20, 1.2, BUS_WINDOWS, range(10, 98, 10),
        ((0, 12), (0, 135), (0, 270), (1, 300), (99, 300), (100, 270), (100, 135), (100, 12)),
    ),
}  # fmt: skip


def house(c: Canvas, x: float, z: float, side: int, length: float, height: float) -> None:
    """Draw a house next to the street; `side` is -1 (left) or 1 (right)."""
    wall = c.pick("wall", 14)
    glass = c.pick("glass", 6)
    trim = c.choose((0.75, 1.25))
    floor, step, wide, tall = c.rng.uniform((2.9, 2, 0.4, 0.45), (3.6, 3.4, 0.6, 0.62)).tolist()
    shop = c.pick("wall", 20) if c.rng.random() < 0.5 else None
    top = height + max(0, c.rng.uniform(-2, 3.5))
    end, front = place(x, z), place(x, z, ALONG)
    gable = ((0, height), (3 * side, top), (14 * side, top), (14 * side, height))
    c.face(end, gable, shade(wall, 0.75), "building")
    roof = ((0, height, 0), (0, top, -3 * side), (length, top, -3 * side), (length, height, 0))
    c.face(front, roof, c.pick("brown"), "building")
    floors = int(height / floor) if z < 70 else 0  # windows farther away are too small to see
    for at, sign, span, light in ((end, side, 14, 0.8), (front, 1, length, c.lit(-side))):
        edging = shade(wall, light * trim)
        c.patch(at, 0, sign * span, 0, height, shade(wall, light), "building")
        if shop:
            c.patch(at, 0, sign * span, 0, floor, shade(shop, light))
        for level in range(floors):
            y, half = (level + 0.27) * floor, step * wide / 2
            if shop and level == 0:
                y, half = 0.35, step * 0.42
            c.patch(at, 0, sign * span, level * floor, level * floor + 0.15, edging)
            for u in (sign * np.arange(step / 2, span - step / 2, step)).tolist():
                lamp = c.weather == "dusk" and c.rng.random() < 0.3
                pane = (255, 220, 150) if lamp else shade(glass, c.rng.uniform(0.7, 1.4))
                c.patch(at, u - half - 0.1, u + half + 0.1, y - 0.1, y + tall * floor + 0.1, edging)
                c.patch(at, u - half, u + half, y, y + tall * floor, pane)


def barrier(c: Canvas, x: float, z: float, length: float) -> None:
    """Draw a wall or a fence of bars. As in Cityscapes, the gaps of a fence are labelled as
    fence."""
    kind = c.choose(("wall", "fence"))
    height = c.rng.uniform(1, 2.4)
    color = c.pick("wall" if kind == "wall" else "metal")
    at = place(x, z, ALONG)
    c.patch(at, 0, length, 0, height, shade(color, 0.85) if kind == "wall" else None, kind)
    c.patch(at, 0, length, height - 0.12, height, shade(color, 1.15), kind)
    if kind == "fence":
        for u in np.arange(length, 0, -0.3 if z < 30 else -0.6).tolist():
            c.patch(at, u - 0.1, u, 0, height, shade(color, 0.95))


def tree(c: Canvas, x: float, z: float) -> None:
    """Draw a trunk and three crowns."""
    size = c.rng.uniform(4.5, 9)
    color = c.pick("leaf", 8)
    lean = c.rng.normal(0, 0.2)
    wide = size * c.rng.uniform(0.26, 0.38)
    w = 0.03 * size
    trunk = ((-w, 0), (lean - w * 0.6, size * 0.55), (lean + w * 0.6, size * 0.55), (w, 0))
    c.face(place(x, z), trunk, c.pick("brown"), "vegetation")
    for u, v, part in ((-0.45, 0.6, 0.65), (0.45, 0.63, 0.65), (0, 0.74, 0.9)):
        u += c.rng.normal(0, 0.12)
        v += c.rng.normal(0, 0.03)
        crown(c, x + lean + u * wide, z, size * v, wide * part, color)


def crown(c: Canvas, x: float, z: float, y: float, radius: float, color: Color) -> None:
    """Draw the leaves of a tree: dark ones first, then lighter ones, lightest towards the sun."""
    at = place(x, z)
    count = int(min(45, 16 + 400 / z))
    for i, (turn, far, size, hue) in enumerate(c.rng.random((count, 4)).tolist()):
        t = i / count
        far = math.sqrt(far) * 0.85
        u, v = far * math.cos(6.28 * turn), far * math.sin(6.28 * turn)
        size = radius * (0.1 + 0.24 * size) * (1.3 - 0.7 * t)
        light = 0.5 + 0.5 * t + 0.2 * v - 0.12 * u * c.cast + 0.2 * (hue - 0.5)
        tint = color[0] * light * (0.85 + 0.3 * hue), color[1] * light, color[2] * light
        c.disc(at, u * radius, max(y + v * radius, size), size, size * 0.9, tint, "vegetation")


def pole(c: Canvas, x: float, z: float, top: str | None = None) -> None:
    """Draw a pole with a lamp, a sign, a traffic light or nothing on it."""
    top = top or c.choose(POLES)
    color = c.pick("metal")
    height = (6.5 if top == "lamp" else 2.7) * c.rng.uniform(0.9, 1.2)
    at = place(x, z)
    c.patch(at, -0.07, 0.07, 0, height, color, "pole")
    if top == "lamp":
        end = -math.copysign(1.7, x)  # over the road
        arm = ((0, height), (end, height + 0.25), (end, height + 0.12), (0, height - 0.15))
        c.face(at, arm, color, "pole")
        c.disc(at, end, height + 0.15, 0.4, 0.12, color, "pole")
    elif top == "traffic light":
        c.patch(at, -0.2, 0.2, height - 1, height, DARK, "traffic light")
        on = c.rng.integers(3)
        for i, lamp in enumerate(LAMPS):
            c.disc(at, 0, height - 0.2 - 0.3 * i, 0.13, 0.13, lamp if i == on else (52, 54, 54))
    elif top == "sign":
        corners, turn, rim = c.choose(SIGNS)
        for radius, paint in ((0.42, rim), (0.27, WHITE)):
            c.regular(at, 0, height, radius, paint, "traffic sign", corners, turn)


def person(c: Canvas, x: float, z: float, label: str = "person") -> None:
    """Draw a walking person or a sitting rider."""
    size, wide = c.rng.uniform((0.8, 0.65), (1.08, 1))
    lift = 0.3 if label == "rider" else 0
    at: At = lambda u, v: (x + u * wide, lift + v * size, z)  # noqa: E731
    coat = c.pick("cloth")
    trousers = c.pick("cloth")
    step = c.rng.uniform(0.03, 0.24)
    for sign in (-1, 1):
        hip, foot = sign * 0.08, sign * step
        leg = ((foot - 0.07, 0), (hip - 0.11, 0.9), (hip + 0.11, 0.9), (foot + 0.07, 0))
        c.face(at, leg, shade(trousers, 1 - 0.12 * sign), label)
        arm = ((0.2, 1.42), (0.32, 0.85), (0.24, 0.82), (0.12, 1.3))
        c.face(at, [(sign * u, v) for u, v in arm], shade(coat, 0.8), label)
    body = ((-0.2, 0.78), (-0.23, 1.38), (-0.1, 1.49), (0.1, 1.49), (0.23, 1.38), (0.2, 0.78))
    c.face(at, body, coat, label)
    c.disc(at, 0, 1.62, 0.1, 0.14, c.pick("skin"), label)
    c.disc(at, 0, 1.68, 0.11, 0.09, c.pick("hair"), label)


def cycle(c: Canvas, x: float, z: float, kind: str | None = None, heading: float = 0.8) -> None:
    """Draw a bicycle or a motorcycle, parked across the pavement or (heading near pi / 2) seen from
    behind."""
    kind = kind or c.choose(("bicycle", "bicycle", "motorcycle"))
    color = c.pick("car")
    turn = math.cos(heading)
    at = place(x, z, heading)
    motor = kind == "motorcycle"
    for end in (-0.58, 0.58):
        c.disc(at, end, 0.34, max(0.34 * turn, 0.1), 0.34, DARK, kind, 0.13 if motor else 0.05)
    frame = ((-0.58, 0.36), (-0.18, 0.85), (0.4, 0.85), (0.58, 0.36), (0, 0.32))
    c.face(at, frame, color if motor else None, kind)
    for (u0, v0), (u1, v1) in pairwise((*frame, frame[0])):
        c.face(at, ((u0, v0 - 0.03), (u0, v0 + 0.03), (u1, v1 + 0.03), (u1, v1 - 0.03)), color)
    for u, v, half in ((-0.18, 0.92, 0.16), (0.35, 1.03, 0.28)):  # saddle and handlebar
        c.patch(place(x + u * turn, z), -half, half, v - 0.04, v + 0.04, DARK, kind)


def vehicle(c: Canvas, x: float, z: float, heading: float, kind: str) -> None:
    """Draw a vehicle: its side view, extruded over its width; `z` is the near end."""
    label, length, half, windows, pillars, outline = VEHICLES[kind]
    paint = c.pick("car", 14)
    glass = c.pick("glass", 5)
    away = math.cos(heading) > 0
    at = place(x, z + length / 2, heading)
    axles: tuple[float, ...] = (-0.31 * length, 0.31 * length)
    # Cars get narrower above the lower edge of the windows.
    taper, wheel = (0.2, 0.34) if label == "car" else (0, 0.5)

    def point(percent: float, height: float, side: int = 1) -> tuple[float, float, float]:
        u = half - taper * min(1, max(0, (height - 90) / 50))
        return side * u, height / 100, (percent / 100 - 0.5) * length

    # The end that the camera sees; just outside of it, so that it is not drawn over.
    near = math.copysign(length / 2 + 0.01, -math.cos(heading))
    if label == "train":  # its wheels are behind its skirt
        axles = ()
        _pantograph(c, at, 0.6 * near)
    for w in axles:  # wheels from the front and the back
        for u in (0.14 - half, half - 0.14):
            c.patch(at, u - 0.1, u + 0.1, 0, 0.7, DARK, label, w)
    for a, b in list(pairwise(outline))[:: -1 if away else 1]:  # the farthest faces first
        (u0, y0, w0), (u1, y1, w1) = point(*a), point(*b)
        light = (0.8 if y0 + y1 > 1.1 else 0.6) + 0.35 * abs(w1 - w0) / math.hypot(w1 - w0, y1 - y0)
        faces = [(0.0, shade(paint, light))]
        if min(y0, y1) > 0.9 and abs(y1 - y0) > 0.35:  # steep, above the windows' lower edge
            faces.append((0.08, glass))
        for inset, color in faces:
            low, high = u0 - inset, u1 - inset
            corners = ((-low, y0, w0), (-high, y1, w1), (high, y1, w1), (low, y0, w0))
            if c.sees_front(at, corners):
                c.face(at, corners, color, label)
    for side in (-1, 1):
        wall = [point(*corner, side) for corner in outline][::side]
        if not c.sees_front(at, wall):
            continue
        c.face(at, wall, shade(paint, c.lit(side * math.cos(heading))), label)
        c.face(at, [point(*corner, side) for corner in windows], glass)
        top = windows[1][1] + 5
        for p in pillars:
            pillar = ((p, 100), (p, top), (p + 2, top), (p + 2, 100))
            c.face(at, [point(*corner, side) for corner in pillar], paint)
        for w in axles:
            x, _, z = at(side * half, 0, w)
            for radius, color in ((wheel, DARK), (wheel * 0.6, (140, 142, 144))):
                c.regular(place(x, z, heading + ALONG), 0, wheel, radius, color, label)
    for u in (0.2 - half, half - 0.2):
        c.patch(at, u - 0.14, u + 0.14, 0.65, 0.81, RED if away else (250, 250, 236), w=near)
    if label == "train":  # a line number above the windscreen instead of a number plate
        c.patch(at, -0.5, 0.5, 2.6, 2.85, LINE_NUMBER, w=near)
    else:
        c.patch(at, -0.25, 0.25, 0.48, 0.6, WHITE, w=near)


def _pantograph(c: Canvas, at: At, w: float) -> None:
    """Draw what a tram takes its current with: two arms and a bar above its roof. Its body is drawn
    over the lower part."""
    for sign in (-1, 1):
        arm = (
            (sign * 0.7, 2.9, w),
            (sign * 0.2, 4.3, w),
            (sign * 0.35, 4.3, w),
            (sign * 0.85, 2.9, w),
        )
        c.face(at, arm, DARK, "train")
    c.patch(at, -0.9, 0.9, 4.2, 4.35, DARK, "train", w)


def hood(c: Canvas) -> None:
    """Draw the hood of the car that carries the camera, which Cityscapes labels as void."""
    top = HEIGHT * c.rng.uniform(0.88, 0.95)
    half = WIDTH * c.rng.uniform(0.45, 0.7)
    color = c.pick("car")
    for inset in range(0, 60, 4):
        left = WIDTH / 2 - half + 2 * inset
        right = WIDTH / 2 + half - 2 * inset
        box = (left, top + inset, right, 1.3 * HEIGHT)
        c.photo_pen.ellipse(box, tuple(int(v * (0.75 - 0.006 * inset)) for v in color))
        c.label_pen.ellipse(box, ID["ego vehicle"])
