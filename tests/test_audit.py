import csv

import numpy as np
import pytest
from PIL import Image

from unet_utils import CityscapesPairs, ConfusionMatrix, UNet, evaluate, get_scheme
from unet_utils.classes import LABELS, PALETTE_IDS
from unet_utils.clustering import choose_scheme
from unet_utils.dataset import read_pair
from unet_utils.restoring import damage, restore_labels
from unet_utils.use.audit import audit, label_at_centers, label_of_most, official_frames

SCHEME = get_scheme("cityscapes19")
COLOR_OF_ID = np.zeros((256, 3), dtype=np.uint8)
COLOR_OF_ID[[label.id for label in LABELS]] = [label.color for label in LABELS]


def write_table(folder, *rows, header=("label_file", "pair_file"), encoding="utf-8"):
    with (folder / "pairs.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def drawn(tmp_path):
    """One frame of patches of random labels, as an official label file and as a pair; returns
    folder and label ids."""
    rng = np.random.default_rng(0)
    label_ids = rng.choice(PALETTE_IDS, (16, 32)).repeat(64, axis=0).repeat(64, axis=1)
    mask = damage(COLOR_OF_ID[label_ids])
    (tmp_path / "pairs" / "train").mkdir(parents=True)
    Image.fromarray(np.hstack([mask, mask])).save(
        tmp_path / "pairs" / "train" / "1.jpg", quality=95
    )
    Image.fromarray(label_ids).save(tmp_path / "a_labelIds.png")
    write_table(tmp_path, ("a_labelIds.png", "train/1.jpg"))
    return tmp_path, label_ids


def test_the_reference_is_the_mode_of_the_centre():
    source = np.full((1024, 2048), 7, dtype=np.uint8)
    source[1:3, 3:5] = [[8, 8], [8, 11]]  # the centre of the first cell
    source[5:7, 3:5] = [[21, 21], [11, 11]]  # a tie goes to the smaller label
    assert label_at_centers(source)[:2, 0].tolist() == [8, 11]
    assert (label_of_most(source) == 7).all()
    with pytest.raises(ValueError, match="even multiples"):
        label_at_centers(source[:1000])


def test_the_audit_agrees_with_a_plain_count(drawn):
    folder, label_ids = drawn
    result = audit(folder, folder / "pairs")
    truth = SCHEME.encode(label_at_centers(label_ids))
    _, mask = read_pair(folder / "pairs" / "train" / "1.jpg")
    for method in ("restored", "nearest"):
        found = restore_labels(mask[None], method=method)[0]
        assert result.agreement[method] == pytest.approx((found == truth).mean())
        known = truth != 255
        wall = SCHEME.names.index("wall")
        union = ((found == wall) | (truth == wall)) & known
        assert result.iou[method][wall] == pytest.approx(
            ((found == wall) & (truth == wall)).sum() / union.sum()
        )
    assert result.miou["nearest"] < result.miou["restored"] <= result.miou["bound"]
    assert result.frames == 1
    lines = result.table.splitlines()
    assert lines[0] == "| IoU, % | nearest | restored | bound |"
    assert len(lines) == 2 + 19 + 2
    assert lines[-1].endswith(f" {100 * result.agreement['bound']:.1f} |")


def test_what_is_wrong_is_named(drawn):
    folder, _ = drawn
    with pytest.raises(FileNotFoundError, match=r"pairs\.csv is missing"):
        audit(folder / "pairs", folder / "pairs")
    write_table(folder, header=("a", "b"))
    with pytest.raises(ValueError, match="columns label_file,pair_file"):
        audit(folder, folder / "pairs")
    # As Excel writes it.
    write_table(folder, ("b_labelIds.png", "train/1.jpg"), encoding="utf-8-sig")
    with pytest.raises(FileNotFoundError, match=r"b_labelIds\.png is missing"):
        audit(folder, folder / "pairs")
    (folder / "b_labelIds.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"b_labelIds\.png cannot be read"):
        audit(folder, folder / "pairs")


def test_official_labels_score_a_model_without_any_restoring(demo, tmp_path):
    ids = np.full((1024, 2048), 7, dtype=np.uint8)  # road,
    ids[:, 1024:] = 26  # and a car
    Image.fromarray(ids).save(tmp_path / "a_labelIds.png")
    write_table(tmp_path, ("a_labelIds.png", "train/3.jpg"))
    frames = official_frames(tmp_path, demo, SCHEME)
    photos, classes = frames.batch(slice(0, 1))
    assert frames.numbers == (3,)
    assert (photos[0] == CityscapesPairs(demo, "train")[2][0]).all()
    assert classes[0, :, :128].unique().tolist() == [0]
    assert classes[0, :, 128:].unique().tolist() == [13]
    assert ConfusionMatrix.total(evaluate(UNet(3, 19, 4), frames, 64)).matrix.sum() == 256 * 256
    with pytest.raises(ValueError, match="colour clusters"):
        official_frames(tmp_path, demo, choose_scheme("clusters", demo, 5))
