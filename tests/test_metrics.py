import math

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex

from unet_utils import IGNORE, LABELS, ConfusionMatrix, get_scheme


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 19, (6, 32, 32), generator=generator)
    pred = torch.where(
        torch.rand(target.shape, generator=generator) < 0.6, target, (target + 3) % 19
    )
    target[torch.rand(target.shape, generator=generator) < 0.1] = IGNORE
    return pred, target


def test_it_agrees_with_torchmetrics_and_scikit_learn(maps):
    pred, target = maps
    matrix = ConfusionMatrix(19)
    for p, t in zip(
        pred, target, strict=True
    ):  # frame by frame: batches must not change the result
        matrix.update(p, t)
    known = target != IGNORE
    reference = confusion_matrix(target[known], pred[known], labels=range(19))
    assert (matrix.matrix.numpy() == reference).all()
    per_class = jaccard_score(target[known], pred[known], labels=range(19), average=None)
    assert np.allclose(matrix.iou, per_class, atol=1e-12)
    jaccard = MulticlassJaccardIndex(19, ignore_index=IGNORE)(pred, target)
    assert matrix.mean_iou == pytest.approx(jaccard.item(), abs=1e-6)
    assert matrix.pixel_accuracy == pytest.approx((pred == target)[known].double().mean().item())
    assert matrix.class_accuracy == pytest.approx((reference.diagonal() / reference.sum(1)).mean())
    weighted = (per_class * reference.sum(1)).sum() / reference.sum()
    assert matrix.frequency_weighted_iou == pytest.approx(weighted)


IDS = np.zeros(256, dtype=np.uint8)  # from class index to official label id; void is 0, unlabeled
for label in LABELS:
    if label.train_id != IGNORE:
        IDS[label.train_id] = label.id


def score_officially(pred, target, folder, monkeypatch):
    """What cityscapesScripts says about classes `[N, H, W]`, given to it as the files that it
    takes."""
    for name, value in {"quiet": True, "JSONOutput": False, "evalInstLevelScore": False}.items():
        monkeypatch.setattr(official.args, name, value)
    files = {"pred": [], "gt": []}
    for kind, maps in (("pred", pred), ("gt", target)):
        for number, classes in enumerate(maps):
            files[kind].append(str(folder / f"{kind}{number}.png"))
            Image.fromarray(IDS[classes.numpy()]).save(files[kind][-1])
    return official.evaluateImgLists(files["pred"], files["gt"], official.args)


def scores_of(pred, target) -> ConfusionMatrix:
    matrix = ConfusionMatrix(19)
    matrix.update(pred, target)
    return matrix


@pytest.mark.parametrize(
    "absent", [(), (3, 16)], ids=["all classes", "two absent from truth and prediction"]
)
def test_it_agrees_with_the_official_scores_and_torchmetrics(maps, absent, tmp_path, monkeypatch):
    pred, target = maps
    for index in absent:
        pred[pred == index], target[target == index] = 0, IGNORE
    matrix = scores_of(pred, target)
    theirs = score_officially(pred, target, tmp_path, monkeypatch)
    classes = [theirs["classScores"][name] for name in get_scheme("cityscapes19").names]
    assert np.allclose(matrix.iou, classes, atol=1e-6, equal_nan=True)
    assert matrix.mean_iou == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)
    jaccard = MulticlassJaccardIndex(19, ignore_index=IGNORE)(pred, target).item()
    assert matrix.mean_iou == pytest.approx(jaccard, abs=1e-6)
    assert torch.isnan(matrix.iou).nonzero().flatten().tolist() == list(absent)


def test_no_answer_is_wrong_as_in_the_official_scores(maps, tmp_path, monkeypatch):
    pred, target = maps
    with pytest.raises(ValueError, match="pred has classes outside"):
        scores_of(torch.full_like(target, IGNORE), target)
    pred[:, :8] = IGNORE
    matrix = ConfusionMatrix(19, no_answer=True)
    matrix.update(pred, target)
    theirs = score_officially(pred, target, tmp_path, monkeypatch)
    assert matrix.mean_iou == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)
    categories = get_scheme("categories7")
    classes = [label for label in LABELS if label.train_id != IGNORE]
    merged = matrix.merge([categories.lookup[label.id] for label in classes])
    assert merged.mean_iou == pytest.approx(theirs["averageScoreCategories"], abs=1e-6)
    assert merged.matrix[:, 7].sum() == (pred == IGNORE)[target != IGNORE].sum()
    for wrong in (19, 254, -1):
        with pytest.raises(ValueError, match="pred has classes outside"):
            matrix.update(torch.full_like(target, wrong), target)


def test_an_absent_class_that_was_predicted_is_0_for_them_and_left_out_here(
    maps, tmp_path, monkeypatch
):
    pred, target = maps
    target[target == 16] = IGNORE  # still predicted on other classes' pixels
    matrix = scores_of(pred, target)
    theirs = score_officially(pred, target, tmp_path, monkeypatch)
    assert math.isnan(matrix.iou[16])
    assert theirs["classScores"]["train"] == 0
    with_zero = matrix.iou.nan_to_num(0)
    assert np.allclose(
        with_zero, [theirs["classScores"][n] for n in get_scheme("cityscapes19").names], atol=1e-6
    )
    assert theirs["averageScoreClasses"] == pytest.approx(with_zero.mean().item(), abs=1e-6)
    theirs = MulticlassJaccardIndex(19, ignore_index=IGNORE)(pred, target)
    assert theirs == pytest.approx(with_zero.mean().item(), abs=1e-6)
    assert matrix.mean_iou == pytest.approx(with_zero.sum().item() / 18)


def test_categories_are_scored_as_officially(maps, tmp_path, monkeypatch):
    scheme = get_scheme("categories7")
    pred, target = (torch.from_numpy(scheme.encode(IDS[classes.numpy()])) for classes in maps)
    matrix = ConfusionMatrix(7)
    matrix.update(pred, target)
    theirs = score_officially(*maps, tmp_path, monkeypatch)
    assert np.allclose(
        matrix.iou, [theirs["categoryScores"][name] for name in scheme.names], atol=1e-6
    )
    assert matrix.mean_iou == pytest.approx(theirs["averageScoreCategories"], abs=1e-6)


def test_a_mean_over_batches_would_be_another_number(maps):
    pred, target = maps
    target[0][target[0] == 5] = IGNORE
    frames = []
    for p, t in zip(pred, target, strict=True):
        frames.append(ConfusionMatrix(19))
        frames[-1].update(p, t)
    total = ConfusionMatrix.total(frames)
    assert total.matrix.sum() == (target != IGNORE).sum()
    assert abs(total.mean_iou - np.mean([frame.mean_iou for frame in frames])) > 1e-3


def test_absent_classes_are_absent_and_not_zero():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 0, 2]), np.array([0, 0, 0]))
    assert matrix.iou[0] == pytest.approx(2 / 3)
    assert torch.isnan(matrix.iou[1:]).all()
    assert matrix.mean_iou == matrix.class_accuracy == pytest.approx(2 / 3)


def test_void_is_left_out_whatever_was_predicted_there():
    matrix = ConfusionMatrix(2)
    matrix.update(
        torch.tensor([0, 1, 1], dtype=torch.uint8), torch.tensor([0, 1, 255], dtype=torch.uint8)
    )
    assert matrix.matrix.tolist() == [[1, 0], [0, 1]]


def test_guessing_knows_the_truth_and_nothing_else(maps):
    matrix = ConfusionMatrix(19)
    matrix.update(*maps)
    chance = matrix.guessing(torch.full((19,), 1 / 19))
    assert chance.pixel_accuracy == pytest.approx(1 / 19, abs=1e-3)
    assert (chance.matrix.sum(1) - matrix.matrix.sum(1)).abs().max() < 19


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        ([0, 1], [0, 1, 1], "differ in shape"),
        ([0, 1], [0, 7], "target has classes outside 0 to 1"),
        ([0, 7], [0, 1], "pred has classes outside 0 to 1"),
        ([0.9, 1.0], [0, 1], "pred holds torch.float32, not class indices"),
        ([0, 1], [0.0, 1.0], "target holds torch.float32"),
    ],
)
def test_bad_label_maps_are_refused(pred, target, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(2).update(torch.tensor(pred), torch.tensor(target))


def test_merged_classes_score_like_merged_labels(maps):
    seven, nineteen = get_scheme("categories7"), get_scheme("cityscapes19")
    new_index = [seven.lookup[nineteen.lookup.index(c)] for c in range(19)]
    pred, target = (np.asarray(part).copy() for part in maps)
    matrix, merged = ConfusionMatrix(19), ConfusionMatrix(7)
    matrix.update(pred, target)
    table = np.array([*new_index, *[IGNORE] * (256 - 19)])
    merged.update(table[pred], table[target])
    assert torch.equal(matrix.merge(new_index).matrix, merged.matrix)
