"""Folders as labelling tools write them: Labelme, CVAT, Label Studio, Roboflow, Cityscapes.

Each function returns the data of a folder, None if the folder is of another kind.
"""

import csv
import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageDraw

from unet_utils.classes import IGNORE, LABELS, get_scheme
from unet_utils.own_data.folders import (
    SPLITS,
    OwnData,
    Pairs,
    images_and_masks,
    own_data,
    pair_up,
    pictures,
    split_folder,
    split_pairs,
)
from unet_utils.own_data.masks import (
    MASK_ADVICE,
    Classes,
    make_classes,
    mask_reader,
    naming,
    open_picture,
    read_classes,
    read_text,
)
from unet_utils.platform.files import PICTURES, list_folder, natural_order


def find_own_data(folder: Path) -> OwnData | None:
    """Return the photos, labels and classes in a folder of any kind that is known here.

    Raises:
        FileNotFoundError: a photo without labels, labels without a photo, or no list of classes.
        ValueError: a list of classes that cannot be used.
    """
    for reader in (cityscapes, roboflow, cvat, label_studio, images_and_masks, labelme):
        if found := reader(folder):
            return found
    inside = [path for path in list_folder(folder) if path.is_dir()]
    if len(inside) == 1:  # archives often hold a folder that holds all
        return find_own_data(inside[0])
    return None


def labelme(folder: Path) -> OwnData | None:
    """https://github.com/wkentaro/labelme: a JSON file with polygons beside each photo."""
    found = []
    names = set()
    for file in _json_files(folder):
        with naming(file):
            content = json.loads(read_text(file))
            if not isinstance(content, dict) or not {"shapes", "imagePath"} <= content.keys():
                continue
            path = content["imagePath"].replace("\\", "/")
            names |= {shape["label"] for shape in content["shapes"]}
        # Beside the file, or where it was while it was labelled.
        photo = next(filter(Path.is_file, (folder / Path(path).name, folder / path)), None)
        if photo is None:
            raise FileNotFoundError(
                f"{folder / Path(path).name} is missing, although {file.name} belongs to it"
            )
        found.append((photo, file))
    if not found:
        return None
    classes = read_classes(folder) or make_classes(["_background_", *sorted(names)], {}, [])
    values = {name: value for value, name in enumerate(classes.names) if name}

    def read(path: Path, size: tuple[int, int]) -> np.ndarray:
        image = Image.new("L", size, values.get("_background_", IGNORE))
        draw = ImageDraw.Draw(image)
        with naming(path):
            for shape in json.loads(read_text(path))["shapes"]:
                if shape["label"] not in values:
                    raise ValueError(f"it has the label {shape['label']!r}, which is no class")
                _draw_shape(draw, shape, values[shape["label"]])
        return np.asarray(image)

    return OwnData(folder, classes.scheme(), split_pairs(folder, found), read)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: dict, value: int) -> None:
    """Draw one shape of a Labelme file; later shapes lie on earlier ones, as in Labelme."""
    points = [tuple(point) for point in shape["points"]]
    kind = shape.get("shape_type") or "polygon"
    if kind == "polygon":
        draw.polygon(points, fill=value, outline=value)
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points
        draw.rectangle([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)], fill=value)
    elif kind == "circle":
        (x, y), (edge_x, edge_y) = points
        radius = ((edge_x - x) ** 2 + (edge_y - y) ** 2) ** 0.5
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=value)
    elif kind in ("line", "linestrip"):
        draw.line(points, fill=value, width=max(1, int(shape.get("line_width", 10))))
    elif kind != "point":
        raise ValueError(f"it has a shape of the kind {kind!r}: draw it as a polygon")


def _json_files(folder: Path) -> list[Path]:
    return [path for path in list_folder(folder) if path.suffix.lower() == ".json"]


def cvat(folder: Path) -> OwnData | None:
    """https://docs.cvat.ai, format "Segmentation mask": colours in labelmap.txt."""
    table = folder / "labelmap.txt"
    if not table.is_file():
        return None
    entries = []
    with naming(table):
        for line in read_text(table).splitlines():
            if line.strip() and not line.startswith("#"):
                name, color, *_ = line.split(":")
                entries.append({"name": name, "color": color.split(",")})
        listed = make_classes(entries, {}, [])
    classes = read_classes(folder) or listed
    photos = next(
        (folder / name for name in ("JPEGImages", "images") if pictures(folder / name)), None
    )
    if photos is None:
        raise FileNotFoundError(
            f"there are no photos in {folder / 'JPEGImages'}: export again with *Save images*, or "
            "put them there"
        )
    masks = folder / "SegmentationClass"
    pairs = pair_up(photos, masks, "export photos and masks together", needs_all=False)
    return own_data(folder, classes, split_pairs(folder, pairs))


def roboflow(folder: Path) -> OwnData | None:
    """https://docs.roboflow.com, "Semantic Segmentation Masks": NAME.jpg and NAME_mask.png."""
    parts = {split: split_folder(folder, split) for split in SPLITS}
    tables = [part / "_classes.csv" for part in parts.values() if part]
    if not tables or not all(table.is_file() for table in tables):
        return None
    with naming(tables[0]):
        lines = read_text(tables[0]).splitlines()
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
        entries = [{"name": name, "value": value} for value, name, *_ in rows[1:]]
        listed = make_classes(entries, {}, [])
    classes = read_classes(folder) or listed
    pairs: dict[str, Pairs] = {}
    for split, part in parts.items():
        files = {path.stem: path for path in pictures(part)} if part else {}
        photos = [path for name, path in files.items() if not name.endswith("_mask")]
        pairs[split] = []
        for photo in photos:
            if f"{photo.stem}_mask" not in files:
                raise FileNotFoundError(f"{photo} has no mask {photo.stem}_mask.png: export again")
            pairs[split].append((photo, files[f"{photo.stem}_mask"]))
    if not pairs["val"]:
        pairs = split_pairs(folder, pairs["train"])
    return own_data(folder, classes, pairs)


def _plain(name: str) -> str:
    """Return what Label Studio makes of the name of an uploaded file."""
    return re.sub(r"[^-\w.]", "", name.replace(" ", "_"))


TASK = re.compile(r"task-(\d+)-annotation-\d+-by-.*?-tag-(.+)-\d+\.png")


def label_studio(folder: Path) -> OwnData | None:
    """https://labelstud.io, export "Brush labels to PNG": a file for each task and label."""
    masks: dict[str, list[tuple[str, Path]]] = {}
    for path in natural_order(folder.glob("task-*.png")):
        if found := TASK.fullmatch(path.name):
            masks.setdefault(found[1], []).append((found[2], path))
    if not masks:
        return None
    photo_of = {}
    for file in _json_files(folder):  # the same project, exported as JSON
        with naming(file):
            tasks = json.loads(read_text(file))
            for task in tasks if isinstance(tasks, list) else []:
                if not isinstance(task, dict):  # classes.json may be a list of names
                    continue
                values = task.get("data", task).values()
                address = next((v for v in values if str(v).lower().endswith(PICTURES)), None)
                if address:
                    name = re.split(r"[/\\=]", unquote(address))[-1]
                    photo_of[str(task["id"])] = _plain(name)
    photos = {_plain(path.name): path for path in pictures(folder / "images")}
    pairs = []
    for task, parts in masks.items():
        names = [photo_of.get(task, ""), photo_of.get(task, "").split("-", 1)[-1]]
        photo = next((photos[name] for name in names if name in photos), None)
        if photo is None:
            raise FileNotFoundError(
                f"{parts[0][1]}: the photo of task {task} is not known. Put the photos into "
                f"{folder / 'images'}, and the JSON export of the project (JSON-MIN) into {folder}"
            )
        pairs.append((photo, parts[0][1]))
    labels = sorted({label for parts in masks.values() for label, _ in parts})
    classes = read_classes(folder) or make_classes(["background", *labels], {}, [])
    values = {name: value for value, name in enumerate(classes.names) if name}

    def read(path: Path, size: tuple[int, int]) -> np.ndarray:
        task = TASK.fullmatch(path.name)
        assert task
        result = np.full(size[::-1], values.get("background", IGNORE), dtype=np.uint8)
        for label, file in masks[task[1]]:
            part = np.asarray(open_picture(file).convert("L"))
            if part.shape != result.shape:
                raise ValueError(f"{file} has another size than its photo. {MASK_ADVICE}")
            if label not in values:
                raise ValueError(f"{file} is of the label {label!r}, which is no class")
            result[part > 127] = values[label]
        return result

    files = tuple(path for parts in masks.values() for _, path in parts)
    return OwnData(folder, classes.scheme(), split_pairs(folder, pairs), read, files)


def cityscapes(folder: Path) -> OwnData | None:
    """https://www.cityscapes-dataset.com: leftImg8bit and gtFine, each as it is unpacked."""
    photos_root = _find(folder, "leftImg8bit")
    labels_root = _find(folder, "gtFine")
    if not photos_root or not labels_root:
        return None
    pairs: dict[str, Pairs] = {}
    for split in SPLITS:
        pairs[split] = []
        # Not the files that macOS adds, ._NAME.
        for photo in sorted((photos_root / split).glob("[!.]*/[!.]*_leftImg8bit.png")):
            name = photo.name.replace("_leftImg8bit", "_gtFine_labelIds")
            labels = labels_root / split / photo.parent.name / name
            if not labels.is_file():
                raise FileNotFoundError(f"{labels} is missing: unpack gtFine_trainvaltest.zip")
            pairs[split].append((photo, labels))
        if not pairs[split]:
            raise FileNotFoundError(
                f"no */*_leftImg8bit.png in {photos_root / split}: unpack "
                "leftImg8bit_trainvaltest.zip"
            )
    official = Classes([label.name for label in LABELS], [None] * len(LABELS), {}, [])
    return OwnData(folder, get_scheme("cityscapes19"), pairs, mask_reader(official))


def _find(folder: Path, name: str) -> Path | None:
    """Return the folder of that name, which may lie in one with the name of its archive."""
    places = (folder / name, folder / f"{name}_trainvaltest" / name)
    return next((place for place in places if (place / "train").is_dir()), None)
