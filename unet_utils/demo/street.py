"""The demo scenes: a random street with houses, gardens, traffic and a crossing, drawn on a
`Canvas` that records the class of each pixel. `draw_scene` draws one."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from unet_utils.demo.canvas import FAR, NEAR, Canvas, Color, shade
from unet_utils.demo.objects import (
    VEHICLES,
    WHITE,
    barrier,
    crown,
    cycle,
    hood,
    house,
    person,
    pole,
    tree,
    vehicle,
)

Span = tuple[float, float]  # start and end along the street, metres
CARS = ("hatchback", "hatchback", "hatchback", "saloon", "saloon", "van")
CYCLES = ("motorcycle", "motorcycle", "motorcycle", "bicycle", "bicycle")
TRAFFIC = (*CARS, *CARS, "truck", "bus", *CYCLES)

# Objects on the pavement: probability that a side of the street has them, distance between two of
# them in metres (minimum, and mean of what is added to it), position from 0 (kerb) to 1 (houses);
# of the shadow: half the width, the depth, and the height of the object.
ROADSIDE = (
    (tree, 0.7, 8, 4, (0.1, 0.1), (1.5, 1, 3)),
    (pole, 1.0, 9, 3, (0.0, 0.0), (0.1, 0.2, 2)),
    (person, 1.0, 0.4, 7, (0.0, 1.0), (0.25, 0.2, 1.2)),
    (cycle, 0.8, 1, 9, (0.8, 1.0), (0.5, 0.2, 0.3)),
)


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street scene.

    Args:
        rng: random generator; the same state gives the same scene.

    Returns:
        The photo `uint8 [512, 1024, 3]` and its official label ids `uint8 [512, 1024]`.
    """
    c = Canvas(rng)
    end = rng.uniform(60, 130)
    middle = -rng.uniform(1.6, 2.2)  # of the street; the camera is in the middle of the right lane
    asphalt = c.pick("asphalt", 5)
    parked = {side: rng.random() < 0.6 for side in (-1, 1)}
    left = middle - rng.uniform(3.1, 4) - 2.2 * parked[-1]
    kerbs = {-1: left, 1: rng.uniform(1.8, 3) + 2.2 * parked[1]}
    start = rng.uniform(14, end - 15)
    crossing = (start, start + 8)
    c.ground(-FAR, FAR, c.pick("grass"), "terrain", 8)
    c.ground(kerbs[-1], kerbs[1], asphalt, "road")
    for side in (-1, 1):
        _roadside(c, side, kerbs[side], end, crossing)
        if parked[side]:
            for z in _spots(c, 3.5, end * 0.8, 5.3, 2, crossing):
                heading = math.pi * (rng.random() < (0.3 if side > 0 else 0.7))
                _send(c, kerbs[side] - side * 1.1, z, heading, CARS)
    _traffic(c, middle, end, crossing)
    _crossing(c, kerbs, asphalt, *crossing)
    for x in range(-80, 81, 9):  # houses and trees at the end of the street
        c.put(end + 20, house, x, end + 15, 1, 1, max(0.1, rng.uniform(-8, 18)))
        tree_x, tree_y = x + rng.uniform(0, 9), rng.uniform(2, 5)
        c.put(end + 8, crown, tree_x, end + 6, tree_y, 6, c.pick("leaf"))
    c.finish()
    if rng.random() < 0.7:
        hood(c)
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
    rng = c.rng
    width = rng.uniform(3, 7.5)
    paving = c.pick("paving", 8)
    urban = rng.uniform(0.3, 1)
    height = rng.uniform(10, 21)
    edge = kerb + side * width
    c.ground(kerb, edge, paving, "sidewalk")
    if rng.random() < 0.55:
        c.ground(kerb, kerb + side * rng.uniform(0.7, 1.4), c.pick("grass"), "terrain")
    c.ground(kerb, kerb + side * 0.16, shade(paving, 1.2), "sidewalk")
    for z0, z1 in ((NEAR, crossing[0] - 3), (crossing[1] + 3, end)):
        for a, b in pairwise(np.linspace(z0, z1, 1 + max(1, round((z1 - z0) / 12))).tolist()):
            if rng.random() < urban * 0.93:
                c.put(b, house, edge, a, side, b - a, height * rng.uniform(0.75, 1.25))
                c.shadow(edge, a, 0, b - a, height * 0.6)
            else:
                c.put(b, barrier, edge, a, b - a)
                for _ in range(3):
                    x = edge + side * rng.uniform(2, 9)
                    c.put(b + 0.1, tree, x, rng.uniform(max(a, 5), max(b, 6)))
    for draw, chance, least, more, (near, far), shadow in ROADSIDE:
        if rng.random() < chance:
            for z in _spots(c, 7, end * 0.8, least, more, crossing):
                x = kerb + side * (0.4 + (width - 0.8) * rng.uniform(near, far))
                c.shadow(x, z, *shadow)
                c.put(z, draw, x, z)


def _traffic(c: Canvas, middle: float, end: float, crossing: Span) -> None:
    """Draw road markings or tram rails, and moving vehicles; the camera drives in the right
    lane."""
    tram = c.rng.random() < 0.12
    first_dash = c.rng.uniform(2, 8)
    if tram:
        for rail in (-0.72, 0.72, middle * 2 - 0.72, middle * 2 + 0.72):
            c.ground(rail - 0.06, rail + 0.06, (44, 44, 46))
    for dash in np.arange(first_dash, end, 9).tolist():
        c.ground(middle - 0.07, middle + 0.07, WHITE, None, dash, dash + 4)
    for lane, heading in ((0, 0.0), (2 * middle, math.pi)):
        for i, z in enumerate(_spots(c, 10, end, 22, 9, crossing)):
            kinds = ("tram",) if tram and i == 0 else TRAFFIC
            _send(c, lane + c.rng.normal(0, 0.2), z, heading, kinds)


def _crossing(c: Canvas, kerbs: dict[int, float], asphalt: Color, z0: float, z1: float) -> None:
    """Draw a crossing street, zebra stripes in front of it, and the people and cars there."""
    c.ground(-60, 60, c.pick("paving"), "sidewalk", z0 - 2, z1 + 2)
    c.ground(-60, 60, asphalt, "road", z0, z1)
    c.ground(kerbs[-1], kerbs[1], asphalt, "road", z0 - 4, z1 + 4)
    for x in np.arange(kerbs[-1] + 0.4, kerbs[1] - 0.5).tolist():
        c.ground(x, x + 0.5, WHITE, None, z0 - 3.6, z0 - 0.8)
    for side, z in ((1, z0 - 4), (-1, z1 + 3)):
        c.put(z, pole, kerbs[side] + side * 0.4, z, "traffic light")
    for _ in range(c.rng.poisson(1)):
        c.put(z0 - 2, person, c.rng.uniform(kerbs[-1], kerbs[1]), z0 - 2)
    if c.rng.random() < 0.6:
        _send(c, c.rng.uniform(-9, 9), z0, math.pi / 2 * c.choose((-1, 1)), CARS)


def _send(c: Canvas, x: float, z: float, heading: float, kinds: tuple[str, ...]) -> None:
    """Put a vehicle of one of these kinds on the road, its near end at `z`."""
    kind = c.choose(kinds)
    if kind in VEHICLES:
        c.shadow(x, z, 0.9, VEHICLES[kind][1], 1)
        c.put(z, vehicle, x, z, heading, kind)
    else:
        x += 0.8 * math.cos(heading)  # at the edge of the lane
        c.shadow(x, z, 0.25, 1, 1)
        c.put(z, cycle, x, z, kind, c.rng.uniform(1.3, 1.5))
        c.put(z - 0.01, person, x, z, "rider")
