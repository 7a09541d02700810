"""The estimates of docs/gpu.md."""

import pytest
import torch
from step_costs import (
    CARDS,
    LAUNCH,
    Card,
    StepCosts,
    epoch_seconds,
    step_costs,
)

from unet_utils import recipe


def test_an_operator_takes_the_longest_of_arithmetic_memory_and_launch():
    costs = StepCosts()
    with torch.device("meta"), costs:
        costs.section = "product"
        left, right = torch.empty(2, 300, 400), torch.empty(2, 400, 500)
        torch.bmm(left, right)
    flops = 2 * 2 * 300 * 400 * 500
    moved = 4 * 2 * (300 * 400 + 400 * 500 + 300 * 500)
    assert costs.operators["product"] == [(flops, moved)]
    assert costs.seconds("product", Card(1.0, 1e99)) == flops
    assert costs.seconds("product", Card(1e99, 1.0)) == moved
    assert costs.seconds("product", Card(1e99, 1e99)) == LAUNCH
    assert costs.bound(Card(1.0, 1e99)) == "100, 0, 0"


def test_the_recipe_for_a_t4_takes_about_15_minutes_there_by_arithmetic():
    """Scoring and saving come on top of the steps: about 2 seconds an epoch, by guess."""
    config = recipe("t4")
    costs = step_costs(config, config.image_size)
    epoch = epoch_seconds(config, costs, CARDS["T4"]) + 2
    assert 13 < epoch * config.epochs / 60 < 17


@pytest.mark.parametrize("batch_size", [8, 16])
def test_the_work_of_the_network_grows_with_the_batch_and_that_of_the_optimizer_does_not(
    batch_size,
):
    config = recipe("gpu", base_channels=4, batch_size=batch_size)
    small = step_costs(recipe("gpu", base_channels=4, batch_size=4), 64)
    costs = step_costs(config, 64)
    flops = [
        [sum(work for work, _ in one.operators[part]) for part in ("network", "optimizer")]
        for one in (small, costs)
    ]
    assert flops[1] == [flops[0][0] * batch_size / 4, flops[0][1]]
