"""Photos and label ids of a split in arrays, and batches of them on the device."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unet_utils.classes import ClassScheme
from unet_utils.images import to_device

HELD_OUT_CITIES = range(2712, 2976)
"""File numbers of weimar and zurich, the last two training cities: files are numbered in the
alphabetical order of the cities. Choices are made on these frames, so that the validation frames
are used only at the end."""


@dataclass(frozen=True)
class Frames:
    """Photos and label ids of a split, or of a part of it.

    Attributes:
        photos: `uint8 [N, H, W, 3]`; 256 x 256 from pairs, any size from other sources.
        label_ids: official label ids, or the values of masks of one's own, `uint8 [N, H, W]`.
        scheme: turns label ids into class indices.
        numbers: the file number of each frame.
        data: fingerprint of the files of the split; empty if they are not known.
        labels: how masks became labels, see `restoring.METHODS`; `own` for masks of one's own.
        licence: what a model that learns from these frames may be used for; empty for anything.
        source: fingerprint of the training split of the same data; empty if it is not known.
    """

    photos: Tensor
    label_ids: Tensor
    scheme: ClassScheme
    numbers: tuple[int, ...]
    data: str = ""
    labels: str = "restored"
    licence: str = ""
    source: str = ""

    def __len__(self) -> int:
        return len(self.photos)

    def part(self, keep: slice) -> "Frames":
        """Return a slice of the frames, without a copy."""
        return replace(
            self,
            photos=self.photos[keep],
            label_ids=self.label_ids[keep],
            numbers=self.numbers[keep],
        )

    def batch(
        self, where: slice | Tensor, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Return some of the frames, on the device.

        Args:
            where: which frames, a slice or indices `int64 [n]`.
            device: where they go.

        Returns:
            photos `uint8 [n, 3, H, W]` (channels last in memory), class indices `uint8 [n, H, W]`.
        """
        photos = to_device(self.photos[where], device)
        return self._encoded(photos, to_device(self.label_ids[where], device))

    def spread(self, count: int) -> Tensor:
        """Return the indices of up to `count` evenly spaced frames, `int64 [n]`."""
        return torch.linspace(0, len(self) - 1, min(count, len(self))).long()

    def batches(
        self, order: Iterable[Tensor], device: torch.device | str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batch of each entry of `order`, indices `int64 [n]`, as `batch` returns it.

        Frames in CPU memory are read ahead: while one batch is used, the next ones are copied to
        the device.
        """
        if self.photos.device.type != "cpu":
            for indices in order:
                yield self.batch(to_device(indices, self.photos.device), device)
        else:
            for photos, label_ids in read_ahead((self.photos, self.label_ids), order, device):
                yield self._encoded(photos, label_ids)

    def _encoded(self, photos: Tensor, label_ids: Tensor) -> tuple[Tensor, Tensor]:
        # A table made on the GPU would make the host wait in every batch; this copy does not.
        lookup = to_device(torch.tensor(self.scheme.lookup, dtype=torch.uint8), label_ids.device)
        return photos.permute(0, 3, 1, 2), lookup[label_ids.int()]

    def to(self, device: torch.device | str) -> "Frames":
        """Return the frames on a CUDA device, if they fit in a quarter of its free memory; else
        unchanged.

        The rest is for the training, whose memory is not known before its first step. Frames that
        stay on the CPU are read ahead.
        """
        if torch.device(device).type != "cuda":
            return self
        if self.photos.nbytes + self.label_ids.nbytes > 0.25 * torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, photos=self.photos.to(device), label_ids=self.label_ids.to(device))

    def split(self, hold_out: bool) -> tuple["Frames", "Frames | None"]:
        """Return the frames to learn from, and the held-out frames to choose epochs and settings.

        In the Kaggle set the held-out frames are those of `HELD_OUT_CITIES`. In other sets they are
        the last tenth, at least one frame.

        Args:
            hold_out: False keeps nothing out.

        Raises:
            ValueError: there is a single frame, and one has to be held out.
        """
        if not hold_out:
            return self, None
        held = 0
        if self.labels != "own":
            held = sum(number in HELD_OUT_CITIES for number in self.numbers)
        # Another set may have these numbers, too, but not as its last ones.
        if not 0 < held < len(self) or self.numbers[-1] not in HELD_OUT_CITIES:
            held = max(1, len(self) // 10)
        if held >= len(self):
            raise ValueError(
                f"{len(self)} frame is too few to hold some out: set hold_out to False"
            )
        return self.part(slice(None, -held)), self.part(slice(-held, None))

    def label_counts(self) -> Tensor:
        """Count the pixels of each label id, `int64 [256]`."""
        counts = torch.zeros(256, dtype=torch.int64)
        # bincount needs 8 bytes per pixel: not all at the same time.
        step = max(1, 2**22 // self.label_ids[0].numel())
        for start in range(0, len(self), step):
            block = self.label_ids[start : start + step].flatten().int()
            counts += torch.bincount(block, minlength=256).cpu()
        return counts

    def label_hash(self) -> str:
        """Return 16 hexadecimal digits that identify the label ids of these frames."""
        digest = hashlib.blake2b(digest_size=8)
        for label_ids in self.label_ids:
            digest.update(label_ids.cpu().numpy().tobytes())
        return digest.hexdigest()

    def class_counts(self) -> Tensor:
        """Count the pixels of each class, `int64 [C]`, void left out."""
        counts = self.label_counts()
        lookup = torch.tensor(self.scheme.lookup)
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
        place = indices.argsort()  # read in the order on the disk
        with torch.cuda.stream(stream):  # does nothing for None
            rows = []
            for array in arrays:
                shape = (len(indices), *array.shape[1:])
                target = torch.empty(shape, dtype=torch.uint8, pin_memory=stream is not None)
                target[place] = array[indices[place]]
                rows.append(to_device(target, device))
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
