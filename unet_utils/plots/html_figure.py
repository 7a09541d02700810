"""Figures in HTML that can be pointed at, without a server and without any other file.

Each has a template beside its module, with `{{fields}}`. What stands in it is a picture also where
no script runs; there, a notebook has a PNG, too.
"""

import base64
import html
import io
import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from unet_utils.classes import IGNORE, ClassScheme
from unet_utils.plots.style import notebook_image

VOID = "void (no class)"


class HtmlFigure:
    """An HTML figure that notebooks show by themselves, with a picture for where they cannot.

    Args:
        page: the HTML.
        figure: the same without anything to point at.

    Attributes:
        html: the HTML, to write into a file of your own.
    """

    def __init__(self, page: str, figure: Figure):
        self.html = page
        self._figure = figure

    def _repr_html_(self) -> str:
        return self.html

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple:
        data, metadata = notebook_image(self._figure)._repr_mimebundle_()
        data |= {"text/html": self.html, "text/plain": str(self._figure.get_label())}
        return data, metadata


def fill(template: Path, fields: dict[str, str]) -> str:
    """Return the template with its fields. They are HTML: pass other text through `html.escape`."""
    text = template.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], text)


def shrink(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Return a photo `uint8 [H, W, 3]` or class indices `uint8 [H, W]` with no side longer than
    that; smaller ones as they are."""
    height, width = pixels.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    # Class indices have no means: each pixel of the result is one of those that were there.
    how = Image.Resampling.NEAREST if pixels.ndim == 2 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def distinct_colors(scheme: ClassScheme) -> dict[int, tuple[int, ...]]:
    """Return the colour of each class index and of void, all different: a page tells by them which
    class a pixel has. Some classes share an official colour; one of them gets the next blue."""
    colors: dict[int, tuple[int, ...]] = {}
    for index, color in [(IGNORE, (0, 0, 0)), *enumerate(scheme.colors)]:
        red, green, blue = color
        while (red, green, blue) in colors.values():
            blue = (blue + 1) % 256
        colors[index] = (red, green, blue)
    return colors


def class_names(scheme: ClassScheme) -> dict[int, str]:
    """Return the name of each class index and of void."""
    return dict(enumerate(scheme.names)) | {IGNORE: "void"}


def photo_jpeg(photo: np.ndarray) -> str:
    """Return a photo `uint8 [H, W, 3]` as a JPEG in base64."""
    return _base64(Image.fromarray(photo), format="JPEG", quality=75, optimize=True)


def map_png(classes: np.ndarray, scheme: ClassScheme) -> str:
    """Return class indices `uint8 [H, W]` as a PNG in base64: it holds the indices, and their
    colours in its palette."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    for index, color in distinct_colors(scheme).items():
        palette[index] = color
    image = Image.fromarray(classes)
    image.putpalette(palette.tobytes())
    return _base64(image, format="PNG", optimize=True)


def read_picture(text: str) -> np.ndarray:
    """Return the photo `uint8 [H, W, 3]` of `photo_jpeg`, about as it was, or the class indices
    `uint8 [H, W]` of `map_png`."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.array(image)


def html_legend(maps: list[np.ndarray], scheme: ClassScheme) -> str:
    """Return the classes that occur in some class maps, as the items of a list."""
    occurring = np.unique(np.concatenate([np.ravel(classes) for classes in maps]))
    names = class_names(scheme) | {IGNORE: VOID}
    colors = distinct_colors(scheme)
    items = []
    for index in occurring.tolist():
        color = "#" + bytes(colors[index]).hex()
        items.append(f'<li><i style="background:{color}"></i>{html.escape(names[index])}</li>')
    return "".join(items)


def _base64(image: Image.Image, **options: object) -> str:
    file = io.BytesIO()
    image.save(file, **options)  # type: ignore[arg-type]
    return base64.b64encode(file.getvalue()).decode()
