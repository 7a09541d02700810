"""The optimizer: Muon for the kernels, Adam for the rest."""

import torch

from unet_utils.model import compute_dtype


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal (https://kellerjordan.github.io/posts/muon), for networks of convolutions.

    A kernel `[out, in, h, w]` is taken as a matrix of `out` rows. Its step has about the size of an AdamW step
    (https://arxiv.org/abs/2502.16982), so one learning rate serves kernels and all else: parameters of fewer
    dimensions (biases, normalisation) are moved by Adam. Decay is decoupled and for kernels only.

    Works with a GradScaler that has unscaled the gradients: a step with a gradient that is not finite is left out,
    without asking the device whether it is.

    Args:
        params: all parameters of a network.
        lr: learning rate.
        weight_decay: share of `lr` that kernels shrink by in a step.
    """

    _step_supports_amp_scaling = True  # GradScaler then leaves `found_inf` here and does not wait for the device

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients; parameters without one stay."""
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            grads = [param.grad for param in params]
            lr = group["lr"]
            if getattr(self, "found_inf", None) is not None:
                # Nothing learned, nothing moved: zeros instead of what overflowed, and a step of length zero.
                grads = [torch.where(self.found_inf > 0, 0.0, grad) for grad in grads]
                lr = lr * (1 - self.found_inf)
            for param, grad in zip(params, grads, strict=True):
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                    if param.ndim < 2:
                        state["square"] = torch.zeros_like(param)
                        state["step"] = torch.zeros((), device=param.device)
                if param.ndim < 2:
                    param.sub_(_adam_step(grad, state) * lr)
                else:
                    state["momentum"].lerp_(grad, 0.05)
                    step = _orthogonal(grad.lerp(state["momentum"], 0.95).flatten(1))
                    size = 0.2 * max(step.shape) ** 0.5
                    param.sub_((step.view_as(param) * size + param * group["weight_decay"]) * lr)


def _adam_step(grad: torch.Tensor, state: dict) -> torch.Tensor:
    state["step"] += 1
    state["momentum"].lerp_(grad, 0.1)
    state["square"].lerp_(grad.square(), 0.01)
    mean, square = (state[name] / (1 - beta ** state["step"]) for name, beta in (("momentum", 0.9), ("square", 0.99)))
    return mean / (square.sqrt() + 1e-8)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with all singular values near 1, by five steps of a Newton-Schulz iteration."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix  # the smaller product
    x = (x / (x.norm() + 1e-7)).to(compute_dtype(x.device))
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)
