"""Row 4: the confusion matrix."""

import torch
from sklearn.metrics import confusion_matrix
from torchmetrics.classification import MulticlassConfusionMatrix

from benchmarks.setting import Setting
from benchmarks.timing import Comparison, Result, interleave
from unet_utils import IGNORE, ConfusionMatrix


def metrics(setting: Setting) -> Result:
    """Row 4: 500 frames of 256x256 in batches of 20, 19 classes, a tenth of the pixels void.

    Raises:
        ValueError: the contenders count differently.
    """
    frames = min(500, 20 * max(1, setting.pairs // 100))
    generator = torch.Generator().manual_seed(0)
    # Blocks instead of noise: in label maps, most neighbouring pixels have the same class.
    truth = torch.randint(0, 19, (frames, 32, 32), generator=generator, dtype=torch.uint8)
    truth[torch.rand(truth.shape, generator=generator) < 0.1] = IGNORE
    truth = truth.repeat_interleave(8, 1).repeat_interleave(8, 2)
    wrong = torch.rand(truth.shape, generator=generator) < 0.2
    pred = torch.where(
        wrong | (truth == IGNORE), torch.randint(0, 19, truth.shape, generator=generator), truth
    )
    truth, pred = truth.to(setting.device), pred.long().to(setting.device)  # int64, as from argmax
    batches = list(zip(pred.split(20), truth.split(20), strict=True))
    found = {}

    def ours() -> None:
        matrix = ConfusionMatrix(19)
        for batch in batches:
            matrix.update(*batch)
        found["ours"] = matrix.matrix.cpu()

    def torchmetrics() -> None:
        matrix = MulticlassConfusionMatrix(19, ignore_index=IGNORE).to(setting.device)
        for p, t in batches:
            matrix.update(p, t.long())
        found["torchmetrics"] = matrix.compute().cpu()

    def scikit_learn() -> None:
        total = 0
        for p, t in batches:
            known = t != IGNORE
            total = total + confusion_matrix(
                t[known].cpu().numpy(), p[known].cpu().numpy(), labels=range(19)
            )
        found["scikit-learn"] = torch.from_numpy(total)

    times = interleave(
        {"ours": ours, "torchmetrics": torchmetrics, "scikit-learn": scikit_learn}, setting.rounds
    )
    if not all(torch.equal(matrix, found["ours"]) for matrix in found.values()):
        raise ValueError("the confusion matrices differ")
    return Result(
        [
            Comparison(
                "4", "confusion matrix", "scikit-learn", times["ours"], times["scikit-learn"], 0.2
            ),
            Comparison(
                "4", "confusion matrix", "torchmetrics", times["ours"], times["torchmetrics"], 1.0
            ),
        ],
        f"Row 4: {frames} frames of 256x256, 19 classes; all three count the same.",
    )
