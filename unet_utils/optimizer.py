"""The optimizer: Muon for the kernels and Adam for everything else, or Adam alone."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from unet_utils.config import TrainConfig
from unet_utils.device import compute_dtype


def make_optimizer(
    config: TrainConfig, network: nn.Module, encoder: nn.Module
) -> torch.optim.Optimizer:
    """Return the optimizer of the settings for the parameters of a network with this encoder."""
    # What is frozen for some epochs is a group of its own, even if its rate is that of the rest.
    rate = config.encoder_rate or float(config.frozen_epochs > 0)
    groups = parameter_groups(network, encoder, rate)
    kind = Adam if config.optimizer == "adam" else Muon
    return kind(groups, weight_decay=config.weight_decay)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized steps (https://kellerjordan.github.io/posts/muon), for
    convolutional networks.

    A kernel `[out, in, h, w]` is treated as a matrix with `out` rows. The root mean square of its
    step is that of an AdamW step (https://arxiv.org/abs/2502.16982), so one learning rate serves
    kernels and everything else: parameters with one dimension (biases, normalization) are updated
    by Adam. Weight decay is decoupled, for kernels only.

    All parameters of a group take their step together, by torch's `_foreach_` functions, and
    kernels of similar size are orthogonalized in one batch: on a GPU, thousands of small operations
    would take longer to start than to run.

    Works with a GradScaler that has unscaled the gradients: after an overflow the weights stay
    unchanged, the gradients are set to zero, and the moving averages are updated with that. No
    value is copied to the CPU to find out.

    Args:
        params: parameters, or parameter groups; `"rate"` is a factor of a group's learning rate.
        lr: learning rate.
        weight_decay: kernels shrink by this share of `lr` per step.
    """

    # GradScaler then sets `found_inf` here, instead of waiting for the GPU.
    _step_supports_amp_scaling = True

    def __init__(self, params: Iterable, lr: float = 1e-3, weight_decay: float = 0.0):
        # `steps` counts in Python: a tensor on the CPU after resuming would be rounded differently.
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "rate": 1.0, "steps": 0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            group["steps"] += 1
            lr = group["lr"] * group["rate"]
            params = [param for param in group["params"] if param.grad is not None]
            found_inf = getattr(self, "found_inf", None)
            if found_inf is not None:
                # After an overflow: zeros in the place of the gradients, and a step of length zero.
                for param in params:
                    param.grad.masked_fill_(found_inf > 0, 0.0)
                lr = lr * (1 - found_inf)
            kernels = [param for param in params if param.ndim >= 2]
            others = [param for param in params if param.ndim < 2]
            for members, steps_of in ((kernels, self._muon_steps), (others, self._adam_steps)):
                if members:
                    steps = steps_of(members, group)
                    torch._foreach_mul_(steps, lr)
                    torch._foreach_sub_(members, steps)

    def _muon_steps(self, kernels: list[Tensor], group: dict) -> tuple[Tensor, ...]:
        grads: list = [kernel.grad for kernel in kernels]
        momentum = self._averages("momentum", kernels)
        torch._foreach_lerp_(momentum, grads, 0.05)
        steps = torch._foreach_lerp(grads, momentum, 0.95)
        _orthogonalize(steps)
        torch._foreach_mul_(steps, [0.2 * max(_matrix_shape(kernel)) ** 0.5 for kernel in kernels])
        torch._foreach_add_(steps, kernels, alpha=group["weight_decay"])
        return steps

    def _adam_steps(self, params: list[Tensor], group: dict) -> tuple[Tensor, ...]:
        grads: list = [param.grad for param in params]
        momentum = self._averages("momentum", params)
        square = self._averages("square", params)
        torch._foreach_lerp_(momentum, grads, 0.1)
        torch._foreach_lerp_(square, torch._foreach_mul(grads, grads), 0.01)
        steps = torch._foreach_div(momentum, 1 - 0.9 ** group["steps"])
        size = torch._foreach_div(square, 1 - 0.99 ** group["steps"])
        torch._foreach_sqrt_(size)
        torch._foreach_add_(size, 1e-8)
        torch._foreach_div_(steps, size)
        return steps

    def _averages(self, name: str, params: list[Tensor]) -> list[Tensor]:
        """Return the moving average of that name of each parameter: zeros before its first step."""
        for param in params:
            if name not in self.state[param]:
                self.state[param][name] = torch.zeros_like(param)
        return [self.state[param][name] for param in params]


class Adam(torch.optim.AdamW):
    """AdamW, which shrinks biases, too; `"rate"` is a factor of a group's learning rate."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] *= group["rate"]  # the training sets it anew before each step
        return super().step(closure)


def parameter_groups(module: nn.Module, encoder: nn.Module, encoder_rate: float) -> list[dict]:
    """Return the parameters of a module as groups for `Muon` or `Adam`.

    Args:
        module: the network in training.
        encoder: its contracting path.
        encoder_rate: learning rate of the encoder relative to that of the other parameters; 0 for
            the same.
    """
    parameters = list(module.parameters())
    if not encoder_rate:
        return [{"params": parameters, "rate": 1.0}]
    inside = {id(parameter) for parameter in encoder.parameters()}
    others = [parameter for parameter in parameters if id(parameter) not in inside]
    return [
        {"params": others, "rate": 1.0},
        {"params": list(encoder.parameters()), "rate": encoder_rate},
    ]


def _orthogonalize(kernels: tuple[Tensor, ...]) -> None:
    """Bring all singular values of each kernel near 1, in place."""
    norms = torch._foreach_norm(kernels)
    torch._foreach_add_(norms, 1e-7)
    torch._foreach_div_(kernels, norms)
    dtype = compute_dtype(kernels[0].device)
    for members in _batches(kernels):
        batch = members[0].new_zeros(len(members), *_matrix_shape(members[0]), dtype=dtype)
        torch._foreach_copy_(_windows(batch, members), members)
        torch._foreach_copy_(members, _windows(_newton_schulz(batch), members))


def _matrix_shape(kernel: Tensor) -> tuple[int, int]:
    """Return rows and columns of a kernel as a matrix, turned so that the rows are the fewer."""
    sides = len(kernel), kernel.numel() // len(kernel)
    return min(sides), max(sides)


def _batches(kernels: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """Return which kernels share a batch, the largest of a batch first.

    The others are padded with zeros to its size. The iteration keeps these zeros, and they change
    no other value. In all, they add at most a twentieth to the multiplications."""

    def work(rows: int, columns: int) -> int:
        return rows**2 * (2 * columns + rows)

    shapes = {kernel: _matrix_shape(kernel) for kernel in kernels}
    allowed = sum(work(*shape) for shape in shapes.values()) / len(kernels) / 20
    batches: list[list[Tensor]] = []
    for kernel in sorted(kernels, key=lambda kernel: work(*shapes[kernel]), reverse=True):
        rows, columns = shapes[kernel]
        for batch in batches:
            most_rows, most_columns = shapes[batch[0]]
            added = work(most_rows, most_columns) - work(rows, columns)
            if rows <= most_rows and columns <= most_columns and added <= allowed:
                batch.append(kernel)
                break
        else:
            batches.append([kernel])
    return batches


def _windows(batch: Tensor, kernels: list[Tensor]) -> list[Tensor]:
    """Return the place of each kernel in a batch `[kernels, rows, columns]`, as a view in the
    kernel's shape."""
    windows = []
    for matrix, kernel in zip(batch, kernels, strict=True):
        out, columns = len(kernel), kernel.numel() // len(kernel)
        window = matrix[:out, :columns] if out <= columns else matrix.T[:out, :columns]
        # The columns may be in any order. That of the channels-last format is the one in memory.
        windows.append(window.unflatten(1, kernel.movedim(1, -1).shape[1:]).movedim(-1, 1))
    return windows


def _newton_schulz(x: Tensor) -> Tensor:
    """Take five steps of a Newton-Schulz iteration with Muon's coefficients, for each matrix of a
    batch `[kernels, rows, columns]`."""
    # `bmm`, because `@` would copy x.mT where the batch has one matrix.
    if x.dtype == torch.float32:
        # A kernel has about nine times more columns than rows. In float32 all steps are taken with
        # the small x @ x.mT, in half of the time. Half precision has too few digits for the powers
        # of small singular values.
        return torch.bmm(_factor(torch.bmm(x, x.mT), 5), x)
    for _ in range(5):
        gram = torch.bmm(x, x.mT)
        factor = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, factor, x, beta=3.4445)
    return x


def _factor(gram: Tensor, steps: int) -> Tensor:
    """Return the square matrices whose product with `x` is `x` after these steps; `gram` is `x @
    x.mT`."""
    factor = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
    factor.diagonal(dim1=1, dim2=2).add_(3.4445)
    if steps == 1:
        return factor
    after = torch.bmm(torch.bmm(factor, gram), factor)
    return torch.bmm(_factor(after, steps - 1), factor)
