"""What notebook 03 teaches: the code in its cells computes what the package computes, and each
lesson comes out as its text says."""

import ast
import json
import re
from types import SimpleNamespace

import nbformat
import pytest
import torch
from nbclient.exceptions import CellExecutionError
from run_notebooks import ROOT
from series import printed, run_notebook
from torch import nn
from torch.nn.functional import interpolate, log_softmax

from unet_utils import IGNORE, ConfusionMatrix, UNet, prepare
from unet_utils.classes import get_scheme
from unet_utils.demo.pairs import make_demo
from unet_utils.encoders import MEAN, STD
from unet_utils.use.exercises import check

NAME = "03_train"


@pytest.fixture(scope="module")
def typed():
    """The imports, classes and functions of the notebook, without running it."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{NAME}.ipynb", as_version=4)
    names = {"SIZE": 128, "env": SimpleNamespace(device="cpu")}
    kinds = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
    for cell in notebook.cells:
        if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []):
            parts = [node for node in ast.parse(cell.source).body if isinstance(node, kinds)]
            exec(compile(ast.Module(parts, []), cell.id, "exec"), names)
    return SimpleNamespace(**names)


@pytest.fixture
def networks(typed):
    """The network of the notebook and that of the package, with the same weights."""
    torch.manual_seed(1)
    ours = UNet(3, 5, 4)
    theirs = typed.UNet(4, 5)
    weights = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(weights))
    return theirs, ours


@pytest.mark.parametrize("training", [True, False])
def test_the_network_in_the_cells_is_that_of_the_package(networks, training):
    theirs, ours = networks
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = theirs.train(training)(x)
        torch.testing.assert_close(found, ours.train(training)(x))
        for paths in zip(theirs.features(x), ours.features(x), strict=True):
            torch.testing.assert_close(*paths)
    assert found.std() > 0


def test_the_loop_in_the_cell_takes_the_steps_of_plain_torch(typed, networks, demo, tmp_path):
    theirs, ours = networks
    frames = prepare(demo, "train", tmp_path, "categories7", "nearest", progress=False)
    theirs.head = nn.Conv2d(4, 7, 1)
    ours.head = nn.Conv2d(4, 7, 1)
    ours.head.load_state_dict(theirs.head.state_dict())
    torch.manual_seed(2)
    found = typed.train_briefly(theirs, frames, steps=4)

    torch.manual_seed(2)
    ours.train()
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.005)
    expected = []
    for _ in range(4):
        photos, labels = frames.batch(torch.randint(len(frames), (4,)))
        x = interpolate(photos.float() / 255, (128, 128), mode="bilinear", antialias=True)
        x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        truth = labels[:, ::2, ::2].long()
        labelled = truth != IGNORE
        chances = log_softmax(ours(x), 1)
        of_truth = chances.gather(1, truth.where(labelled, 0)[:, None])[:, 0]
        loss = -of_truth[labelled].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-3)
    assert found[-1] < found[0]
    assert not theirs.training


def test_the_confusion_matrix_in_the_cell_scores_as_the_package_does(typed):
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 6, (2, 20, 30), generator=generator)
    predicted = torch.randint(0, 7, (2, 20, 30), generator=generator)
    truth[truth == 5] = IGNORE
    theirs = typed.ConfusionMatrix(7)  # classes 5 and 6 are absent from the truth
    ours = ConfusionMatrix(7)
    for found, true in zip(predicted, truth, strict=True):
        theirs.update(found, true)
        ours.update(found, true)
    assert torch.equal(theirs.matrix, ours.matrix)
    assert theirs.iou().mean().item() == pytest.approx(ours.mean_iou)
    assert theirs.pixel_accuracy().item() == pytest.approx(ours.pixel_accuracy)
    assert theirs.class_accuracy().item() == pytest.approx(ours.class_accuracy)


SMALLER = """
import unet_utils.use.workbench as workbench
workbench.BASELINE |= {"base_channels": 4, "image_size": 64}
workbench.PHOTOS = 80
"""
FACTS = """
import json

from scipy import ndimage

# Independently of the cell: where does the finest skip cost most pixels along borders?
true = some_labels.numpy()
borders = ndimage.maximum_filter(true, (1, 5, 5)) != ndimage.minimum_filter(true, (1, 5, 5))
costs = []
for number, near in enumerate(borders):
    found = [seen[name][number].numpy()[near] for name in ("all skips", "without the finest")]
    is_right = [each == true[number][near] for each in found]
    costs.append(int((is_right[0] > is_right[1]).sum()))
facts = {
    "skips": skip_scores,
    "costs": costs,
    "shown": shown,
    "by heart": by_heart,
    "loss by heart": losses[-1],
    "pixel accuracy": [matrix.pixel_accuracy().item() for matrix in weighted.values()],
    "class accuracy": [matrix.class_accuracy().item() for matrix in weighted.values()],
    "flipped": list(flipped_scores.values()),
    "before": float((before == street_labels)[street_labels != IGNORE].mean()),
    "after forty steps": float((after_forty == street_labels)[street_labels != IGNORE].mean()),
    "result": json.loads((plan.kept / "result.json").read_text()),
    "tries": list(tries.strip().predictions),
    "time-lapse": (plan.folder / "time-lapse.json").exists(),
}
(env.data / "facts.json").write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its solutions, and what came out. The long training is short: it begins
    with the weights of the small model and hardly changes them."""
    folder = tmp_path_factory.mktemp("notebook")
    pairs = make_demo(folder / "pairs", train=48, val=1)
    notebook = run_notebook(
        NAME,
        folder,
        FACTS,
        SMALLER,
        DATA=str(pairs),
        START_FROM="small",
        EPOCHS=1,
        LEARNING_RATE=1e-5,
        RUN="tuned",
        TRY_PHOTOS=80,
        TRY_WIDTH=4,
        TRY_SIZE=64,
        SHOW_SOLUTION=True,
    )
    return notebook, json.loads((folder / "data" / "facts.json").read_text())


@pytest.mark.slow
class TestLessons:
    def test_forty_steps_find_the_largest_things(self, executed):
        _, facts = executed
        assert facts["after forty steps"] > 0.5
        assert facts["before"] < 0.25

    def test_the_usual_way_gives_the_same_batch(self, executed):
        text = printed(executed[0])
        assert "labels are equal: True" in text
        difference = float(re.search(r"largest difference of the photos: ([\d.]+)", text)[1])
        assert difference < 1e-4

    def test_the_score_by_hand_is_that_of_the_matrix(self, executed):
        scores = re.findall(r"^mIoU ([\d.]+)", printed(executed[0]), re.MULTILINE)
        assert scores[:2] == ["0.756", "0.756"]

    def test_a_try_is_a_column_beside_the_baseline(self, executed):
        assert executed[1]["tries"] == ["baseline", "no skips"]

    def test_each_skip_that_goes_lowers_the_score(self, executed):
        scores = executed[1]["skips"]
        assert scores == sorted(scores, reverse=True)
        assert scores[-1] < scores[0] / 2

    def test_the_frame_that_is_shown_loses_most_along_borders(self, executed):
        costs = executed[1]["costs"]
        assert costs[executed[1]["shown"]] == max(costs) > min(costs)

    def test_one_pair_is_learned_by_heart(self, executed):
        assert executed[1]["by heart"] > 0.98
        assert executed[1]["loss by heart"] < 0.1

    def test_class_weights_find_more_classes_and_fewer_pixels(self, executed):
        plain, weighted = executed[1]["pixel accuracy"]
        assert weighted < plain
        plain, weighted = executed[1]["class accuracy"]
        assert weighted > plain

    def test_a_network_whose_labels_were_not_flipped_is_worse(self, executed):
        both, forgotten = executed[1]["flipped"]
        assert forgotten < both

    def test_the_run_leaves_its_result_and_its_time_lapse(self, executed):
        _, facts = executed
        assert facts["result"]["run"] == "tuned"
        assert 0 < facts["result"]["scores"]["held_out"] < 1
        assert facts["result"]["settings"]["encoder"] == "efficientnet_lite2"
        assert facts["time-lapse"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("None", "No answer yet"),
        ("torch.tensor(0.99)", "Right"),
        ("0.97", "Not yet"),
        ("90.9", "Not yet"),  # percent
    ],
)
def test_the_exercise_about_one_pair_tells_right_from_wrong(answer, told, capsys):
    notebook = nbformat.read(ROOT / "notebooks" / f"{NAME}.ipynb", as_version=4)
    (source,) = [cell.source for cell in notebook.cells if "one_pair = learn" in cell.source]
    assert "answer = None" in source
    names = {"learn": SimpleNamespace(part=lambda keep: None), "torch": torch}
    exec(source.replace("answer = None", f"answer = {answer}"), names)
    assert capsys.readouterr().out.startswith(told)


def test_a_cell_that_is_run_again_still_keeps_what_the_untrained_network_sees():
    """The Try box below it asks for more steps; the picture "before and after" comes much later."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{NAME}.ipynb", as_version=4)
    (source,) = [cell.source for cell in notebook.cells if "\nafter_forty = " in cell.source]
    photos = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    names = {
        "SIZE": 128,
        "learn": None,
        "scheme": get_scheme("categories7"),
        "held_out": SimpleNamespace(
            spread=lambda n: None, batch=lambda where: (photos, photos[:, 0])
        ),
        "model": 5,  # stands for a trained network, which sees class 5
        "new_model": lambda: 0,
        "train_briefly": lambda model, frames: [1.0],
        "predict_classes": lambda model, photos, size: torch.full((3, 8, 8), model),
    }
    exec(source, names)
    assert (names["before"] == 0).all()
    assert (names["after_forty"] == 5).all()


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("None, None", ["No answer yet", "No answer yet"]),
        ("photos.flip(3), labels.flip(2)", ["Right", "Right"]),
        ("photos.flip(2), labels.flip(2)", ["Not yet", "Right"]),  # upside down
        ("photos.flip(3), labels", ["Right", "Not yet"]),
    ],
)
def test_the_exercise_about_flips_tells_right_from_wrong(line, answers, capsys):
    notebook = nbformat.read(ROOT / "notebooks" / f"{NAME}.ipynb", as_version=4)
    (source,) = [cell.source for cell in notebook.cells if "def flip" in cell.source]
    assert "None, None" in source
    photos = torch.arange(96).view(2, 3, 4, 4)
    labels = torch.arange(32).view(2, 4, 4)
    exec(source.replace("None, None", line), {"photos": photos, "labels": labels, "check": check})
    lines = capsys.readouterr().out.splitlines()
    assert [given.startswith(wanted) for given, wanted in zip(lines, answers, strict=True)] == [
        True,
        True,
    ]


@pytest.mark.slow
def test_a_setting_that_does_not_exist_is_named_before_anything_is_computed(demo, tmp_path):
    with pytest.raises(CellExecutionError, match="there is no setting 'image_sise'"):
        run_notebook(NAME, tmp_path, DATA=str(demo), MORE={"image_sise": 64})
