"""Arrays that may be larger than memory: written block by block, mapped from disk, streamed to the device."""

import errno
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unet_utils.platform.environment import beside, require_space


def write_missing(
    shapes: dict[Path, tuple[int, ...]],
    blocks: Callable[[set[Path]], Iterable[tuple[slice, dict[Path, np.ndarray]]]],
) -> None:
    """Writes those arrays that are not there yet, block after block; none of them is ever held in memory.

    Args:
        shapes: of each `uint8` array, by its file; all in one folder.
        blocks: given the files that are missing, yields where a block goes and at least their values there.

    Raises:
        OSError: not enough space.
    """
    missing = {file: shape for file, shape in shapes.items() if not file.exists()}
    if not missing:
        return
    # Asked beforehand: a memory map on a full disk does not fail, it ends the process.
    require_space(next(iter(missing)).parent, sum(math.prod(shape) for shape in missing.values()))
    arrays = {file: np.lib.format.open_memmap(beside(file), "w+", np.uint8, shape) for file, shape in missing.items()}
    for where, values in blocks(set(missing)):
        for file, array in arrays.items():
            array[where] = values[file]
    for file, array in arrays.items():
        array.flush()
        os.replace(beside(file), file)  # only a finished array ever has its final name


def mapped(file: Path) -> Tensor:
    """An array on disk as a tensor; pages are read as they are needed, and dropped when memory is.

    What is written to the tensor never reaches the file. A tensor that is too large for that must not be written to.
    """
    try:
        return torch.from_numpy(np.load(file, mmap_mode="c"))  # copy on write
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
    # The system wants memory for every page that might be changed, and has not so much: then none may be.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch knows no tensors that cannot be written to
        return torch.from_numpy(np.load(file, mmap_mode="r"))


def streamed(arrays: tuple[Tensor, ...], order: Iterable[Tensor], device: torch.device | str) -> Iterator[list[Tensor]]:
    """The rows of arrays at these indices, batch after batch, on the device.

    While one batch is used, a thread reads the next two, and copies them to a GPU from pinned memory, beside what it
    computes.

    Args:
        arrays: `uint8 [N, ...]` each, mapped from disk.
        order: indices of each batch, `int64 [n]`.
        device: where the rows go.
    """
    device = torch.device(device)
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fetch(indices: Tensor) -> list[Tensor]:
        with torch.cuda.stream(stream):  # None means nothing
            rows = [
                torch.empty((len(indices), *array.shape[1:]), dtype=torch.uint8, pin_memory=stream is not None)
                for array in arrays
            ]
            for place in indices.argsort().tolist():  # in the order in which they lie on the disk
                for target, array in zip(rows, arrays, strict=True):
                    target.numpy()[place] = array[indices[place]].numpy()
            rows = [target.to(device, non_blocking=True) for target in rows]
            if stream:
                stream.synchronize()  # in this thread, where nobody else waits
        return rows

    def hand_over() -> list[Tensor]:
        rows = ahead.popleft().result()
        for target in rows if stream else ():
            target.record_stream(torch.cuda.current_stream(device))  # its memory is in use until that is done with it
        return rows

    ahead: deque = deque()
    with ThreadPoolExecutor(1) as pool:
        for indices in order:
            ahead.append(pool.submit(fetch, indices))
            if len(ahead) > 2:
                yield hand_over()
        while ahead:
            yield hand_over()
