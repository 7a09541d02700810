"""Photos and masks of one's own: every way to write them, and every mistake that people make."""

import json
import shutil
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet_utils import IGNORE, sources
from unet_utils.classes import LABELS
from unet_utils.demo.street import draw_scene
from unet_utils.own_data.folders import images_and_masks, prepare_own_data, read_frame
from unet_utils.own_data.masks import read_classes
from unet_utils.own_data.tools import (
    cityscapes,
    cvat,
    find_own_data,
    label_studio,
    labelme,
    roboflow,
)
from unet_utils.pictures import read_photo
from unet_utils.sources import open_source

FIXTURES = Path(__file__).parent / "fixtures"
COLORS = {"road": (128, 64, 128), "car": (0, 0, 142), "sky": (70, 130, 180)}


def draw(size, seed=0):
    """A photo, and its labels: sky above, road below, a car on it."""
    width, height = size
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[: height // 3] = 2
    labels[height // 2 : height * 3 // 4, width // 4 : width // 2] = 1
    palette = np.array(list(COLORS.values()), dtype=np.uint8)
    noise = np.random.default_rng(seed).integers(-8, 9, (height, width, 3))
    photo = (palette[labels] + noise).clip(0, 255).astype(np.uint8)
    return photo, labels


@pytest.fixture
def folder(tmp_path):
    """Six photos of mixed sizes with masks of class numbers."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number, size in enumerate([(60, 40), (40, 60), (50, 50)] * 2, start=6):
        photo, labels = draw(size, number)
        Image.fromarray(photo).save(tmp_path / "images" / f"frame{number}.jpg", quality=95)
        Image.fromarray(labels).save(tmp_path / "masks" / f"frame{number}.png")
    (tmp_path / "classes.txt").write_text("\n".join(COLORS))
    return tmp_path


def change_masks(folder, change):
    for path in (folder / "masks").iterdir():
        image = change(np.asarray(Image.open(path)))
        image.save(path)


def colored(labels):
    return Image.fromarray(np.array(list(COLORS.values()), dtype=np.uint8)[labels])


def write_colors(folder):
    lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in COLORS.items()]
    (folder / "classes.txt").write_text("\n".join(lines))


def labels_of(data, split="train", size=(48, 32)):
    return [read_frame(data, *pair, size)[1] for pair in data.pairs[split]]


def test_a_folder_becomes_frames_of_one_size(folder, tmp_path, capsys):
    data = images_and_masks(folder)
    names = [photo.name for photo, _ in data.pairs["train"] + data.pairs["val"]]
    assert names == [f"frame{number}.jpg" for number in (6, 7, 8, 9, 10, 11)]
    assert "photos that look alike" in capsys.readouterr().out
    frames = prepare_own_data(data, "train", tmp_path / "cache", (48, 32))
    assert frames.photos.shape == (5, 32, 48, 3)
    assert frames.scheme.names == tuple(COLORS)
    shares = frames.class_counts().double() / frames.label_ids.numel()
    assert shares.tolist() == pytest.approx([0.61, 0.06, 0.33], abs=0.02)
    again = prepare_own_data(data, "train", tmp_path / "cache", (48, 32))
    assert again.data == frames.data


def test_lessons_about_colour_masks_use_drawn_pairs(
    folder, tmp_path, tiny_pairs, monkeypatch, capsys
):
    monkeypatch.setattr(sources, "make_demo", lambda folder: tiny_pairs)
    mine = open_source(folder, tmp_path / "data")
    assert [path.stem for path in mine.files("val")] == ["frame11"]
    assert len(mine.files("train")) == 5
    drawn = mine.with_pairs(tmp_path / "data")
    assert "this lesson is about drawn pairs" in capsys.readouterr().out
    assert drawn.root == tiny_pairs
    assert [path.name for path in drawn.files("val")] == ["1.jpg", "2.jpg", "3.jpg"]
    assert drawn.with_pairs(tmp_path / "data") is drawn


def test_masks_may_hold_numbers_a_palette_or_colours(folder):
    plain = labels_of(images_and_masks(folder))

    def with_palette(labels):
        image = Image.fromarray(labels, "P")
        image.putpalette([10, 20, 30] * 256)
        return image

    change_masks(folder, with_palette)
    assert all(map(np.array_equal, plain, labels_of(images_and_masks(folder))))
    change_masks(folder, lambda labels: Image.fromarray(labels).convert("RGB"))
    assert all(map(np.array_equal, plain, labels_of(images_and_masks(folder))))
    change_masks(folder, lambda labels: Image.fromarray(labels[..., 0]))
    change_masks(folder, colored)
    with pytest.raises(ValueError, match="holds colours, and the list of classes has none"):
        labels_of(images_and_masks(folder))
    write_colors(folder)
    assert all(map(np.array_equal, plain, labels_of(images_and_masks(folder))))


def test_a_split_of_ones_own(folder, capsys):
    (folder / "val.txt").write_text("frame7.jpg\nframe9\n")
    data = images_and_masks(folder)
    assert [photo.stem for photo, _ in data.pairs["val"]] == ["frame7", "frame9"]
    assert len(data.pairs["train"]) == 4
    assert capsys.readouterr().out == ""
    (folder / "val.txt").write_text("frame7.jpg\nframe9\n", encoding="utf-16")  # PowerShell's
    assert images_and_masks(folder).pairs == data.pairs
    (folder / "val.txt").write_bytes(b"stra\xdfe.jpg")
    with pytest.raises(ValueError, match=r"val\.txt cannot be used: 'utf-8' codec"):
        images_and_masks(folder)
    (folder / "val.txt").write_text("frame99")
    with pytest.raises(FileNotFoundError, match=r"val\.txt names frame99"):
        images_and_masks(folder)


def test_names_of_two_spellings_belong_together(folder):
    """macOS writes letters with dots as two signs; some tools keep the suffix of the photo."""
    composed, in_two = (unicodedata.normalize(form, "straße-süd.v1.2") for form in ("NFC", "NFD"))
    for number, photo, mask in ((6, composed, in_two), (7, in_two + "x", composed + "x.jpg")):
        (folder / "images" / f"frame{number}.jpg").rename(folder / "images" / f"{photo}.jpg")
        (folder / "masks" / f"frame{number}.png").rename(folder / "masks" / f"{mask}.png")
    (folder / "val.txt").write_text(f"{in_two}\n{composed}x.jpg\n\n", encoding="utf-8")
    assert len(images_and_masks(folder).pairs["val"]) == 2
    shutil.copy(folder / "masks" / "frame8.png", folder / "masks" / "frame8.tif")
    with pytest.raises(ValueError, match=r"frame8\.png and .*frame8\.tif are masks of one photo"):
        images_and_masks(folder)


def test_a_line_of_val_txt_may_name_the_folder(folder):
    """Frames of two videos have the same names."""
    for part in ("images", "masks"):
        for number, path in enumerate(sorted((folder / part).iterdir())):
            target = folder / part / f"video{number % 2}" / f"frame{number // 2}{path.suffix}"
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
    (folder / "val.txt").write_text("video1\\frame0.jpg\nimages/video1/frame2\n")
    found = [photo.relative_to(folder / "images") for photo, _ in _val(folder)]
    assert found == [Path("video1/frame0.jpg"), Path("video1/frame2.jpg")]
    (folder / "val.txt").write_text("video7/frame0.jpg")
    with pytest.raises(FileNotFoundError, match=r"names video7/frame0\.jpg, but"):
        _val(folder)


def _val(folder):
    return images_and_masks(folder).pairs["val"]


def test_photos_that_are_numbers_keep_them(folder, tmp_path):
    """Predictions are found by these numbers."""
    for part in ("images", "masks"):
        for path in list((folder / part).iterdir()):
            path.rename(path.with_stem(f"{int(path.stem[5:]):04}"))
    data = images_and_masks(folder)
    assert prepare_own_data(data, "train", tmp_path / "a", (8, 8)).numbers == (6, 7, 8, 9, 10)
    (folder / "val.txt").write_text("0007\n")
    data = images_and_masks(folder)
    assert prepare_own_data(data, "val", tmp_path / "b", (8, 8)).numbers == (7,)


def test_black_is_a_class_only_where_that_is_known(folder):
    """As in the palette of Pascal VOC: background is number 0, and black."""
    plain = labels_of(images_and_masks(folder))
    (folder / "classes.txt").write_text("road\ncar 0 0 142\nsky 70 130 180")

    def with_palette(labels):
        image = Image.fromarray(labels, "P")
        image.putpalette([0, 0, 0, 0, 0, 142, 70, 130, 180] + [0] * 759)
        return image

    change_masks(folder, with_palette)
    assert all(map(np.array_equal, plain, labels_of(images_and_masks(folder))))
    for path in (folder / "masks").iterdir():
        Image.open(path).convert("RGB").save(path)
    with pytest.raises(ValueError, match=r"black pixels.*'road' has no colour: write `road 0 0 0`"):
        labels_of(images_and_masks(folder))
    (folder / "classes.txt").write_text("road 0 0 0\ncar 0 0 142\nsky 70 130 180")
    assert all(map(np.array_equal, plain, labels_of(images_and_masks(folder))))


@pytest.mark.parametrize("inner", [True, False])
def test_folders_for_the_splits(folder, inner):
    for part in ("images", "masks"):
        for number, path in enumerate(sorted((folder / part).iterdir())):
            split = "val" if number < 2 else "train"
            target = folder / part / split if inner else folder / split / part
            target.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
        if not inner:
            (folder / part).rmdir()
    data = images_and_masks(folder)
    assert {split: len(pairs) for split, pairs in data.pairs.items()} == {"train": 4, "val": 2}


def test_classes_are_merged_ignored_and_numbered_as_the_list_says(folder):
    text = {
        "classes": [
            "void",
            {"name": "road", "value": 7, "color": "#804080"},
            {"name": "lane", "value": 8},
            "sky",
        ],
        "merge": {"ground": ["road", "lane"]},
        "ignore": ["void"],
    }
    (folder / "classes.json").write_text(json.dumps(text))
    scheme = read_classes(folder).scheme()
    assert scheme.names == ("ground", "sky")
    assert scheme.colors[0] == (128, 64, 128)
    assert scheme.encode(np.array([0, 7, 8, 9, 3], dtype=np.uint8)).tolist() == [
        IGNORE,
        0,
        0,
        1,
        IGNORE,
    ]


def smooth(labels):
    return colored(labels).resize((61, 41), Image.Resampling.BICUBIC).resize(labels.shape[::-1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "masks" / "frame6.png").unlink(), r"frame6\.jpg has no mask"),
        (
            lambda f: (f / "images" / "frame6.jpg").rename(f / "images" / "frame6.heic"),
            r"frame6\.png belongs to no photo: .* Photos may end in \.jpg",
        ),
        (lambda f: (f / "images" / "frame6.jpg").unlink(), r"frame6\.png belongs to no photo"),
        (lambda f: (f / "classes.txt").unlink(), r"classes\.txt is missing: write the name"),
        (lambda f: (f / "classes.txt").write_text("road\ncar"), r"holds 2, but the classes have 0"),
        (
            lambda f: change_masks(f, lambda a: Image.fromarray(a).resize((20, 20))),
            r"frame6\.png has 20x20 pixels, its photo frame6\.jpg has 60x40",
        ),
        (
            lambda f: change_masks(f, lambda a: Image.fromarray(a.T)),
            r"frame6\.png has 40x60 pixels.*turned by its EXIF orientation, and the mask not\?",
        ),
        (
            lambda f: (f / "classes.json").write_text('{"classes": {"0": "road", "1": "car"}}'),
            r"classes\.json cannot be used: classes is no list",
        ),
        (
            lambda f: (f / "classes.txt").write_text("\ufeffroad\r\n\r\n", encoding="utf-8"),
            "there is only road: what is left over is a class, too",
        ),
        (
            lambda f: (
                (f / "classes.txt").write_text("no\nyes"),
                change_masks(f, lambda a: Image.fromarray((a > 1).astype(np.uint8) * 255)),
            ),
            "holds 0 and 255. 255 means void here",
        ),
        (
            lambda f: change_masks(f, lambda a: Image.fromarray(a.astype(np.uint16) * 1000)),
            "has more than 8 bits: values up to 2000",
        ),
        (
            lambda f: (write_colors(f), change_masks(f, smooth)),
            "have colours of no class, such as .*smooth edges",
        ),
        (
            lambda f: (f / "images" / "frame6.jpg").write_text("no picture"),
            r"frame6\.jpg cannot be read as a photo",
        ),
    ],
)
def test_mistakes_are_named_with_the_next_step(folder, spoil, message):
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        labels_of(images_and_masks(folder))


def test_numbers_that_were_saved_as_jpeg_are_refused(folder):
    """They are wrong, but most are still numbers of a class."""
    for path in (folder / "masks").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    with pytest.raises(ValueError, match=r"frame6\.jpg: JPEG changes the numbers in masks.*as PNG"):
        labels_of(images_and_masks(folder))
    for path in (folder / "masks").iterdir():
        path.rename(path.with_suffix(".png"))
    with pytest.raises(ValueError, match=r"frame6\.png: JPEG changes the numbers in masks"):
        labels_of(images_and_masks(folder))


def test_webp_masks_are_read_if_they_are_lossless(folder):
    plain = labels_of(images_and_masks(folder))
    for path in (folder / "masks").iterdir():
        Image.open(path).save(path.with_suffix(".webp"), lossless=True)
        path.unlink()
    assert all(map(np.array_equal, plain, labels_of(images_and_masks(folder))))
    for path in (folder / "masks").iterdir():
        Image.open(path).save(path)
    with pytest.raises(ValueError, match=r"frame6\.webp: lossy WebP changes the numbers in masks"):
        labels_of(images_and_masks(folder))


def png_of_16_bits(path, pixels):
    """Write `[H, W, channels]` with 16 bits, which Pillow cannot."""
    kind = {2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    content = b"\x89PNG\r\n\x1a\n"
    for name, part in parts.items():
        check = zlib.crc32(name + part)
        content += struct.pack(">I", len(part)) + name + part + struct.pack(">I", check)
    path.write_bytes(content)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_several_channels_of_16_bits_are_refused(folder, channels):
    """Of these Pillow reads the high bytes only: zeros."""
    path = folder / "masks" / "frame6.png"
    labels = np.asarray(Image.open(path))
    png_of_16_bits(path, np.repeat(labels[..., None], channels, axis=2))
    with pytest.raises(ValueError, match=r"frame6\.png has 16 bits in each of several .*8 bits"):
        labels_of(images_and_masks(folder))


def test_masks_of_floats_hold_whole_numbers(folder):
    plain = labels_of(images_and_masks(folder))
    for path in (folder / "masks").iterdir():
        numbers = np.asarray(Image.open(path)).astype(np.float32)
        Image.fromarray(numbers).save(path.with_suffix(".tif"))
        path.unlink()
    assert all(map(np.array_equal, plain, labels_of(images_and_masks(folder))))
    first = folder / "masks" / "frame6.tif"
    Image.fromarray(np.asarray(Image.open(first)) / np.float32(255)).save(first)
    with pytest.raises(ValueError, match=r"frame6\.tif holds 0\.0039.*but the classes have 0 to 2"):
        labels_of(images_and_masks(folder))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("# mine\nroad\ncar\n\nsky\n", [0, 1, 2]),
        ("Name, r, g, b\nroad, 1, 2, 3\ncar, 4, 5, 6\nsky, 7, 8, 9\n", [0, 1, 2]),
        ("1 road\n3: car\n2, sky\n", [1, 3, 2]),
        ("1 road 1 2 3\n3 car #040506\n2 sky 7 8 9\n", [1, 3, 2]),
    ],
)
def test_comments_and_numbers_in_the_list_of_classes_shift_no_value(tmp_path, text, values):
    (tmp_path / "classes.txt").write_text(text)
    names = read_classes(tmp_path).names
    assert [names.index(name) for name in COLORS] == values
    assert len(names) - names.count(None) == 3


def test_colours_of_floats_are_refused(tmp_path):
    (tmp_path / "classes.json").write_text('[{"name": "road", "color": [0.5, 0.25, 0.5]}, "car"]')
    with pytest.raises(ValueError, match=r"classes\.json cannot be used: 0\.5 is no whole number"):
        read_classes(tmp_path)


def test_what_is_chosen_for_pairs_is_refused(folder, tmp_path):
    source = open_source(folder, tmp_path / "data")
    with pytest.raises(ValueError, match=r"classes of their own: leave the scheme clusters out"):
        source.frames("train", tmp_path, "clusters")
    with pytest.raises(ValueError, match=r"labels is 'nearest'.*leave it out \(--labels\)"):
        source.frames("train", tmp_path, labels="nearest")


def test_masks_that_were_saved_as_jpeg_are_explained(folder):
    (folder / "classes.txt").write_text("road 255 0 0\ncar 0 255 0\nsky 0 0 255\n")
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    for path in (folder / "masks").iterdir():
        mask = Image.fromarray(colors[np.asarray(Image.open(path))])
        mask.save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    with pytest.raises(ValueError, match=r"\.jpg: .*JPEG changes the colours of masks.*as PNG"):
        labels_of(images_and_masks(folder))


def test_jpeg_masks_in_the_colours_of_cityscapes_are_restored(tmp_path):
    """Nearest colours would get five times as many pixels wrong."""
    photo, label_ids = draw_scene(np.random.default_rng(3))
    drawn = label_ids[::2, ::2]
    kinds = {"road": 7, "building": 11, "sky": 23, "car": 26}
    official = {label.id: label.color for label in LABELS}
    labels = np.full(drawn.shape, 255, dtype=np.uint8)
    colors = np.zeros((*drawn.shape, 3), dtype=np.uint8)
    for label_id in np.unique(drawn):
        colors[drawn == label_id] = official[label_id]
    lines = []
    for value, (name, label_id) in enumerate(kinds.items()):
        labels[drawn == label_id] = value
        lines.append(" ".join(map(str, (name, *official[label_id]))))
    height, width = 250, 500  # not divisible by the restorer's block
    for part, picture in (("images", photo[::2, ::2]), ("masks", colors)):
        (tmp_path / part).mkdir()
        for number in (1, 2):
            image = Image.fromarray(picture[:height, :width])
            image.save(tmp_path / part / f"{number}.jpg", quality=75)
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    data = images_and_masks(tmp_path)
    found = data.read_labels(tmp_path / "masks" / "1.jpg", (width, height))
    assert found.shape == (height, width)
    assert (found != labels[:height, :width]).mean() < 0.01


def test_full_size_cityscapes_as_it_is_unpacked(tmp_path):
    photo, labels = draw((64, 32))
    ids = np.array([7, 26, 23], dtype=np.uint8)[labels]  # road, car, sky
    for root in (tmp_path / "a", tmp_path / "b"):
        for split in ("train", "val"):
            name = f"aachen_000000_{split}"
            for kind, array in (("leftImg8bit", photo), ("gtFine", ids)):
                outer = f"{kind}_trainvaltest/{kind}" if root.name == "b" else kind
                city = root / outer / split / "aachen"
                city.mkdir(parents=True)
                suffix = "leftImg8bit" if kind == "leftImg8bit" else "gtFine_labelIds"
                Image.fromarray(array).save(city / f"{name}_{suffix}.png")
        data = cityscapes(root)
        ((_, found),) = [read_frame(data, *pair, (64, 32)) for pair in data.pairs["val"]]
        assert np.array_equal(data.scheme.encode(found), np.array([0, 13, 10])[labels])
        # A run of other official classes is found again for the same files.
        merged = data.with_scheme("categories7")
        assert merged.fingerprint("train", (64, 32)) == data.fingerprint("train", (64, 32))


TRUTH = draw((36, 24))[1]


def agreement(data, names=tuple(COLORS)):
    """The share of pixels in which the labels of the first frame are those that were drawn."""
    pairs = data.pairs["train"] + data.pairs["val"]
    assert [photo.stem.split("-")[-1] for photo, _ in pairs] == ["street1", "street2"]
    found = data.scheme.encode(read_frame(data, *pairs[0], (36, 24))[1])
    index = np.array([data.scheme.names.index(name) for name in names])
    return (found == index[TRUTH]).mean()


def test_labelme_polygons(tmp_path):
    """Files that labelme 6.3.1 wrote."""
    data = labelme(FIXTURES / "labelme")
    assert data.scheme.names == ("_background_", "car", "road", "sky")
    assert agreement(data) > 0.95  # polygons end between pixels
    shutil.copytree(FIXTURES / "labelme", tmp_path / "own")
    (tmp_path / "own" / "classes.txt").write_text("road\ncar\n")
    with pytest.raises(ValueError, match="has the label 'sky', which is no class"):
        agreement(labelme(tmp_path / "own"))
    (tmp_path / "own" / "classes.txt").unlink()
    file = next((tmp_path / "own").glob("*1.json"))
    content = json.loads(file.read_text())
    (tmp_path / "own" / "._1.json").write_bytes(b"\x00\x05\x16\x07 of macOS")
    for shape, message in (
        ({"points": [[1, 1]]}, "coordinate list must contain at least 2"),
        ({"points": [[1, 1]], "shape_type": "rectangle"}, "not enough values"),
        ({}, "there is no 'points'"),
    ):
        file.write_text(json.dumps(content | {"shapes": [{"label": "car"} | shape]}))
        with pytest.raises(ValueError, match=rf"{file.name} cannot be used: .*{message}"):
            agreement(labelme(tmp_path / "own"))


def test_labelme_files_in_another_folder_than_the_photos(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "photos").mkdir()
    for path in (FIXTURES / "labelme").iterdir():
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            content["imagePath"] = f"..\\photos\\{content['imagePath']}"
            (tmp_path / "annotations" / path.name).write_text(json.dumps(content))
        else:
            shutil.copy(path, tmp_path / "photos")
    assert agreement(labelme(tmp_path / "annotations")) > 0.95


def test_cvat_masks(tmp_path):
    """Files that datumaro 1.13.12, which CVAT exports with, wrote."""
    data = cvat(FIXTURES / "cvat")
    assert data.scheme.names == ("background", "car", "road", "sky")
    assert agreement(data) == 1
    shutil.copytree(FIXTURES / "cvat", tmp_path / "own")
    shutil.rmtree(tmp_path / "own" / "JPEGImages")
    with pytest.raises(FileNotFoundError, match="export again with .Save images."):
        cvat(tmp_path / "own")
    for number in (1, 2):  # CVAT keeps folders, and frames of two videos have the same names
        for part in ("JPEGImages", "SegmentationClass"):
            (file,) = (FIXTURES / "cvat" / part).glob(f"*street{number}.*")
            inner = tmp_path / "own" / part / f"video{number}"
            inner.mkdir(parents=True)
            shutil.copy(file, inner / f"frame1{file.suffix}")
    for file in (tmp_path / "own" / "SegmentationClass").glob("*.png"):
        file.unlink()
    (pair,) = cvat(tmp_path / "own").pairs["val"]
    assert [path.parent.name for path in pair] == ["video2", "video2"]
    (tmp_path / "own" / "labelmap.txt").write_text("road:128,64::\n")
    with pytest.raises(ValueError, match=r"labelmap\.txt cannot be used: the colour of 'road' is"):
        cvat(tmp_path / "own")


def test_label_studio_brushes(tmp_path):
    """Files that label-studio-converter 0.0.59 wrote."""
    data = label_studio(FIXTURES / "label_studio")
    assert data.scheme.names == ("background", "car", "road", "sky")
    assert agreement(data) == 1
    shutil.copytree(FIXTURES / "label_studio", tmp_path / "own")
    classes = tmp_path / "own" / "classes.json"
    classes.write_text('["background", "road", "sky", "car"]')
    assert label_studio(tmp_path / "own").scheme.names == ("background", "road", "sky", "car")
    classes.write_text('["background",')
    with pytest.raises(ValueError, match="classes.json cannot be used: Expecting"):
        label_studio(tmp_path / "own")
    classes.unlink()
    for number in (1, 2):  # the names that they had: Label Studio leaves brackets out
        photo = next((tmp_path / "own" / "images").glob(f"*street{number}.*"))
        photo.rename(photo.with_name(f"(street{number}){photo.suffix}"))
    assert len(label_studio(tmp_path / "own").pairs["train"]) == 1
    (tmp_path / "own" / "project.json").unlink()
    with pytest.raises(FileNotFoundError, match="the photo of task 1 is not known.*JSON export"):
        label_studio(tmp_path / "own")


def test_roboflow_masks(tmp_path):
    """Folders as the web page of Roboflow describes them."""
    for split, name in (("train", "street1"), ("valid", "street2")):
        (tmp_path / split).mkdir()
        photo, labels = draw((36, 24))
        stem = f"x-{name}"
        Image.fromarray(photo).save(tmp_path / split / f"{stem}.jpg")
        Image.fromarray(labels + 1).save(tmp_path / split / f"{stem}_mask.png")
        rows = ["Pixel Value, Class", "0, background", "1, road", "2, car", "3, sky"]
        (tmp_path / split / "_classes.csv").write_text("\n".join(rows))
    data = roboflow(tmp_path)
    assert data.scheme.names == ("background", "road", "car", "sky")
    assert agreement(data) == 1
    table = tmp_path / "train" / "_classes.csv"
    table.write_text(table.read_text().replace("1, road", "one, road"))
    with pytest.raises(ValueError, match=r"_classes\.csv cannot be used: invalid literal"):
        roboflow(tmp_path)
    table.write_text(table.read_text().replace("one, road", "1, road"))
    (tmp_path / "train" / "x-street1_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match="has no mask x-street1_mask.png"):
        roboflow(tmp_path)


def test_what_lies_in_one_more_folder_is_found(folder, tmp_path):
    """As in the zip of a folder."""
    outer = tmp_path / "unpacked" / "mine"
    outer.mkdir(parents=True)
    for name in ("images", "masks", "classes.txt"):
        shutil.move(folder / name, outer / name)
    (tmp_path / "unpacked" / "README.txt").touch()
    assert find_own_data(tmp_path / "unpacked").folder == outer
    assert find_own_data(FIXTURES) is None


def test_an_archive_of_ones_own_is_told_of_once(folder, tmp_path_factory, capsys):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    archive = shutil.make_archive(str(elsewhere / "mine"), "zip", folder, ".")
    open_source(archive, elsewhere / "data")
    printed = capsys.readouterr().out
    assert printed.count("No split in") == 1
    assert ".unfinished" not in printed


def test_photos_of_ones_own_are_learned_as_they_are_predicted(folder):
    """More than 8 bits, transparency, odd EXIF entries."""
    photo, labels = draw((50, 50))
    deep = photo[..., 0].astype(np.uint16) * 16  # 12 of 16 bits, from 0 to 4095
    Image.fromarray(deep).save(folder / "images" / "frame6.png")
    clear = np.dstack([photo, np.zeros_like(labels)])
    Image.fromarray(clear, "RGBA").save(folder / "images" / "frame7.png")
    for name in ("frame6", "frame7"):
        (folder / "images" / f"{name}.jpg").unlink()
        Image.fromarray(labels).save(folder / "masks" / f"{name}.png")
    for pair in images_and_masks(folder).pairs["train"][:2]:
        learned, _ = read_frame(images_and_masks(folder), *pair, (50, 50))
        assert np.array_equal(learned, read_photo(pair[0]))
    assert (learned == 255).all()


def test_changed_colours_are_other_data(folder):
    """Arrays that were prepared with wrong colours must not be used again."""
    write_colors(folder)
    before = images_and_masks(folder).fingerprint("train", (48, 32))
    text = (folder / "classes.txt").read_text()
    (folder / "classes.txt").write_text(text.replace("0 0 142", "0 0 143"))
    assert images_and_masks(folder).fingerprint("train", (48, 32)) != before
