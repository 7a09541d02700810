"""What each section of `use.self_check` gets: a device, a folder, and drawn street scenes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unet_utils.classes import LABELS, get_scheme
from unet_utils.dataset import CityscapesPairs
from unet_utils.demo.street import draw_scene
from unet_utils.device import compute_dtype
from unet_utils.frames import Frames
from unet_utils.restoring import SIDE, damage, reference_checksums, shrink

SCENES = "scenes.npz"


@dataclass
class Job:
    """A section's work, and where its findings go.

    Attributes:
        device: what is checked.
        folder: of this section's files, and of the drawn scenes.
        send: takes what is found: its kind ("figure", "detail" or "fault") and a sentence.
    """

    device: torch.device
    folder: Path
    send: Callable[[tuple[str, str]], None]

    @property
    def is_small(self) -> bool:
        """Whether a CPU is checked, which takes much longer."""
        return self.device.type == "cpu"

    @property
    def is_cuda(self) -> bool:
        """Whether this is a GPU of NVIDIA or AMD, about which torch can tell most."""
        return self.device.type == "cuda"

    def say(self, text: str) -> None:
        """Report a figure for the table."""
        self.send(("figure", text))

    def expect(self, holds: bool, text: str) -> None:
        """Report a figure, and that it is not ok unless it `holds`."""
        self.send(("figure" if holds else "fault", text))

    def precisions(self) -> list[torch.dtype]:
        """Return float32, and the data types of half precision that are of use on the device."""
        if self.is_small:
            return [torch.float32, torch.float16, torch.bfloat16]
        usual = compute_dtype(self.device)
        older = [torch.float16] * (usual == torch.bfloat16)
        return list(dict.fromkeys([torch.float32, *older, usual]))

    def frames(self, count: int) -> Frames:
        """Return drawn frames, some of them more than once, in the CPU's memory."""
        with np.load(self.folder / SCENES) as scenes:
            which = np.arange(count) % len(scenes["photos"])
            photos = torch.from_numpy(scenes["photos"][which])
            label_ids = torch.from_numpy(scenes["label_ids"][which])
        numbers = tuple(range(1, count + 1))
        return Frames(photos, label_ids, get_scheme("cityscapes19"), numbers)

    def masks(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return masks, and the checksums of their reference labels: none for those of drawn
        scenes."""
        with np.load(self.folder / SCENES) as scenes:
            return scenes["masks"][:count], scenes["expected"][:count]


def draw_scenes(folder: Path, count: int, root: Path | None = None) -> None:
    """Draw street scenes for all sections.

    Args:
        folder: where they go.
        count: how many.
        root: folder of the real pairs, whose masks are then restored in the place of drawn ones.
    """
    colors = np.array([label.color for label in LABELS], dtype=np.uint8)
    photos, label_ids, masks = [], [], []
    for number in range(count):
        photo, labels = draw_scene(np.random.default_rng(number))
        photos.append(shrink(photo))
        rows, columns = len(labels) // SIDE, labels.shape[1] // SIDE
        label_ids.append(labels[rows // 2 :: rows, columns // 2 :: columns])
        if not root:
            masks += [damage(colors[turned]) for turned in (labels, labels[:, ::-1], labels[::-1])]
    expected = np.zeros(0, dtype=np.uint32)
    if root:
        pairs = CityscapesPairs(root, "train")
        masks = [mask.permute(1, 2, 0).numpy() for _, mask in map(pairs.__getitem__, range(256))]
        known = reference_checksums(pairs.fingerprint)
        if known is not None:
            expected = known[: len(masks)]
    np.savez(
        folder / SCENES,
        photos=np.stack(photos),
        label_ids=np.stack(label_ids),
        masks=np.stack(masks),
        expected=expected,
    )
