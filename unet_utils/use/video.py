"""Segment a video: the original at the left, the classes blended over it at the right.

The program ffmpeg reads videos and writes MP4. Without it, animated images and folders of frames
are read, and the result is a folder of frames and an animated WebP."""

import base64
import contextlib
import itertools
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unet_utils.evaluation import Trained, predict_classes
from unet_utils.pictures import read_photo
from unet_utils.platform.environment import Environment, progress_bar
from unet_utils.platform.files import list_folder, publishing, replacing, typed, user_path
from unet_utils.use.ffmpeg import LARGEST, Clip, find_encoder, read_video, write_mp4
from unet_utils.use.photos import drawn_street, free_name

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
    *(".wmv", ".3gp", ".mts", ".m2ts", ".flv", ".ogv"),
)
ANIMATIONS = (".gif", ".webp", ".png", ".apng")
FRAMES = (".jpg", ".jpeg", ".png")
FOLDER_RATE = 25.0  # frames per second of a folder of frames
GPU_BATCH = 8  # frames; on a CPU one at a time is as fast, and takes less memory
MOST_TO_SHOW = 40 * 2**20  # bytes


def is_video(path: str | Path) -> bool:
    """Return whether a file is a video or an animated image."""
    suffix = Path(path).suffix.lower()
    if suffix in ANIMATIONS:
        with contextlib.suppress(Exception), Image.open(user_path(path)) as image:
            return getattr(image, "n_frames", 1) > 1
    return suffix in VIDEOS


def choose_video(path: str, env: Environment) -> Path:
    """Return the path of a video to segment.

    Args:
        path: of a video or a folder of frames; "" is a clip drawn by this package, one second in
            which the camera pans over a street.
        env: of the notebook; the drawn frames are saved in `env.data`.
    """
    if typed(path):
        return user_path(path)
    street, _ = drawn_street()
    folder = env.data / "drawn-clip"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(round(FOLDER_RATE)):
        left = 16 * number
        with replacing(folder / f"{number:02}.jpg") as file:
            Image.fromarray(street[:, left : left + 640]).save(file, format="JPEG", quality=92)
    print("This is a clip drawn by this package. For a video of your own set VIDEO to its path.")
    return folder


def segment_video(
    trained: Trained,
    path: str | Path,
    out: str | Path,
    flip: bool = False,
    max_seconds: float | None = None,
) -> Path:
    """Segment a video frame by frame, and write the frames and their classes side by side as a
    video.

    With an ffmpeg that has one of `ffmpeg.ENCODERS` the result is `NAME-segmented.mp4`, which
    browsers play, otherwise the folder `NAME-segmented` of frames and `NAME-segmented.webp`. The
    frame rate is kept; sound is not. Existing files are not overwritten: a number is added to the
    name.

    Args:
        trained: the model.
        path: a video (needs ffmpeg), an animated GIF, WebP or PNG, or a folder of JPEG or PNG
            frames in natural order.
        out: folder of the result, made if missing.
        flip: as in `evaluation.predict`.
        max_seconds: stop after this part of the video.

    Returns:
        The path of the video or of the animated WebP.

    Raises:
        FileNotFoundError: `path` does not exist, or is a folder without frames.
        ValueError: it is an address, or cannot be read as a video; or its end cannot be read: then
            the message names the result of what was read.
        RuntimeError: ffmpeg is needed and missing, or cannot write the result.
    """
    path = user_path(path)
    out = user_path(out)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}: check the path")
    if path.is_dir():
        clip = _open_folder(path)
    elif path.suffix.lower() in ANIMATIONS and is_video(path):
        clip = _open_animation(path)
    else:
        clip = read_video(path)
    most = None if max_seconds is None else max(1, round(max_seconds * clip.rate))
    total = min(filter(None, (most, clip.length)), default=None)
    problem = None

    def readable() -> Iterator[np.ndarray]:
        nonlocal problem
        try:
            yield from itertools.islice(clip.frames, most)
        except ValueError as error:  # must not lose what was read before
            problem = error

    bar = progress_bar(total=total, desc=path.name, unit="frame")
    with bar, contextlib.closing(clip.frames):
        pairs = _side_by_side(trained, readable(), flip, bar.update)
        first = next(pairs, None)
        if first is None:
            raise problem or ValueError(f"{path} has no frame that can be read")
        out.mkdir(parents=True, exist_ok=True)
        name = f"{path.name if path.is_dir() else path.stem}-segmented"
        name = free_name(out, name, ["", ".mp4", ".webp"])
        encoder = find_encoder(shutil.which("ffmpeg"))
        target = out / (name + (".mp4" if encoder else ".webp"))
        frames = itertools.chain([first], pairs)
        if encoder:
            write_mp4(frames, clip.rate, target, encoder)
        else:
            _write_images(frames, clip.rate, target)
    if problem:
        raise ValueError(f"{problem}. What was read before is in {target}") from problem
    return target


def _side_by_side(
    trained: Trained, frames: Iterator[np.ndarray], flip: bool, done: Callable[[int], object]
) -> Iterator[np.ndarray]:
    """Yield each frame beside its overlay, `uint8 [H, 2 W, 3]`; frames are predicted in batches."""
    count = GPU_BATCH if next(trained.model.parameters()).is_cuda else 1
    while batch := list(itertools.islice(frames, count)):
        photos = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
        height, width = photos.shape[2:]
        size = trained.photo_size(height, width)
        classes = predict_classes(trained.model, photos, size, flip).cpu().numpy()
        for frame, found in zip(batch, classes, strict=True):
            yield np.concatenate([frame, trained.scheme.overlay(frame, found)], axis=1)
        done(len(batch))


def _open_folder(folder: Path) -> Clip:
    files = [file for file in list_folder(folder) if file.suffix.lower() in FRAMES]
    if not files:
        raise FileNotFoundError(f"no JPEG or PNG frame in {folder}")
    images = (Image.fromarray(read_photo(file)) for file in files)
    return Clip(_same_size(images), FOLDER_RATE, len(files))


def _open_animation(path: Path) -> Clip:
    """Open an animated image with Pillow, one frame in memory at a time."""
    with Image.open(path) as image:
        count = getattr(image, "n_frames", 1)
        milliseconds = 0.0
        for number in range(count):  # each frame has a duration of its own
            image.seek(number)
            image.load()
            milliseconds += image.info.get("duration", 0)

    def frames() -> Iterator[Image.Image]:
        with Image.open(path) as image:
            for number in range(count):
                image.seek(number)
                yield image.convert("RGB")

    # Browsers show an animation without durations at 10 frames per second.
    rate = 1000 * count / milliseconds if milliseconds else 10.0
    return Clip(_same_size(frames()), rate, count)


def _same_size(images: Iterator[Image.Image]) -> Generator[np.ndarray, None, None]:
    """Yield pixels at the size of the first image: at most `LARGEST`, both sides even."""
    size = None
    for image in images:
        if size is None:
            scale = min(1, LARGEST[0] / image.width, LARGEST[1] / image.height)
            width = max(2, round(image.width * scale / 2) * 2)
            height = max(2, round(image.height * scale / 2) * 2)
            size = width, height
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        yield np.array(image)


class _FrameFiles(Image.Image):
    """An image whose frames are read from files when they are needed: Pillow would keep a list of
    images in memory."""

    def __init__(self, files: list[Path]):
        super().__init__()
        self.files = files
        self.n_frames = len(files)
        self.seek(0)

    def seek(self, frame: int) -> None:
        with Image.open(self.files[frame]) as file:
            image = file.convert("RGB")
        self.im = image.im
        self._mode = image.mode
        self._size = image.size


def _write_images(frames: Iterator[np.ndarray], rate: float, target: Path) -> None:
    """Write a folder of JPEG frames, and from it an animated WebP."""
    with publishing(target.with_suffix("")) as folder:
        files = []
        for number, frame in enumerate(frames, 1):
            files.append(folder / f"{number:06}.jpg")
            Image.fromarray(frame).save(files[-1], quality=92)
        milliseconds = round(1000 / rate)
        with replacing(target) as unfinished:
            animation = _FrameFiles(files)
            animation.save(unfinished, save_all=True, duration=milliseconds, loop=0, quality=75)


def show_video(path: str | Path):
    """Return an object that plays a result of `segment_video` in a notebook, without a link to the
    file."""
    from IPython.display import HTML

    path = user_path(path)
    if (size := path.stat().st_size) > MOST_TO_SHOW:
        return HTML(f"The video is too large to be shown here ({size / 2**20:.0f} MB): {path}")
    data = base64.b64encode(path.read_bytes()).decode()
    style = 'style="max-width: 100%"'
    if path.suffix == ".webp":
        return HTML(f'<img src="data:image/webp;base64,{data}" {style} alt="segmented video">')
    source = f'src="data:video/mp4;base64,{data}"'
    return HTML(f"<video autoplay controls loop muted playsinline {style} {source}></video>")
