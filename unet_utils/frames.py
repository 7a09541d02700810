"""Photos and label ids of a split in arrays, and batches of them on the device."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unet_utils.augment import to_device
from unet_utils.classes import ClassScheme

HELD_OUT_CITIES = range(2712, 2976)
"""File numbers of weimar and zurich, the last two training cities: files are numbered in the
alphabetical order of the cities. Choices are made on these frames, so that the validation frames
are used only at the end."""


@dataclass(frozen=True)
class Frames:
    """Photos and label ids of a split, or of a part of it.

    Attributes:
        photos: `uint8 [N, H, W, 3]`; 256 x 256 from pairs, any size from other sources.
        label_ids: official label ids, `uint8 [N, H, W]`.
        scheme: turns label ids into class indices.
        numbers: the file number of each frame.
    """

    photos: Tensor
    label_ids: Tensor
    scheme: ClassScheme
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.photos)

    def part(self, keep: slice) -> "Frames":
        """Return a slice of the frames, without a copy."""
        return Frames(self.photos[keep], self.label_ids[keep], self.scheme, self.numbers[keep])

    def batch(
        self, where: slice | Tensor, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Return photos `uint8 [n, 3, H, W]` (channels last in memory) and class indices `uint8 [n,
        H, W]`."""
        photos, label_ids = (
            to_device(array[where], device) for array in (self.photos, self.label_ids)
        )
        return self._encoded(photos, label_ids)

    def batches(
        self, order: Iterable[Tensor], device: torch.device | str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batch of each entry of `order`, indices `int64 [n]`, as `batch` returns it.

        Frames in CPU memory are read ahead: while one batch is used, the next ones are copied to
        the device."""
        if self.photos.device.type != "cpu":
            yield from (
                self.batch(to_device(indices, self.photos.device), device) for indices in order
            )
        else:
            yield from (
                self._encoded(*rows)
                for rows in read_ahead((self.photos, self.label_ids), order, device)
            )

    def _encoded(self, photos: Tensor, label_ids: Tensor) -> tuple[Tensor, Tensor]:
        # Building the table on the GPU would force a synchronization in every batch; a non-blocking
        # copy does not.
        lookup = to_device(torch.tensor(self.scheme.lookup, dtype=torch.uint8), label_ids.device)
        return photos.permute(0, 3, 1, 2), lookup[label_ids.int()]

    def to(self, device: torch.device | str) -> "Frames":
        """Return the frames on a CUDA device, if three quarters of its free memory can hold them;
        else unchanged."""
        if torch.device(device).type != "cuda":
            return self
        if self.photos.nbytes + self.label_ids.nbytes > 0.75 * torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, photos=self.photos.to(device), label_ids=self.label_ids.to(device))

    def split_cities(self) -> tuple["Frames", "Frames"]:
        """Return the training frames and the held-out frames, on which epochs and settings are
        chosen.

        In the Kaggle set the second part is `HELD_OUT_CITIES`. In other sets it is the last tenth,
        at least one frame.

        Raises:
            ValueError: fewer than two frames.
        """
        held = sum(number in HELD_OUT_CITIES for number in self.numbers)
        if not 0 < held < len(self) or self.numbers[-1] not in HELD_OUT_CITIES:
            held = max(1, len(self) // 10)
        if held >= len(self):
            raise ValueError(
                f"{len(self)} frame is too few to hold some out: set hold_out to False (HOLD_OUT)"
            )
        return self.part(slice(None, -held)), self.part(slice(-held, None))

    def label_counts(self) -> Tensor:
        """Count the pixels of each label id, `int64 [256]`."""
        counts = torch.zeros(256, dtype=torch.int64)
        step = max(
            1, 2**22 // self.label_ids[0].numel()
        )  # bincount needs 8 bytes per pixel: not all at the same time
        for start in range(0, len(self), step):
            block = self.label_ids[start : start + step].flatten().int()
            counts += torch.bincount(block, minlength=256).cpu()
        return counts

    def class_counts(self) -> Tensor:
        """Count the pixels of each class, `int64 [C]`, void left out."""
        lookup, counts = torch.tensor(self.scheme.lookup), self.label_counts()
        return torch.zeros_like(counts).index_add(0, lookup, counts)[: self.scheme.num_classes]


def read_ahead(
    arrays: tuple[Tensor, ...], order: Iterable[Tensor], device: torch.device | str
) -> Iterator[list[Tensor]]:
    """Yield rows of memory-mapped arrays, batch after batch, on the device.

    A thread reads two batches ahead, and copies them to a GPU from pinned memory while it computes.

    Args:
        arrays: `uint8 [N, ...]` each, on the CPU.
        order: indices of each batch, `int64 [n]`.
        device: where the rows go.
    """
    device = torch.device(device)
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fetch(indices: Tensor) -> list[Tensor]:
        with torch.cuda.stream(stream):  # does nothing for None
            rows = [
                torch.empty(
                    (len(indices), *array.shape[1:]),
                    dtype=torch.uint8,
                    pin_memory=stream is not None,
                )
                for array in arrays
            ]
            for place in indices.argsort().tolist():  # in the order on the disk
                for target, array in zip(rows, arrays, strict=True):
                    target.numpy()[place] = array[indices[place]].numpy()
            rows = [to_device(target, device) for target in rows]
            if stream:
                stream.synchronize()  # blocks this thread only
        return rows

    def next_rows() -> list[Tensor]:
        rows = ahead.popleft().result()
        if stream:
            for target in rows:
                # Filled in another stream: keep the memory until this one has used it.
                target.record_stream(torch.cuda.current_stream(device))
        return rows

    ahead: deque = deque()
    with ThreadPoolExecutor(1) as pool:
        for indices in order:
            ahead.append(pool.submit(fetch, indices))
            if len(ahead) > 2:
                yield next_rows()
        while ahead:
            yield next_rows()
