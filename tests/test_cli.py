import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unet_utils.__main__ import _parser, main

ROOT = Path(__file__).parent.parent
COMMANDS = ("prepare", "audit", "train", "evaluate", "predict", "export", "compare", "check")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_UTILS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNET_UTILS_RESULTS", str(tmp_path / "runs"))
    return tmp_path


@pytest.mark.slow
def test_the_commands_in_a_row(demo, machine, capsys):
    data = ["--data", str(demo), "--labels", "nearest"]
    main(["prepare", *data])
    assert re.search(r"road +\d+\.\d+ %", capsys.readouterr().out)
    small = ["--epochs", "1", "--base-channels", "2", "--image-size", "32", "--batch-size", "4"]
    main(["train", *data, "--recipe", "demo", "--run-name", "tiny", *small])
    main(["evaluate", *data, "--run-name", "tiny", "--flip"])
    assert "| this model |" in capsys.readouterr().out
    assert len((machine / "runs" / "tiny" / "evaluation.csv").read_text().splitlines()) == 1 + 19
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 200, 3), dtype=np.uint8))
    photo.save(machine / "street.png")
    for _ in range(2):  # the second time must not overwrite the first
        main(
            [
                "predict",
                str(machine / "street.png"),
                "--run-name",
                "tiny",
                "--out",
                str(machine / "out"),
            ]
        )
    assert len(list((machine / "out").iterdir())) == 4
    with Image.open(machine / "out" / "street-overlay.png") as overlay:
        assert overlay.size == (200, 90)
    capsys.readouterr()
    (machine / "album").mkdir()
    (machine / "album" / "broken.jpg").write_text("no photo")
    photo.convert("L").save(machine / "album" / "grey.jpg")
    with pytest.raises(SystemExit, match=r"Error: .*broken\.jpg cannot be read as a photo"):
        main(
            ["predict", str(machine / "album"), "--run-name", "tiny", "--out", str(machine / "out")]
        )
    shares = json.loads(
        capsys.readouterr().out.split("grey-overlay.png: ")[1]
    )  # the others are not held up
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    torchscript = machine / "runs" / "tiny" / "unet.torchscript"
    main(["export", "--run-name", "tiny", "--out", str(torchscript)])
    assert re.search(r"batches of 16: \d+\.\d frames per second", capsys.readouterr().out)
    model = torch.jit.load(torchscript)
    assert model(torch.zeros(1, 3, 90, 200, dtype=torch.uint8)).shape == (1, 90, 200)


def test_errors_are_one_line_that_says_what_to_do(machine):
    (machine / "runs" / "mine").mkdir(parents=True)
    (machine / "runs" / "mine" / "best.pt").touch()
    for command in (["predict", "photo.jpg"], ["export"]):
        with pytest.raises(SystemExit, match=r"Error: there is no run 'typo' .*there are: mine"):
            main([*command, "--run-name", "typo"])
    with pytest.raises(SystemExit, match=r"Error: There is no .*nowhere\.zip"):
        main(["prepare", "--data", str(machine / "nowhere.zip")])
    # Refused before the pairs are prepared: they are not even looked for.
    with pytest.raises(SystemExit, match=r"Error: .*only ONNX has 8 bits"):
        main(["export", "--int8", "--out", "unet.pt", "--data", str(machine / "nowhere.zip")])


def test_a_size_of_pairs_is_refused(machine, demo, capsys):
    for command in ("prepare", "train", "evaluate"):
        with pytest.raises(SystemExit, match="pairs have 256x256 pixels: --image-size says"):
            main([command, "--data", str(demo), "--size", "128"])
    with pytest.raises(SystemExit):
        main(["audit", "--data", str(demo), "--official", str(demo), "--size", "128"])
    assert "unrecognized arguments: --size" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "-64", "64x", "64x0", "64x48x3", "wide"])
def test_an_impossible_size_is_named(size, capsys):
    with pytest.raises(SystemExit):
        main(["export", f"--size={size}"])
    assert f"argument --size: '{size}' is no size: write WIDTHxHEIGHT" in capsys.readouterr().err


@pytest.mark.parametrize("count", [-5, 24])
def test_what_is_skipped_leaves_something(demo, machine, count):
    """-5 would leave the last five pairs alone."""
    message = rf"Error: --skip-first is {count}, of 24 training frames"
    with pytest.raises(SystemExit, match=message):
        main(["train", "--data", str(demo), "--labels", "nearest", "--skip-first", str(count)])


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"python -m unet_utils {command}" in capsys.readouterr().out


def readme_commands(program):
    lines = (ROOT / "README.md").read_text().splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


def test_it_is_called_as_the_readme_says():
    commands = readme_commands("python -m unet_utils")
    assert {command[3] for command in commands} == set(COMMANDS)
    for command in commands:
        _parser().parse_args(command[3:])


@pytest.mark.slow
def test_torchrun_is_called_as_the_readme_says():
    ((_, *arguments),) = readme_commands(
        "torchrun"
    )  # an option of ours may be an abbreviation of one of its own
    arguments[arguments.index("--nproc-per-node") + 1] = "1"
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "usage: python -m unet_utils train" in result.stdout


@pytest.mark.slow
def test_the_commands_with_photos_and_classes_of_ones_own(machine, capsys):
    """Train, evaluate, compare, predict, export and resume know no difference."""
    folder = machine / "own"
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(12):
        width, height = [(64, 48), (48, 64), (90, 40)][number % 3]
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[height // 2 :] = 1
        mask[:, : width // 4] = 2
        photo = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]], dtype=np.uint8)[mask]
        photo = (photo + rng.integers(0, 30, photo.shape)).astype(np.uint8)
        Image.fromarray(photo).save(folder / "images" / f"{number}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("sky\nground\nwall 200 0 0\n")
    data = ["--data", str(folder), "--size", "64x48"]
    main(["prepare", *data])
    assert re.search(r"ground +\d+\.\d+ %", capsys.readouterr().out)
    small = ["--recipe", "demo", "--base-channels", "4", "--image-size", "64", "--batch-size", "4"]
    small += ["--learning-rate", "0.02", "--no-hold-out"]
    main(["train", *data, *small, "--epochs", "6"])
    main(["train", *data, *small, "--epochs", "12"])  # extended under the name that it gave itself
    capsys.readouterr()
    main(["evaluate", *data])
    printed = capsys.readouterr().out
    assert float(re.search(r"this model \| [\d.]+ \| [\d.]+ \| ([\d.]+)", printed)[1]) > 0.8
    assert "pix2pix" not in printed
    main(["compare"])
    assert "| 12 of 12 (" in capsys.readouterr().out
    main(["predict", str(folder / "images" / "1.jpg"), "--out", str(machine / "out")])
    classes = next((machine / "out").rglob("1-classes.png"))
    with Image.open(classes) as image:
        assert image.size == (48, 64)
    main(["export", "--out", str(machine / "own.torchscript")])
    model = torch.jit.load(machine / "own.torchscript")
    assert model.names == ["sky", "ground", "wall"]
    assert model(torch.zeros(1, 3, 90, 50, dtype=torch.uint8)).shape == (1, 90, 50)
