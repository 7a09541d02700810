"""The optimizer: Muon for the kernels, Adam for everything else."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from unet_utils.device import compute_dtype


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized steps (https://kellerjordan.github.io/posts/muon), for
    convolutional networks.

    A kernel `[out, in, h, w]` is treated as a matrix with `out` rows. The root mean square of its
    step is that of an AdamW step (https://arxiv.org/abs/2502.16982), so one learning rate serves
    kernels and everything else: parameters with one dimension (biases, normalization) are updated
    by Adam. Weight decay is decoupled, for kernels only.

    Works with a GradScaler that has unscaled the gradients: after an overflow the weights stay
    unchanged, and the moving averages are updated as for a zero gradient. No value is copied to the
    CPU to find out.

    Args:
        params: parameters, or parameter groups; `"rate"` is a factor of a group's learning rate.
        lr: learning rate.
        weight_decay: kernels shrink by this share of `lr` per step.
    """

    _step_supports_amp_scaling = (
        True  # GradScaler then sets `found_inf` here, instead of waiting for the GPU
    )

    def __init__(self, params: Iterable, lr: float = 1e-3, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "rate": 1.0})

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # checkpoints before version 0.2 have groups without a rate
            group.setdefault("rate", 1.0)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            grads = [param.grad for param in params]
            lr = group["lr"] * group["rate"]
            found_inf = getattr(self, "found_inf", None)
            if found_inf is not None:
                # After an overflow: zeros in the place of the gradients, and a step of length zero.
                grads = [torch.where(found_inf > 0, 0.0, grad) for grad in grads]
                lr = lr * (1 - found_inf)
            for param, grad in zip(params, grads, strict=True):
                is_kernel = param.ndim >= 2
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                    if not is_kernel:
                        state["square"] = torch.zeros_like(param)
                        state["step"] = torch.zeros((), device=param.device)
                if is_kernel:
                    state["momentum"].lerp_(grad, 0.05)
                    matrix = _orthogonal(grad.lerp(state["momentum"], 0.95).flatten(1))
                    step = matrix.view_as(param) * (0.2 * max(matrix.shape) ** 0.5)
                    step += param * group["weight_decay"]
                else:
                    step = _adam_step(grad, state)
                param.sub_(step * lr)


def parameter_groups(module: nn.Module, encoder: nn.Module, encoder_rate: float) -> list[dict]:
    """Return the parameters of a module as groups for `Muon`.

    Args:
        module: the network in training.
        encoder: its contracting path.
        encoder_rate: learning rate of the encoder relative to that of the other parameters; 0 for
            the same.
    """
    parameters = list(module.parameters())
    if not encoder_rate:
        return [{"params": parameters}]
    inside = {id(parameter) for parameter in encoder.parameters()}
    return [
        {"params": [parameter for parameter in parameters if id(parameter) not in inside]},
        {"params": list(encoder.parameters()), "rate": encoder_rate},
    ]


def _adam_step(grad: Tensor, state: dict) -> Tensor:
    state["step"] += 1
    state["momentum"].lerp_(grad, 0.1)
    state["square"].lerp_(grad.square(), 0.01)
    mean, square = (
        state[name] / (1 - beta ** state["step"])
        for name, beta in (("momentum", 0.9), ("square", 0.99))
    )
    return mean / (square.sqrt() + 1e-8)


def _orthogonal(matrix: Tensor) -> Tensor:
    """Bring all singular values near 1, by five steps of a Newton-Schulz iteration with Muon's
    coefficients."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix  # the smaller product
    x = (x / (x.norm() + 1e-7)).to(compute_dtype(x.device))
    # A kernel has about nine times more columns than rows. In float32 all steps are taken with the
    # small x @ x.T, in half of the time. Half precision has too few digits for the powers of small
    # singular values.
    steps = 5 if x.dtype == torch.float32 else 1
    for _ in range(5 // steps):
        x = _newton_schulz(x @ x.T, steps) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def _newton_schulz(gram: Tensor, steps: int) -> Tensor:
    """Return the square matrix whose product with `x` is `x` after these steps; `gram` is `x @
    x.T`."""
    factor = 2.0315 * gram @ gram - 4.7750 * gram
    factor.diagonal().add_(3.4445)
    return factor if steps == 1 else _newton_schulz(factor @ gram @ factor, steps - 1) @ factor
