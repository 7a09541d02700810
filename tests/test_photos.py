import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL import __version__ as pillow_version

from unet_utils import get_scheme, pictures, setup
from unet_utils.__main__ import main
from unet_utils.classes import LABELS
from unet_utils.evaluation import SMALL_MODEL
from unet_utils.use.photos import (
    choose_photo,
    class_shares,
    find_photos,
    official_ids,
    predict_photos,
    printable,
    read_photo,
    save_pictures,
    segment,
)

ROOT = Path(__file__).parent.parent
SCHEME = get_scheme("cityscapes19")
ORIENTATION = 0x0112
ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 2, 3, 4, 5, 7  # data types of EXIF entries


@pytest.fixture
def picture():
    """Red above, green below left, blue below right: no two ways of turning or mirroring it look
    the same."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:20] = 250, 0, 0
    pixels[20:, :30] = 0, 250, 0
    pixels[20:, 30:] = 0, 0, 250
    return Image.fromarray(pixels)


def exif(*entries, order="<", extra=b"") -> bytes:
    """An EXIF block with these entries: tag, type, count and value; bytes are the four of the value
    field."""
    block = (b"II" if order == "<" else b"MM") + struct.pack(order + "HLH", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        block += struct.pack(order + "HHL", tag, kind, count)
        if isinstance(value, bytes):
            block += value
        else:
            block += (
                struct.pack(order + "HH", value, 0)
                if kind == SHORT
                else struct.pack(order + "L", value)
            )
    return b"Exif\0\0" + block + bytes(4) + extra


TURNS = [
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_photo_is_turned_as_its_camera_says(picture, tmp_path, kind, order):
    for orientation, turn in enumerate(TURNS, 1):
        path = tmp_path / f"{orientation}.{kind}"
        options = {"quality": 95} if kind == "jpg" else {"lossless": True} if kind == "webp" else {}
        picture.save(path, exif=exif((ORIENTATION, SHORT, 1, orientation), order=order), **options)
        expected = picture if turn is None else picture.transpose(turn)
        assert np.abs(read_photo(path).astype(int) - np.asarray(expected)).mean() < 12


TURNED = (ORIENTATION, SHORT, 1, 6)
ODD = {
    "rational with denominator 0": exif(
        TURNED, (0x011A, RATIONAL, 1, 38), extra=struct.pack("<LL", 72, 0)
    ),
    "value outside the file": exif((0x010F, ASCII, 40, 99999), TURNED),
    "wrong type": exif((0x0100, UNDEFINED, 4, b"\xff\xff\xff\xff"), TURNED),
    "unknown type": exif((0x0101, 99, 1, 5), TURNED),
    "GPS pointer that is none": exif(TURNED, (0x8825, ASCII, 4, b"here")),
    "EXIF pointer to itself": exif(TURNED, (0x8769, LONG, 1, 8)),
    "endless count": exif(TURNED, (0x9999, SHORT, 2**32 - 1, 0)),
    "Orientation with two values": exif((ORIENTATION, SHORT, 2, 6)),
}
UNREADABLE = {
    "Orientation as text": exif((ORIENTATION, ASCII, 2, b"6\0\0\0")),
    "Orientation out of range": exif((ORIENTATION, SHORT, 1, 77)),
    "cut short": exif(TURNED)[:17],
    "no TIFF header": b"Exif\0\0garbage",
    "start outside the block": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "empty": b"Exif\0\0",
}


@pytest.mark.parametrize("name", [*ODD, *UNREADABLE])
def test_odd_exif_entries_stop_nothing(picture, tmp_path, name):
    if name == "value outside the file" and int(pillow_version.split(".")[0]) < 12:
        pytest.skip("Pillow 11 does not read the entries that follow such a one")
    path = tmp_path / "photo.jpg"
    picture.save(path, quality=95, exif=ODD.get(name) or UNREADABLE[name])
    before = path.read_bytes()
    expected = picture.transpose(Image.Transpose.ROTATE_270) if name in ODD else picture
    pixels = read_photo(path)
    assert pixels.shape[:2] == expected.size[::-1]
    assert np.abs(pixels.astype(int) - np.asarray(expected)).mean() < 12
    assert path.read_bytes() == before


def test_random_exif_blocks_stop_nothing(picture, tmp_path):
    rng = np.random.default_rng(0)
    whole = exif(
        *(entry for entry in ((0x010F, ASCII, 40, 38), TURNED, (0x8825, LONG, 1, 60))),
        extra=bytes(80),
    )
    for _ in range(200):
        block = np.frombuffer(whole, np.uint8).copy()
        block[rng.integers(6, len(block), 8)] = rng.integers(0, 256, 8)
        picture.save(tmp_path / "photo.jpg", exif=block.tobytes())
        assert sorted(read_photo(tmp_path / "photo.jpg").shape) == [3, 40, 60]


def test_every_kind_of_picture_becomes_rgb(picture, tmp_path):
    grey = np.asarray(picture.convert("L"))
    picture.convert("L").save(tmp_path / "grey.png")
    assert (read_photo(tmp_path / "grey.png") == grey[..., None]).all()
    picture.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read_photo(tmp_path / "bits.png"))) == {0, 255}
    picture.quantize(4).save(tmp_path / "palette.png")
    assert (read_photo(tmp_path / "palette.png") == np.asarray(picture)).all()
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert read_photo(tmp_path / "cmyk.jpg").shape == (40, 60, 3)
    opacity = np.full((40, 60), 255, dtype=np.uint8)
    opacity[:10] = 0
    rgba = picture.copy()
    rgba.putalpha(Image.fromarray(opacity))
    rgba.save(tmp_path / "rgba.png")
    pixels = read_photo(tmp_path / "rgba.png")
    assert (pixels[:10] == 255).all()
    assert (pixels[10:] == np.asarray(picture)[10:]).all()


@pytest.mark.parametrize(
    ("dtype", "factor", "offset"),
    [
        (np.uint16, 257, 0),
        (np.int32, 257, 0),  # 16 bits in 32
        (np.int32, 2**23, 0),
        (np.float32, 1 / 255, 0),
        (np.float32, 1, 0),
    ],
)
def test_deep_pictures_keep_their_brightness(picture, tmp_path, dtype, factor, offset):
    grey = np.asarray(picture.convert("L"))
    path = tmp_path / ("deep.png" if dtype == np.uint16 else "deep.tif")
    Image.fromarray((grey * np.float64(factor) + offset).astype(dtype)).save(path)
    assert np.abs(read_photo(path).astype(int) - grey[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "factor", "offset"),
    [
        (np.uint16, 16, 0),  # a camera of 12 bits
        (np.int32, 1000, 10**8),
        (np.int32, 1, -300),
        (np.float32, 0.5, -40),  # temperatures
        (np.float32, 1e6, 0),
        (np.float32, 1e-6, 0),
    ],
)
def test_deep_pictures_of_another_range_are_stretched(picture, tmp_path, dtype, factor, offset):
    grey = np.asarray(picture.convert("L")).astype(float)
    values = (grey * factor + offset).astype(dtype)
    if dtype == np.float32:
        values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "deep.tif")
    stretched = (grey - grey.min()) / (grey.max() - grey.min()) * 255
    assert (
        np.abs(read_photo(tmp_path / "deep.tif").astype(int) - stretched[..., None])[1:].max() <= 1
    )


def test_a_deep_picture_of_one_value_is_no_error(tmp_path):
    for value in (0, np.nan):
        Image.fromarray(np.full((4, 4), value, dtype=np.float32)).save(tmp_path / "flat.tif")
        assert (read_photo(tmp_path / "flat.tif") == 0).all()


def write_png(path, values):
    """Write `uint16 [H, W, 3 or 4]`, which Pillow cannot write."""

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def write_tiff(path, values, order):
    """Write `uint16 [H, W, 3]` without compression."""
    height, width, _ = values.shape
    pixels = values.astype(order + "u2").tobytes()
    bits = 8 + len(pixels)
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height)]
    entries += [(279, 4, 1, len(pixels))]
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, bits + 6)
    data = start + pixels + struct.pack(order + "3H", 16, 16, 16)
    data += struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        data += struct.pack(order + "HHL", tag, kind, count)
        small = kind == SHORT and count == 1
        data += struct.pack(order + "HH", value, 0) if small else struct.pack(order + "L", value)
    path.write_bytes(data + bytes(4))


@pytest.mark.parametrize("kind", ["png", "rgba.png", "<.tif", ">.tif"])
@pytest.mark.parametrize(("factor", "offset"), [(257, 0), (16, 15), (3, 100)])
def test_colours_of_16_bits_are_scaled_like_grey(tmp_path, monkeypatch, kind, factor, offset):
    colours = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint16)
    colours[0, 0] = 0
    colours[0, 2] = 255
    path = tmp_path / kind.strip("<>")
    values = (colours * factor + offset).astype(np.uint16)
    if kind.endswith("tif"):
        write_tiff(path, values, kind[0])
    else:
        opaque = np.full((40, 60, 1), 65535, np.uint16)
        write_png(path, np.concatenate([values, opaque], axis=2) if "rgba" in kind else values)
    assert np.abs(read_photo(path).astype(int) - colours).max() <= 1
    monkeypatch.setattr(pictures, "MOST_PIXELS", 600)
    assert np.abs(read_photo(path).astype(int) - colours[::2, ::2]).max() <= 1


def test_a_colour_profile_becomes_srgb(picture, tmp_path):
    # A profile that Pillow makes: its colours are those of the CIE, and white is 5000 K.
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The same profile with red and blue exchanged.
    red = srgb.index(b"rXYZ")
    blue = srgb.index(b"bXYZ")
    exchanged = bytearray(srgb)
    exchanged[red : red + 4] = b"bXYZ"
    exchanged[blue : blue + 4] = b"rXYZ"
    pixels = np.asarray(picture).astype(int)
    for profile, expected in (
        (srgb, pixels),
        (bytes(exchanged), pixels[..., ::-1]),
        (lab, pixels),  # for another kind of picture
        (b"damaged", pixels),
    ):
        picture.save(tmp_path / "photo.png", icc_profile=profile)
        assert np.abs(read_photo(tmp_path / "photo.png") - expected).max() <= 3


def test_a_file_that_is_no_photo_is_named(picture, tmp_path):
    (tmp_path / "notes.jpg").write_text("no photo")
    picture.save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name in ("notes.jpg", "half.jpg", "empty.png", "folder.png"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a photo"):
            read_photo(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.jpg: check the path"):
        read_photo(tmp_path / "gone.jpg")


def test_an_address_is_not_a_file_and_a_tilde_is_the_home_folder(picture, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    picture.save(tmp_path / "photo.png")
    assert (read_photo("~/photo.png") == np.asarray(picture)).all()
    assert find_photos(["~"]) == [tmp_path / "photo.png"]
    for read in (read_photo, lambda path: find_photos([path])):
        with pytest.raises(ValueError, match=r"https://x\.org/a\.jpg is an address"):
            read("https://x.org/a.jpg")


def test_large_photos_are_reduced_and_said_to_be(picture, tmp_path, monkeypatch, capsys):
    large = picture.resize((1200, 800), Image.Resampling.NEAREST)
    deep = Image.fromarray(np.asarray(large.convert("L")).astype(np.uint16) * 257)
    kinds = {
        "large.jpg": large,
        "large.png": large,
        "palette.png": large.quantize(4),
        "deep.png": deep,
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 40_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # Pillow refuses twice as many
    for name in kinds:
        pixels = read_photo(tmp_path / name)
        assert f"{name} is very large: reduced to" in capsys.readouterr().out
        height, width = pixels.shape[:2]
        assert 10_000 < height * width <= 40_000
        assert width / height == pytest.approx(1.5, rel=0.02)
        expected = np.asarray(
            Image.fromarray(np.asarray(picture)).resize((width, height)).convert("RGB")
        )
        if name == "deep.png":
            expected = np.asarray(Image.fromarray(expected).convert("L"))[..., None]
        assert np.abs(pixels.astype(int) - expected).mean() < 12
    assert Image.MAX_IMAGE_PIXELS == 100_000
    monkeypatch.setattr(pictures, "MOST_OTHER_PIXELS", 500_000)
    with pytest.raises(
        ValueError, match=r"large\.png .*it has 1 megapixels, the limit for PNG is 0"
    ):
        read_photo(tmp_path / "large.png")
    assert Image.MAX_IMAGE_PIXELS == 100_000


def test_a_photo_of_200_megapixels_is_read(tmp_path):
    Image.new("RGB", (20000, 10000), (90, 120, 60)).save(tmp_path / "huge.jpg")
    pixels = read_photo(tmp_path / "huge.jpg")
    assert pixels.shape == (5000, 10000, 3)
    assert np.abs(pixels[::500, ::500].astype(int) - (90, 120, 60)).max() < 3


@pytest.mark.parametrize("size", [(60000, 2), (2, 60000)])
def test_a_photo_like_a_line_is_cheap(trained, tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "line.png")
    classes = segment(trained, read_photo(tmp_path / "line.png"))
    assert max(classes.shape) == 15000
    assert min(classes.shape) == 1


def test_folders_are_searched(picture, tmp_path, capsys):
    for name in ("b.JPG", "a10.png", "a9.png", "c.jpeg"):
        picture.save(tmp_path / name)
    for name in ("notes.txt", "x.HEIC", "y.gif", "._b.JPG", ".hidden.png"):
        (tmp_path / name).write_text("")
    (tmp_path / "empty").mkdir()
    found = find_photos([tmp_path / "c.jpeg", tmp_path])
    assert [path.name for path in found] == ["c.jpeg", "a9.png", "a10.png", "b.JPG", "c.jpeg"]
    (line,) = capsys.readouterr().out.splitlines()
    assert "empty, notes.txt, x.HEIC, y.gif (not .jpg" in line
    assert "hidden" not in line
    for missing in ("empty", "gone.jpg", "*.bmp"):
        with pytest.raises(FileNotFoundError, match=re.escape(missing)):
            find_photos([tmp_path / missing])


def test_patterns_are_expanded_where_no_shell_does_it(picture, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in ("a10.png", "a9.png", "b[1].png", "b1.png"):
        picture.save(tmp_path / name)
    assert [path.name for path in find_photos(["~/a*.png"])] == ["a9.png", "a10.png"]
    (tmp_path / "c" / "d").mkdir(parents=True)
    picture.save(tmp_path / "c" / "d" / "e.png")
    assert [path.name for path in find_photos(["~/c/**/*.png"])] == ["e.png"]
    assert find_photos([tmp_path / "b[1].png"]) == [tmp_path / "b[1].png"]  # no pattern: a name


def test_bad_files_do_not_stop_the_others(trained, picture, tmp_path, capsys):
    album = tmp_path / "album"
    album.mkdir()
    (album / "a.jpg").write_text("no photo")
    for name in ("b.jpg", "d.png", "._d.png"):
        picture.save(album / name)
    (album / "c.jpg").write_bytes((album / "b.jpg").read_bytes()[:500])
    paths = [tmp_path / "gone.jpg", "https://x.org/a.jpg", album]
    problems = predict_photos(trained, paths, tmp_path / "out", label_ids=True)
    assert len(problems) == 4
    for problem, name in zip(
        problems, ("gone.jpg", "https://x.org/a.jpg", "a.jpg", "c.jpg"), strict=True
    ):
        assert name in problem
    out = capsys.readouterr().out
    assert "b-overlay.png: {" in out
    assert "d-overlay.png: {" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("b-classes.png", "b-overlay.png", "d-classes.png", "d-overlay.png", "labelIds"),
    ]


def test_names_that_the_terminal_cannot_print_get_escapes(trained, picture, tmp_path, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert printable("Straße") == "Stra\\xdfe"
    assert printable("a\udcff") == "a\\udcff"  # a file name that is not UTF-8
    picture.save(tmp_path / "Straße.png")
    (tmp_path / "weiß.txt").touch()
    assert predict_photos(trained, [tmp_path], tmp_path / "out") == []
    out.flush()
    assert b"Stra\\xdfe-overlay.png" in out.buffer.getvalue()
    assert (tmp_path / "out" / "Straße-overlay.png").exists()


@pytest.mark.parametrize("shape", [(30, 300), (200, 90), (64, 128), (1, 1)])
def test_any_size_and_aspect_is_segmented_at_its_own_size(trained, shape):
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    classes = segment(trained, photo)
    assert classes.shape == shape
    assert classes.dtype == np.uint8
    shares = class_shares(classes, SCHEME)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert shares[SCHEME.names[classes[0, 0]]] >= 1 / classes.size


def test_the_pictures_have_the_photos_size_and_overwrite_nothing(trained, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (600, 50, 3), dtype=np.uint8)
    classes = segment(trained, photo)
    paths = save_pictures(photo, classes, SCHEME, tmp_path / "out", "street")
    assert [path.name for path in paths] == ["street-classes.png", "street-overlay.png"]
    assert (read_photo(paths[0]) == SCHEME.colorize(classes)).all()
    assert (read_photo(paths[1]) == SCHEME.overlay(photo, classes)).all()
    before = paths[1].read_bytes()
    again = save_pictures(255 - photo, classes, SCHEME, tmp_path / "out", "street")
    assert again[1].name == "street-2-overlay.png"
    assert paths[1].read_bytes() == before


@pytest.mark.parametrize("name", ["a" * 251, "\u8857" * 83])
def test_a_photo_with_the_longest_name_has_results(trained, picture, tmp_path, name):
    picture.save(tmp_path / f"{name}.png")
    for _ in range(2):
        assert predict_photos(trained, [tmp_path / f"{name}.png"], tmp_path / "out") == []
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(names) == 4
    assert all(result.startswith(name[:78]) for result in names)


def test_label_ids_are_found_by_the_official_script(trained, picture, tmp_path, monkeypatch):
    script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    folder = tmp_path / "leftImg8bit"
    folder.mkdir()
    names = ("ulm_000001_000019", "ulm_000010_000019")
    for name in names:
        picture.save(folder / f"{name}_leftImg8bit.png")
    for ids_folder in ("labelIds", "labelIds-2"):  # a second call must not add to the first one
        predict_photos(trained, [folder], tmp_path / "out", label_ids=True)
        monkeypatch.setenv("CITYSCAPES_RESULTS", str(tmp_path / "out" / ids_folder))
        script.args.predictionPath = script.args.predictionWalk = None
        for name in names:
            found = script.getPrediction(script.args, f"ulm/{name}_gtFine_labelIds.png")
            assert Path(found).parent == tmp_path / "out" / ids_folder
            with Image.open(found) as image:
                assert image.mode == "L"
                ids = np.asarray(image)
            assert (SCHEME.encode(ids) == segment(trained, np.array(picture))).all()


def test_label_ids_are_the_official_ones():
    official = {label.train_id: label.id for label in LABELS if label.train_id != 255}
    assert official_ids(SCHEME).tolist() == [official[index] for index in range(19)]


def test_label_ids_need_a_scheme_that_has_them(trained, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    for name in ("categories7", "clusters"):
        other = replace(SCHEME, name="clusters") if name == "clusters" else get_scheme(name)
        with pytest.raises(ValueError, match=f"'{name}' have no official label ids"):
            predict_photos(
                replace(trained, scheme=other),
                [tmp_path / "a.png"],
                tmp_path / "out",
                label_ids=True,
            )


def test_predicting_needs_no_right_to_write_beside_the_model(picture, tmp_path, monkeypatch):
    (tmp_path / "file").touch()  # below a file nobody can write, not even root
    for variable in ("UNET_UTILS_DATA", "UNET_UTILS_RESULTS"):
        monkeypatch.setenv(variable, str(tmp_path / "file" / "folder"))
    for name in ("a1.png", "a2.png"):
        picture.save(tmp_path / name)
    pattern = str(tmp_path / "a*.png")
    main(["predict", pattern, "--checkpoint", str(SMALL_MODEL), "--out", str(tmp_path / "mine")])
    assert len(list((tmp_path / "mine").iterdir())) == 4


def test_demo_is_the_drawn_street_unless_there_is_a_file_of_that_name(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main(["predict", "demo", "--checkpoint", str(SMALL_MODEL)])
    shares = json.loads(capsys.readouterr().out.partition("overlay.png: ")[2])
    assert shares["road"] > 0.2
    assert shares["car"] > 0.05
    street = tmp_path / "predictions" / "drawn_street.png"
    assert read_photo(street).shape == (512, 1024, 3)
    assert street.with_name("drawn_street-overlay.png").exists()
    street.rename(tmp_path / "demo")
    main(["predict", "demo", "--checkpoint", str(SMALL_MODEL), "--out", "mine"])
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "demo-classes.png",
        "demo-overlay.png",
    ]


@pytest.fixture
def env(tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path / "runs"))
    return replace(setup(), platform="local")


def test_without_a_photo_it_is_a_drawn_street_and_nobody_is_asked(
    env, tmp_path, monkeypatch, capsys
):
    assert choose_photo(str(tmp_path / "mine.jpg"), env) == tmp_path / "mine.jpg"
    monkeypatch.syspath_prepend(ROOT / "tests" / "fake_colab")
    from google.colab import files

    monkeypatch.setattr(files, "upload", lambda: pytest.fail("asked for an upload"))
    assert read_photo(choose_photo("", replace(env, platform="colab"))).shape == (512, 1024, 3)
    assert "a street drawn by this package" in capsys.readouterr().out


def test_an_upload_that_fails_is_a_drawn_street(env, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "google.colab", None)  # not in Colab
        assert choose_photo("upload", env) == env.data / "drawn_street.png"
    assert "The upload failed" in capsys.readouterr().out
    monkeypatch.syspath_prepend(ROOT / "tests" / "fake_colab")
    from google.colab import files

    class MessageError(Exception):
        pass

    def refuse():
        raise MessageError("TypeError: google.colab._files is undefined")

    monkeypatch.setattr(files, "upload", lambda: {"holiday (1).jpg": b"..."})
    assert choose_photo("upload", env) == Path("holiday (1).jpg").absolute()
    for upload, text in (
        (lambda: {}, "Nothing was uploaded"),
        (refuse, "google.colab._files is undefined"),
    ):
        monkeypatch.setattr(files, "upload", upload)
        assert choose_photo(" Upload ", env) == env.data / "drawn_street.png"
        assert text in capsys.readouterr().out


LARGE = """
import resource, sys
import numpy as np, torch
from pathlib import Path
from unet_utils import UNet, get_scheme
from unet_utils.evaluation import Trained
from unet_utils.use.photos import save_pictures, segment

def peak():  # MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
trained = Trained(UNet(3, 19, 4).eval(), get_scheme("cityscapes19"), (64, 64), {}, [], {})
segment(trained, np.zeros((64, 64, 3), dtype=np.uint8))
photo = np.zeros((3000, 4000, 3), dtype=np.uint8)
photo[:] = (np.arange(4000) % 256)[:, None]
before = peak()
classes = segment(trained, photo)
save_pictures(photo, classes, trained.scheme, Path(sys.argv[1]), "large")
print(classes.shape, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in the units of Linux")
def test_a_large_photo_needs_little_memory(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LARGE, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("(3000, 4000) ")
    assert (
        float(done.stdout.split()[-1]) < 400
    )  # the probabilities alone would be 3000 * 4000 * 19 * 4 bytes = 870 MB
