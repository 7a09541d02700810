"""Takes the README's pictures from the figures of a `make run` on the demo set: docs/*.png, small enough for a page."""

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PICTURES = {
    "pairs": "01_download-01",
    "labels": "02_explore-05",
    "shares": "02_explore-08",
    "training": "03_train-02",
    "predictions": "04_evaluate-07",
    "classes": "04_evaluate-01",
}


def main() -> None:
    """Halves each figure, which was made for screens of high density, and reduces it to 256 colours."""
    for name, figure in PICTURES.items():
        with Image.open(ROOT / "runs" / "figures" / f"{figure}.png") as image:
            small = image.convert("RGB").reduce(2).quantize(256, dither=Image.Dither.NONE)
        small.save(ROOT / "docs" / f"{name}.png", optimize=True)
        print(f"docs/{name}.png {small.width}x{small.height}")


if __name__ == "__main__":
    main()
