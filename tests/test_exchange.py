"""Labels taken along as PNG, and predictions of other frameworks scored by the same ruler."""

import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from unet_utils import IGNORE, LABELS, get_scheme
from unet_utils.__main__ import main
from unet_utils.sources import CITYSCAPES, open_source
from unet_utils.use.exchange import export_labels, licence_sentence, score_predictions

SCHEME = get_scheme("cityscapes19")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A data and a results folder for all commands of this file."""
    folder = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNET_UTILS_DATA", str(folder / "data"))
        patch.setenv("UNET_UTILS_RESULTS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="module")
def data(demo):
    """The options of a command that name the drawn set."""
    return ["--data", str(demo), "--labels", "nearest"]


@pytest.fixture(scope="module")
def source(demo, machine):
    return open_source(demo, machine / "data")


@pytest.fixture(scope="module")
def frames(source, machine):
    """The validation split."""
    return source.frames("val", machine / "data" / "prepared", labels="nearest")


@pytest.fixture(scope="module")
def exported(machine, data):
    main(["prepare", *data, "--export", str(machine / "labels")])
    return machine / "labels"


@pytest.fixture
def predictions(frames, tmp_path):
    """Perfect predictions, as class indices; void is 0, as of a network that always answers."""
    write(tmp_path / "mine", frames, lambda classes: np.where(classes == IGNORE, 0, classes))
    return tmp_path / "mine"


def write(folder, frames, change, name="{}.png"):
    """Write a picture for each frame, made from its true classes."""
    folder.mkdir(parents=True)
    for number, label_ids in zip(frames.numbers, frames.label_ids, strict=True):
        classes = frames.scheme.encode(label_ids.numpy())
        Image.fromarray(change(classes)).save(folder / name.format(number))


def score(folder, frames, ids="class"):
    matrices, _ = score_predictions(folder, frames, ids)
    return sum(matrix.matrix for matrix in matrices)


def is_perfect(counts):
    return counts.diagonal().sum() == counts.sum() > 0


def test_the_exported_truth_is_what_is_learned(exported, frames):
    assert len(list((exported / "train").iterdir())) == 24
    for number, label_ids in zip(frames.numbers, frames.label_ids, strict=True):
        with Image.open(exported / "val" / f"{number}.png") as image:
            assert image.mode == "L"
            assert (np.asarray(image) == label_ids.numpy()).all()
    facts = json.loads((exported / "classes.json").read_text())
    assert facts["hashes"]["val"] == frames.label_hash()
    assert facts["made_by"]["version"]
    assert {row["value"]: row["class"] for row in facts["classes"]} == {
        label.id: label.train_id for label in LABELS
    }


def test_sha256sum_checks_the_export(exported):
    lines = (exported / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 24 + 6
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    if shutil.which("sha256sum"):
        command = ["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"]
        subprocess.run(command, cwd=exported, check=True)


def test_an_export_never_touches_what_is_there(machine, data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"mine is there already: name a new folder"):
        main(["prepare", *data, "--export", str(tmp_path / "mine")])
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_an_export_that_fails_leaves_nothing(source, frames, tmp_path, monkeypatch):
    (tmp_path / "labels").mkdir()  # an empty one may be there
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_labels(tmp_path / "labels", source, {"val": frames})
    assert [path.name for path in tmp_path.rglob("*")] == ["labels"]
    export_labels(tmp_path / "labels", source, {"val": frames})
    assert (tmp_path / "labels" / "val" / "6.png").is_file()


def test_two_exports_into_one_folder_do_not_mix(source, frames, tmp_path, monkeypatch):
    dumps = json.dumps

    def other_is_quicker(*arguments, **options):
        monkeypatch.setattr(json, "dumps", dumps)
        export_labels(tmp_path / "labels", source, {"val": frames.part(slice(2))})
        return dumps(*arguments, **options)

    monkeypatch.setattr(json, "dumps", other_is_quicker)
    with pytest.raises(FileExistsError, match="meanwhile: name a new folder"):
        export_labels(tmp_path / "labels", source, {"val": frames})
    names = sorted(path.name for path in (tmp_path / "labels" / "val").iterdir())
    assert names == ["1.png", "2.png"]


def test_the_licence_of_the_labels_is_said_where_there_is_one(machine, tiny_pairs, demo, capsys):
    for data, sentence in ((tiny_pairs, licence_sentence(CITYSCAPES)), (demo, None)):
        folder = machine / f"licence-{sentence is None}"
        main(["prepare", "--data", str(data), "--labels", "nearest", "--export", str(folder)])
        assert ("may not be passed on" in capsys.readouterr().out) == bool(sentence)
        assert json.loads((folder / "classes.json").read_text()).get("licence") == sentence


def test_the_exported_truth_as_predictions_scores_1(machine, data, exported, predictions, capsys):
    for folder, ids in ((exported, "official"), (predictions, "class")):
        capsys.readouterr()
        main(["evaluate", *data, "--predictions", str(folder), "--ids", ids])
        out = capsys.readouterr().out
        assert "| this model | 1.000 | 1.000 | 1.000 |" in out
        assert "no answer" not in out
        report = machine / out.split("saved as ")[1].split(",")[0]
        scores = json.loads(report.with_suffix(".json").read_text())
        assert scores["mean_iou"] == 1
        assert scores["frames"] == 6
        assert (scores["made_by"]["predictions"], scores["made_by"]["ids"]) == (folder.name, ids)
        assert len(report.with_name("evaluation_frames.csv").read_text().splitlines()) == 7


def test_compare_does_not_take_scores_for_a_run(machine, data, predictions, capsys):
    main(["evaluate", *data, "--predictions", str(predictions), "--ids", "class"])
    with pytest.raises(SystemExit, match="no run in"):
        main(["compare"])
    assert "Left out" not in capsys.readouterr().out


@pytest.mark.parametrize("scheme", ["categories7", "cityscapes30", "clusters"])
def test_other_schemes(machine, data, tmp_path, scheme, capsys):
    data = [*data, "--scheme", scheme, "--num-clusters", "5"]
    main(["prepare", *data, "--export", str(tmp_path / "labels")])
    command = ["evaluate", *data, "--predictions", str(tmp_path / "labels")]
    if scheme == "clusters":
        with pytest.raises(SystemExit, match="clusters have no official ids: use --ids class"):
            main([*command, "--ids", "official"])
    main([*command, "--ids", "class" if scheme == "clusters" else "official"])
    assert "| this model | 1.000 | 1.000 | 1.000 |" in capsys.readouterr().out


def test_own_data_keeps_the_values_of_its_masks(machine, tmp_path, capsys):
    own = tmp_path / "own"
    for part in ("images", "masks"):
        (own / part).mkdir(parents=True)
    labels = np.repeat(np.array([0, 4, 7, 9], dtype=np.uint8), 16).reshape(8, 8)
    for name in ("a", "b", "c"):
        Image.fromarray(labels * 20).save(own / "images" / f"{name}.png")
        Image.fromarray(labels).save(own / "masks" / f"{name}.png")
    classes = [
        {"name": name, "value": value} for name, value in zip("wxyz", (0, 4, 7, 9), strict=True)
    ]
    facts = {"classes": classes, "ignore": ["y"], "merge": {"wx": ["w", "x"]}}
    (own / "classes.json").write_text(json.dumps(facts))
    data = ["--data", str(own), "--size", "8"]
    main(["prepare", *data, "--export", str(tmp_path / "labels")])
    with Image.open(tmp_path / "labels" / "train" / "2.png") as image:
        assert (np.asarray(image) == labels).all()
    facts = json.loads((tmp_path / "labels" / "classes.json").read_text())
    assert facts["photos"]["train"] == {"1": "a.png", "2": "b.png"}
    names = {row["value"]: (row["name"], row["class"]) for row in facts["classes"]}
    assert names == {0: ("wx", 0), 4: ("wx", 0), 9: ("z", 1)}
    main(["evaluate", *data, "--predictions", str(tmp_path / "labels"), "--ids", "official"])
    assert "| this model | 1.000 | 1.000 | 1.000 |" in capsys.readouterr().out


def test_predictions_have_the_names_of_ones_own_photos(machine, tmp_path, capsys):
    """By their place in the split, 2.png would be taken for the prediction of 5.jpg."""
    for names in (("1", "2", "5", "6"), ("a.v1", "b", "c.v2", "d")):
        own = tmp_path / names[0]
        for part in ("images", "masks", "mine"):
            (own / part).mkdir(parents=True)
        for shift, name in enumerate(names):
            labels = np.roll(np.repeat(np.array([0, 1], dtype=np.uint8), 32), shift).reshape(8, 8)
            Image.fromarray(labels * 20).save(own / "images" / f"{name}.jpg")
            for part in ("masks", "mine"):
                Image.fromarray(labels).save(own / part / f"{name}.png")
        (own / "classes.txt").write_text("road\ncar")
        (own / "val.txt").write_text(f"{names[1]}\n{names[2]}\n")
        data = ["--data", str(own), "--size", "8"]
        main(["evaluate", *data, "--predictions", str(own / "mine"), "--ids", "class"])
        assert "| this model | 1.000 | 1.000 | 1.000 |" in capsys.readouterr().out
        (own / "mine" / f"{names[2]}.png").unlink()
        with pytest.raises(SystemExit, match=rf"no prediction for 1 of 2 frames: {names[2]}\.png"):
            main(["evaluate", *data, "--predictions", str(own / "mine"), "--ids", "class"])


@pytest.mark.parametrize("size", [(512, 512), (128, 128), (200, 90), (2048, 1024), (1023, 7)])
def test_other_sizes_take_the_pixel_at_the_centre(frames, tmp_path, size):
    width, height = size
    random = np.random.default_rng(0).integers(0, 19, (height, width), dtype=np.uint8)
    write(tmp_path / "mine", frames, lambda _: random)
    rows = ((np.arange(256) + 0.5) * height / 256).astype(int)
    columns = ((np.arange(256) + 0.5) * width / 256).astype(int)
    write(tmp_path / "same size", frames, lambda _: random[rows][:, columns])
    assert (score(tmp_path / "mine", frames) == score(tmp_path / "same size", frames)).all()


def test_a_prediction_of_twice_the_size_loses_nothing(frames, tmp_path):
    write(tmp_path / "mine", frames, lambda classes: classes.repeat(2, 0).repeat(2, 1))
    assert is_perfect(score(tmp_path / "mine", frames))


@pytest.mark.parametrize("name", ["{:06}.png", "{}.PNG", "val/{}.png"])
def test_names(frames, predictions, name):
    for path in list(predictions.iterdir()):
        target = predictions / name.format(int(path.stem))
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    assert is_perfect(score(predictions, frames))


@pytest.mark.parametrize("mode", ["I;16", "P"])
def test_other_kinds_of_numbers(frames, predictions, mode):
    for path in predictions.iterdir():
        pixels = np.asarray(Image.open(path))
        image = Image.fromarray(pixels.astype(np.uint16) if mode == "I;16" else pixels)
        if mode == "P":
            image.putpalette(np.random.default_rng(0).bytes(768))
        image.save(path)
        with Image.open(path) as written:
            assert written.mode in (mode, "I")  # older Pillow reads 16 bits as I
    assert is_perfect(score(predictions, frames))


def test_no_answer_is_wrong_and_only_on_labelled_pixels(frames, tmp_path, capsys):
    write(tmp_path / "mine", frames, lambda classes: np.where(classes == 0, IGNORE, classes))
    counts = score(tmp_path / "mine", frames)
    road = (frames.scheme.encode(frames.label_ids.numpy()) == 0).sum()
    assert counts[0, 19] == counts[0].sum() == road > 0
    assert is_perfect(counts[1:, 1:])
    assert f"{road} labelled pixels (" in capsys.readouterr().out


def test_a_frame_without_prediction_is_named(frames, predictions):
    (predictions / "4.png").rename(predictions / "4.jpg")
    with pytest.raises(FileNotFoundError, match=r"no prediction for 1 of 6 frames: 4\.png"):
        score(predictions, frames)


def test_other_files_are_named_once(frames, predictions, capsys):
    shutil.copy(predictions / "1.png", predictions / "7.png")
    (predictions / "notes.txt").touch()
    assert is_perfect(score(predictions, frames))
    out = capsys.readouterr().out
    assert out.count("7.png") == out.count("notes.txt") == 1


def change(path, function):
    Image.fromarray(function(np.array(Image.open(path)))).save(path)


def one_pixel(value, kind=np.uint8):
    def function(pixels):
        pixels = pixels.astype(kind)
        pixels[5, 5] = value
        return pixels

    return function


@pytest.mark.parametrize(
    ("ids", "function", "message"),
    [
        ("class", SCHEME.colorize, r"3\.png holds colours \(RGB\).*before they are coloured"),
        ("class", one_pixel(26), r"3\.png holds 26: class indices .* 0 to 18.*--ids official\?"),
        ("class", one_pixel(300, np.uint16), r"3\.png holds 300: class indices"),
        ("official", one_pixel(40), r"3\.png holds 40: official ids are 0 to 33.*--ids class\?"),
    ],
)
def test_what_is_no_class_is_named(frames, predictions, ids, function, message):
    change(predictions / "3.png", function)
    with pytest.raises(ValueError, match=message):
        score(predictions, frames, ids)


def test_files_that_cannot_be_read_are_named(frames, predictions):
    content = (predictions / "5.png").read_bytes()
    for broken in (b"", content[: len(content) // 2], b"GIF89a"):
        (predictions / "5.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"5\.png cannot be read as a PNG"):
            score(predictions, frames)
    (predictions / "05.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"05\.png and .* are predictions for the same frame"):
        score(predictions, frames)


def test_class_indices_that_are_called_official_ids_are_noticed(frames, predictions, capsys):
    score(predictions, frames, "official")
    assert "use --ids class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--predictions", "mine"], "say with --ids what the numbers"),
        (["--predictions", "mine", "--ids", "class", "--flip"], "scored without a model"),
        (["--predictions", "mine", "--ids", "class"], "there is no folder .*mine"),
        (["--ids", "class"], "belong to --predictions"),
    ],
)
def test_options_that_do_not_fit(machine, data, options, message):
    with pytest.raises(SystemExit, match=message):
        main(["evaluate", *data, *options])
