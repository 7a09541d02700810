"""The steps of Muon: what they are, and that kernels which share a batch do not see each other."""

import contextlib
import copy
import math

import pytest
import torch
from count_launches import LaunchCounter, count
from torch import Tensor, nn

from unet_utils import UNet, recipe
from unet_utils.device import computing_in
from unet_utils.losses import AuxiliaryHeads
from unet_utils.optimizer import (
    Muon,
    _batches,
    _matrix_shape,
    _orthogonalize,
    make_optimizer,
    parameter_groups,
)

ENCODERS = ("none", "resnet34", "convnext_tiny", "efficientnet_lite2")


@pytest.fixture
def compute_in():
    """Return a function that sets the data type for the rest of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda dtype: stack.enter_context(computing_in(dtype))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthogonalized(matrix: Tensor) -> Tensor:
    """The published iteration, of one matrix in float64."""
    x = matrix.double()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class Published:
    """Muon and Adam by their formulas, in float64: one parameter after another, no batches."""

    def __init__(self, params: list[Tensor], lr: float, weight_decay: float):
        self.params = [param.detach().double() for param in params]
        self.first = [torch.zeros_like(param) for param in self.params]
        self.second = [torch.zeros_like(param) for param in self.params]
        self.lr, self.weight_decay, self.steps = lr, weight_decay, 0

    def step(self, grads: list[Tensor]) -> None:
        self.steps += 1
        for param, first, second, grad in zip(
            self.params, self.first, self.second, grads, strict=True
        ):
            grad = grad.double()
            if param.ndim >= 2:
                first.copy_(0.95 * first + 0.05 * grad)
                matrix = orthogonalized((0.05 * grad + 0.95 * first).flatten(1))
                step = 0.2 * math.sqrt(max(matrix.shape)) * matrix.view_as(param)
                step = step + self.weight_decay * param
            else:
                first.copy_(0.9 * first + 0.1 * grad)
                second.copy_(0.99 * second + 0.01 * grad**2)
                mean = first / (1 - 0.9**self.steps)
                step = mean / ((second / (1 - 0.99**self.steps)).sqrt() + 1e-8)
            param -= self.lr * step


def some_network() -> nn.Module:
    """Kernels of all kinds: tall and wide, 1x1, transposed, of each channel; matrices, vectors."""
    torch.manual_seed(0)
    return nn.ModuleList(
        [
            nn.Conv2d(3, 40, 3),
            nn.Conv2d(40, 40, 3),
            nn.Conv2d(40, 32, 3),
            nn.Conv2d(40, 24, 3),
            nn.Conv2d(40, 8, 1),
            nn.Conv2d(8, 40, 1),
            nn.Conv2d(40, 40, 5, groups=40),
            nn.ConvTranspose2d(40, 24, 2),
            nn.BatchNorm2d(40),
            nn.Linear(40, 24),
        ]
    )


# The largest distance between where a kernel is after some steps and where it should be, as a share
# of the way: the rounding of each data type, enlarged by the iteration.
TOLERANCES = [(torch.float32, 2e-5), (torch.float16, 6e-3), (torch.bfloat16, 0.04)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_steps_are_those_of_the_formulas(compute_in, dtype, tolerance, layout):
    compute_in(dtype)
    network = some_network().to(memory_format=layout)
    params = list(network.parameters())
    before = [param.detach().clone() for param in params]
    optimizer = Muon(params, lr=0.01, weight_decay=0.5)
    expected = Published(params, lr=0.01, weight_decay=0.5)
    for step in range(4):
        for number, param in enumerate(params):
            param.grad = random(*param.shape, seed=100 * step + number).view_as(param)
        expected.step([param.grad for param in params])
        optimizer.step()
    for param, start, goal in zip(params, before, expected.params, strict=True):
        error = (param - goal).norm() / (goal - start).norm()
        assert error < (tolerance if param.ndim > 1 else 2e-5)
        assert param.stride() == start.stride()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (64, 64), (19, 64)])
def test_a_matrix_takes_the_steps_of_torch(compute_in, shape):
    """Learning rate, weight decay (decoupled in both) and gradients are the same. What is built in
    here is chosen there: momentum 0.95 with Nesterov's step, five steps of the iteration, a step as
    long as AdamW's, which does not depend on the length of the gradient."""
    compute_in(torch.bfloat16)
    ours = nn.Parameter(random(*shape))
    theirs = nn.Parameter(random(*shape))
    settings = {"lr": 0.01, "weight_decay": 0.5}
    optimizers = [
        Muon([ours], **settings),
        torch.optim.Muon(
            [theirs],
            momentum=0.95,
            nesterov=True,
            ns_coefficients=(3.4445, -4.7750, 2.0315),
            ns_steps=5,
            adjust_lr_fn="match_rms_adamw",
            **settings,
        ),
    ]
    for step in range(5):
        for param, optimizer in zip((ours, theirs), optimizers, strict=True):
            param.grad = random(*shape, seed=step + 1)
            optimizer.step()
    way = (theirs - random(*shape)).norm()
    assert way > 0.1
    assert (ours - theirs).norm() / way < 0.03  # two steps of bfloat16 are 0.8 % apart


def test_kernels_in_a_batch_do_not_see_each_other(compute_in):
    compute_in(torch.float32)
    shapes = [(24, 90), (24, 88), (90, 24), (24, 90), (23, 85), (20, 10, 3, 3), (24, 10, 3, 3)]
    kernels = [random(*shape, seed=number) for number, shape in enumerate(shapes)]
    kernels[3].zero_()
    together = tuple(kernel.clone() for kernel in kernels)
    assert len(_batches(together)) < len(kernels) - 2
    _orthogonalize(together)
    for kernel, found in zip(kernels, together, strict=True):
        torch.testing.assert_close(
            found.flatten(1).double(), orthogonalized(kernel.flatten(1)), atol=2e-5, rtol=0
        )
    assert (together[3] == 0).all()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_batches_are_few_and_add_little_arithmetic(encoder):
    def work(shape: tuple[int, int]) -> int:
        rows, columns = shape
        return rows * rows * (2 * columns + rows)

    config = recipe("gpu", encoder=encoder)
    with torch.device("meta"):
        network = AuxiliaryHeads(UNet(**config.network(19)), use=True)
    for group in parameter_groups(network, network.model.encoder, config.encoder_rate):
        kernels = tuple(param for param in group["params"] if param.ndim > 1)
        batches = _batches(kernels)
        assert sorted(id(kernel) for batch in batches for kernel in batch) == sorted(
            id(kernel) for kernel in kernels
        )
        needed = sum(work(_matrix_shape(kernel)) for kernel in kernels)
        done = sum(len(batch) * work(_matrix_shape(batch[0])) for batch in batches)
        assert needed <= done <= 1.05 * needed
        assert len(batches) <= 11


@pytest.mark.parametrize(
    ("shape", "scale"), [((64, 576), 1e-6), ((64, 576), 1.0), ((64, 576), 1e4), ((128, 9216), 1.0)]
)
def test_orthogonal_steps_stay_in_range_in_float16(compute_in, shape, scale):
    """Muon's iteration brings the singular values to between 0.5 and 1.5, whatever the size of the
    gradient, and also in the longest sums of the GPU recipe (its largest kernel has more rows, for
    which a CPU would take a minute)."""
    compute_in(torch.float16)
    step = random(*shape) * scale
    _orthogonalize((step,))
    values = torch.linalg.eigvalsh(step @ step.T).sqrt()
    assert 0.5 < values.min() < values.max() < 1.5


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_the_encoder_takes_smaller_steps(optimizer):
    changes = []
    for encoder_rate in (0.0, 0.25):
        config = recipe("demo", optimizer=optimizer, encoder_rate=encoder_rate)
        torch.manual_seed(0)
        model = UNet(3, 4, 4)
        before = {name: values.clone() for name, values in model.state_dict().items()}
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        steps = make_optimizer(config, model, model.encoder)
        for group in steps.param_groups:
            group["lr"] = 0.1
        steps.step()
        changes.append({n: p.detach() - before[n] for n, p in model.named_parameters()})
    full, smaller = changes
    for name, change in full.items():
        assert change.abs().max() > 1e-3
        expected = 0.25 * change if name.startswith("encoder.") else change
        torch.testing.assert_close(smaller[name], expected, rtol=1e-4, atol=1e-6)


def test_a_parameter_without_a_gradient_stays():
    network = some_network()
    before = copy.deepcopy(network)
    network[0].weight.grad = torch.ones_like(network[0].weight)
    Muon(network.parameters(), weight_decay=0.5).step()
    changed = [
        name
        for (name, a), b in zip(network.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert changed == ["0.weight"]


def test_a_loaded_state_takes_the_same_steps(tmp_path):
    def steps(network: nn.Module, optimizer: Muon, numbers: range) -> None:
        for number in numbers:
            for parameter in network.parameters():
                parameter.grad = random(*parameter.shape, seed=number)
            optimizer.step()

    network = some_network()
    optimizer = Muon(parameter_groups(network, network[0], 0.1), weight_decay=0.1)
    steps(network, optimizer, range(2))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = copy.deepcopy(network)
    steps(network, optimizer, range(2, 4))
    again = Muon(parameter_groups(resumed, resumed[0], 0.1), weight_decay=0.1)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(resumed, again, range(2, 4))
    for a, b in zip(network.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loaded_state_is_where_the_parameters_are():
    """Otherwise a run that is resumed on a GPU could round differently than an uninterrupted
    one."""
    network = some_network()
    optimizer = Muon(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    elsewhere = Muon(copy.deepcopy(network).to("meta").parameters())
    elsewhere.load_state_dict(optimizer.state_dict())
    values = [value for state in elsewhere.state.values() for value in state.values()]
    assert {value.device.type for value in values} == {"meta"}
    assert elsewhere.param_groups[0]["steps"] == 1


def test_an_overflow_is_skipped_and_the_training_goes_on():
    """With a scale that is too large the gradients are infinite: nothing moves, the scale halves,
    then it works."""
    torch.manual_seed(0)
    model, x = UNet(3, 4, 2), torch.randn(2, 3, 32, 32)
    optimizer, scaler = (
        Muon(model.parameters(), lr=1e-2),
        torch.amp.GradScaler("cpu", init_scale=2.0**126),
    )
    before, skipped, steps = [p.clone() for p in model.parameters()], 0, 0
    while steps < 3:
        optimizer.zero_grad()
        scaler.scale(1e6 * model(x).square().mean()).backward()
        scaler.unscale_(optimizer)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        if scaler.get_scale() < scale:
            assert not moved or steps
            skipped += 1
        else:
            assert moved
            steps += 1
    assert skipped >= 2
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for state in optimizer.state.values():
        assert all(torch.isfinite(value).all() for value in state.values())


def test_a_step_copies_no_value_to_the_cpu():
    """Python would have to wait for the GPU."""
    network = some_network()
    optimizer = Muon(network.parameters())
    optimizer.found_inf = torch.tensor(1.0)  # as a GradScaler sets it
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    counter = LaunchCounter()
    with counter:
        optimizer.step()
        launched = {name for _, name in counter.launches}
        counter.launches.clear()
        optimizer.found_inf.item()
    assert "masked_fill_" in launched
    assert "_local_scalar_dense" not in launched
    assert {name for _, name in counter.launches} == {"_local_scalar_dense"}


def test_a_step_of_the_gpu_recipe_launches_little():
    config = recipe("gpu", base_channels=16)  # the kernels of the full width share batches likewise
    launches = count(config, 64)
    assert sum(number for (section, _), number in launches.items() if section == "Muon") <= 300
    assert sum(launches.values()) <= 1000
    assert count(config, 32) == launches
