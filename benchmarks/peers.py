"""Other ways of doing the same work: the widely copied recipe and plain textbook code, rewritten
from descriptions."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from unet_utils import IGNORE, Frames
from unet_utils.device import compute_dtype
from unet_utils.encoders import MEAN, STD


def copied_colors(clusters: int = 10, colors: int = 1000) -> KMeans:
    """Return the label model of the copied recipe: k-means over random colours, not those of the
    data (seeded here)."""
    random = np.random.default_rng(0).integers(0, 256, (colors, 3)).astype(float)
    return KMeans(clusters, n_init=10, random_state=0).fit(random)


def copied_pair(path: Path, label_model: KMeans) -> tuple[np.ndarray, np.ndarray]:
    """Read a file as in the copied recipe: photo `uint8 [256, 256, 3]`, cluster of each pixel
    `int32 [256, 256]`."""
    pixels = np.array(Image.open(path).convert("RGB"))
    photo, mask = pixels[:, :256], pixels[:, 256:]
    return photo, label_model.predict(mask.reshape(-1, 3).astype(float)).reshape(256, 256)


class CopiedDataset(Dataset):
    """The dataset of the copied recipe: Pillow and k-means for every item in every epoch, float32
    photos."""

    def __init__(self, paths: list[Path], image_size: int):
        self.paths = paths
        self.image_size = image_size
        self.label_model = copied_colors()
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
                v2.Resize(image_size),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return photo `float32 [3, S, S]` and clusters `int64 [S, S]`."""
        photo, clusters = copied_pair(self.paths[index], self.label_model)
        chosen = np.arange(self.image_size) * 256 // self.image_size
        return self.transform(photo.copy()), torch.from_numpy(
            clusters[np.ix_(chosen, chosen)]
        ).long()


class CopiedDoubleConv(nn.Sequential):
    """The block of the copied recipe: two convolutions with batch normalization, but a single ReLU
    at the end."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class MilesialDoubleConv(nn.Sequential):
    """(convolution, batch normalization, ReLU) * 2, as in the popular milesial/Pytorch-UNet."""

    def __init__(self, in_channels: int, out_channels: int):
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class PlainUNet(nn.Module):
    """The textbook U-Net with four halvings, max pooling and transposed convolutions.

    Args:
        num_classes: channels of the logits.
        width: channels of the first level.
        block: class of the block at each level.
    """

    def __init__(self, num_classes: int, width: int, block: type[nn.Module] = MilesialDoubleConv):
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(block(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[-2::-1])
        self.join = nn.ModuleList(block(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, num_classes, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)


class NamedClusters(nn.Module):
    """The trained network of the copied recipe, whose clusters have no names: each counts as the
    most frequent class of its pixels.

    Args:
        network: returns the logits of the clusters.
        dataset: what it learned from.
        frames: the same photos, with labels.
        clusters: how many.
    """

    def __init__(self, network: nn.Module, dataset: CopiedDataset, frames: Frames, clusters: int):
        super().__init__()
        self.network = network
        self.num_classes = frames.scheme.num_classes
        seen = torch.zeros(clusters, 256, dtype=torch.int64)
        for index in range(0, len(frames), max(1, len(frames) // 64)):
            found = torch.from_numpy(copied_pair(dataset.paths[index], dataset.label_model)[1])
            labels = frames.batch(slice(index, index + 1))[1][0].long()
            pairs = (found.long() * 256 + labels).flatten()
            seen += torch.bincount(pairs, minlength=seen.numel()).view_as(seen)
        seen[:, IGNORE] = 0
        self.classes = seen.argmax(1).tolist()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the classes: the highest one of the clusters that count as the class."""
        clusters = self.network(x)
        batch, _, height, width = clusters.shape
        logits = clusters.new_full((batch, self.num_classes, height, width), -1e4)
        for cluster, index in enumerate(self.classes):
            logits[:, index] = torch.maximum(logits[:, index], clusters[:, cluster])
        return logits


class TextbookDataset(Dataset):
    """Photos from JPEG files, labels from an array (decoded already), transforms of
    torchvision.transforms.v2."""

    def __init__(self, paths: list[Path], frames: Frames, image_size: int):
        self.paths = paths
        self.label_ids = frames.label_ids
        self.lookup = torch.tensor(frames.scheme.lookup)
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(
                    image_size, scale=(0.25, 1.0), ratio=(1.0, 1.0), antialias=True
                ),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.3, 0.3, 0.3),
                v2.ToDtype(
                    {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None},
                    scale=True,
                ),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return photo `float32 [3, S, S]` and class indices `int64 [S, S]`."""
        with Image.open(self.paths[index]) as image:
            photo = v2.functional.pil_to_tensor(image.crop((0, 0, 256, 256)))
        labels = self.lookup[self.label_ids[index].int()]
        return tuple(self.transform(tv_tensors.Image(photo), tv_tensors.Mask(labels)))


class OneByOne(torch.optim.Optimizer):
    """The steps of `unet_utils.optimizer.Muon` as most would write them: one parameter after
    another."""

    def __init__(self, params: Iterable, lr: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                    state["square"] = torch.zeros_like(param)
                    state["step"] = torch.zeros((), device=param.device)
                if param.ndim >= 2:
                    state["momentum"].lerp_(param.grad, 0.05)
                    nesterov = param.grad.lerp(state["momentum"], 0.95)
                    matrix = _orthogonal(nesterov.flatten(1))
                    step = matrix.view_as(param) * (0.2 * max(matrix.shape) ** 0.5)
                    step += param * group["weight_decay"]
                else:
                    state["step"] += 1
                    state["momentum"].lerp_(param.grad, 0.1)
                    state["square"].lerp_(param.grad.square(), 0.01)
                    mean = state["momentum"] / (1 - 0.9 ** state["step"])
                    square = state["square"] / (1 - 0.99 ** state["step"])
                    step = mean / (square.sqrt() + 1e-8)
                param.sub_(step * group["lr"])


def _orthogonal(matrix: Tensor) -> Tensor:
    """Bring all singular values near 1, by Muon's iteration; in float32 with the small square
    matrices, as in the package."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).to(compute_dtype(x.device))
    steps = 5 if x.dtype == torch.float32 else 1
    for _ in range(5 // steps):
        x = _factor(x @ x.T, steps) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def _factor(gram: Tensor, steps: int) -> Tensor:
    factor = 2.0315 * gram @ gram - 4.7750 * gram
    factor.diagonal().add_(3.4445)
    return factor if steps == 1 else _factor(factor @ gram @ factor, steps - 1) @ factor


class Trainer:
    """The training loop of a tutorial: forward, cross-entropy, backward, step.

    Args:
        model: the network, on its device and in its memory format.
        optimizer: of its parameters.
        autocast: called with the device, returns the context of the forward pass.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, autocast: Callable):
        self.model = model.train()
        self.optimizer = optimizer
        self.autocast = autocast
        self.device = next(model.parameters()).device
        self.loss = nn.CrossEntropyLoss(ignore_index=IGNORE)

    def step(self, photos: Tensor, labels: Tensor) -> None:
        """Take one step on a batch."""
        with self.autocast(self.device):
            loss = self.loss(self.model(photos.to(self.device)).float(), labels.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()  # tutorials print it

    def epoch(self, loader: DataLoader | Iterator) -> None:
        """Take a step on each batch."""
        for photos, labels in loader:
            self.step(photos, labels)

    def train(self, loader: DataLoader, epochs: int, seconds: float) -> float:
        """Train for some epochs, or until the time is up; return the seconds that it took."""
        start = time.perf_counter()
        for _ in range(epochs):
            for photos, labels in loader:
                self.step(photos, labels)
                if time.perf_counter() - start >= seconds:
                    return time.perf_counter() - start
        return time.perf_counter() - start
