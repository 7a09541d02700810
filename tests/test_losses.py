"""The loss: class weights, the correction of the logits, and the auxiliary heads."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from unet_utils import UNet
from unet_utils.losses import AuxiliaryHeads, class_weights, prior_correction, segmentation_loss


def test_class_weights_leave_the_mean_pixel_alone():
    counts = torch.tensor([9000, 900, 100, 0])
    for power in (0.0, 0.5, 1.0):
        weights = class_weights(counts, power)
        assert (weights * counts).sum() / counts.sum() == pytest.approx(1.0)
    assert class_weights(counts, 1.0)[:3].tolist() == pytest.approx([1 / 2.7, 1 / 0.27, 1 / 0.03])
    assert class_weights(counts, 0.0).tolist() == [1.0] * 4


def test_a_full_correction_undoes_the_class_weights():
    """With weights w the best constant prediction is w p / sum(w p); corrected logits give p."""
    counts = torch.tensor([700, 200, 100])
    weights = class_weights(counts, 0.5)
    p = counts / counts.sum()
    logits = (weights * p / (weights * p).sum()).log()
    assert torch.allclose((logits + prior_correction(weights, 1.0)).softmax(0), p)


def test_each_auxiliary_head_has_its_own_size():
    model = AuxiliaryHeads(UNet(3, 5, 4), use=True)
    outputs = model(torch.randn(1, 3, 64, 64))
    assert [tuple(out.shape[1:]) for out in outputs] == [(5, s, s) for s in (64, 8, 16, 32, 64)]
    labels = torch.full((1, 64, 64), 255)
    labels[:, :8, :8] = 2
    loss, total = segmentation_loss(outputs, labels, torch.ones(5), 0.5, lambda tensor: tensor)
    own = []
    for out in outputs:
        side = out.shape[2] // 8
        corner = out[:, :, :side, :side].flatten(2)
        own.append(cross_entropy(corner, torch.full((1, side**2), 2)).item())
    assert loss.item() == pytest.approx(own[0], rel=1e-5)
    assert total.item() == pytest.approx(own[0] + 0.5 * sum(own[1:]) / 4, rel=1e-5)


def test_a_batch_without_a_labelled_pixel_has_loss_zero():
    labels = torch.full((1, 8, 8), 255)
    logits = torch.randn(1, 5, 8, 8, requires_grad=True)
    loss, _ = segmentation_loss([logits], labels, torch.ones(5), 0.0, lambda tensor: tensor)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()
