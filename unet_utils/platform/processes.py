"""The processes that train together: here, one."""

from collections.abc import Callable

from torch import Tensor, nn


class SingleProcess:
    """What the training loop asks of the processes that train together. `use.distributed` has the
    one for several.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
    """

    rank, size = 0, 1

    def part(self, n: int, block: int = 1) -> slice:
        """Return which of `n` things this process takes: an equal, contiguous part, of whole
        blocks."""
        blocks = -(-n // block)
        first, end = (
            min(n, blocks * rank // self.size * block) for rank in (self.rank, self.rank + 1)
        )
        return slice(first, end)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return tensor

    def once(self, function: Callable, *args) -> None:
        """Call a function in the first process, while the others wait."""
        function(*args)

    def in_turn(self, function: Callable):
        """Call a function in the first process, then in the others, which find its files on
        disk."""
        return function()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients that are the mean over all processes."""
        return module

    def share_buffers(self, *models: nn.Module) -> None:
        """Give all processes the running statistics of the first one."""
