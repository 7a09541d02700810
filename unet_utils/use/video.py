"""Segment a video: the original at the left, the classes blended over it at the right.

The program ffmpeg reads videos and writes MP4. Without it, animated images and folders of frames
are read, and the result is a folder of frames and an animated WebP."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from unet_utils.evaluation import Trained, predict_classes
from unet_utils.images import photo_size
from unet_utils.platform.environment import progress_bar
from unet_utils.platform.files import publishing, replacing, user_path

VIDEOS = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".3gp",
    ".mts",
    ".flv",
    ".ogv",
)
ANIMATIONS = (".gif", ".webp", ".png", ".apng")
FRAMES = (".jpg", ".jpeg", ".png")
LARGEST = 960, 540
"""Width and height of a frame; larger frames are reduced, so that memory and the size of the result
are bounded."""
FOLDER_RATE = 25.0  # frames per second of a folder of frames
GPU_BATCH = 8  # frames; on a CPU one at a time is as fast, and takes less memory
MOST_TO_SHOW = 40 * 2**20  # bytes
FFMPEG_ADVICE = (
    "install it (apt-get install ffmpeg, brew install ffmpeg or winget install ffmpeg; Colab and Kaggle have it), or "
    "give a folder of frames or an animated GIF"
)


class Clip(NamedTuple):
    """A video to read."""

    frames: Iterator[np.ndarray]  # uint8 [H, W, 3], all of one size; H and W are even
    rate: float  # frames per second
    length: int | None  # number of frames, if known


def is_video(path: str | Path) -> bool:
    """Return whether a file is a video or an animated image."""
    suffix = Path(path).suffix.lower()
    if suffix in ANIMATIONS:
        with contextlib.suppress(Exception), Image.open(user_path(path)) as image:
            return getattr(image, "n_frames", 1) > 1
    return suffix in VIDEOS


def segment_video(
    trained: Trained,
    path: str | Path,
    out: str | Path,
    flip: bool = False,
    progress: bool = True,
    max_seconds: float | None = None,
) -> Path:
    """Segment a video frame by frame, and write the frames and their classes side by side as a
    video.

    With the programs ffmpeg and ffprobe on the PATH the result is `NAME-segmented.mp4` (H.264,
    which browsers play), otherwise the folder `NAME-segmented` of frames and `NAME-segmented.webp`.
    The frame rate is kept; sound is not.
    Existing files are not overwritten: a number is added to the name.

    Args:
        trained: the model.
        path: a video (needs ffmpeg), an animated GIF, WebP or PNG, or a folder of JPEG or PNG
            frames in alphabetical order.
        out: folder of the result, made if missing.
        flip: as in `evaluation.predict`.
        progress: show a bar.
        max_seconds: stop after this part of the video.

    Returns:
        The path of the video or of the animated WebP.

    Raises:
        FileNotFoundError: `path` does not exist, or is a folder without frames.
        ValueError: it is an address, or cannot be read as a video.
        RuntimeError: ffmpeg is needed and missing, or cannot write the result.
    """
    path, out = user_path(path), user_path(out)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}")
    has_ffmpeg = bool(shutil.which("ffmpeg") and shutil.which("ffprobe"))
    with contextlib.ExitStack() as stack:
        if path.is_dir() or (path.suffix.lower() in ANIMATIONS and is_video(path)):
            clip = _open_images(path)
        elif has_ffmpeg:
            clip = _open_video(path, stack)
        else:
            raise RuntimeError(f"ffmpeg is needed to read {path.name}: {FFMPEG_ADVICE}")
        frames, length = clip.frames, clip.length
        if max_seconds is not None:
            most = max(1, round(max_seconds * clip.rate))
            frames, length = itertools.islice(frames, most), min(most, length or most)
        bar = stack.enter_context(
            progress_bar(total=length, desc=path.name, unit="frame", disable=not progress)
        )
        pairs = _side_by_side(trained, frames, flip, bar.update)
        first = next(pairs, None)
        if first is None:
            raise ValueError(
                f"{path} has no frame that can be read: give a video or a folder of frames"
            )
        out.mkdir(parents=True, exist_ok=True)
        name = path.stem if path.is_file() else path.name
        target = _free_path(out, f"{name}-segmented", ".mp4" if has_ffmpeg else ".webp")
        (_write_mp4 if has_ffmpeg else _write_images)(
            itertools.chain([first], pairs), clip.rate, target
        )
    return target


def _side_by_side(
    trained: Trained, frames: Iterator[np.ndarray], flip: bool, done
) -> Iterator[np.ndarray]:
    """Yield each frame beside its overlay, `uint8 [H, 2 W, 3]`; frames are predicted in batches."""
    count = GPU_BATCH if next(trained.model.parameters()).is_cuda else 1
    while batch := list(itertools.islice(frames, count)):
        photos = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
        size = photo_size(
            photos.shape[2], photos.shape[3], trained.scene_size, trained.model.divisor
        )
        classes = predict_classes(trained.model, photos, size, flip).cpu().numpy()
        for frame, found in zip(batch, classes, strict=True):
            yield np.concatenate([frame, trained.scheme.overlay(frame, found)], axis=1)
        done(len(batch))


def _open_images(path: Path) -> Clip:
    """Open a folder of frames or an animated image with Pillow, one frame in memory at a time."""
    if path.is_dir():
        files = sorted(
            f for f in path.iterdir() if f.suffix.lower() in FRAMES and not f.name.startswith(".")
        )
        if not files:
            raise FileNotFoundError(f"no JPEG or PNG frame in {path}")
        return Clip(_same_size(map(_open_frame, files)), FOLDER_RATE, len(files))
    with Image.open(path) as image:
        count, milliseconds = getattr(image, "n_frames", 1), 0.0
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
    return Clip(_same_size(frames()), 1000 * count / milliseconds if milliseconds else 10.0, count)


def _open_frame(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{file} cannot be read as a frame ({error}): take it out of the folder"
        ) from error


def _same_size(images: Iterator[Image.Image]) -> Iterator[np.ndarray]:
    """Yield pixels at the size of the first image: at most `LARGEST`, both sides even."""
    size = None
    for image in images:
        if size is None:
            scale = min(1, LARGEST[0] / image.width, LARGEST[1] / image.height)
            size = (
                max(2, round(image.width * scale / 2) * 2),
                max(2, round(image.height * scale / 2) * 2),
            )
        yield np.array(
            image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        )


def _open_video(path: Path, stack: contextlib.ExitStack) -> Clip:
    """Open a video with ffmpeg, which decodes it through a pipe, frame by frame."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-of", "json"]
    command += [
        "-show_entries",
        "stream=avg_frame_rate,r_frame_rate,nb_frames:format=duration",
        f"file:{path}",
    ]
    probe = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    found = json.loads(probe.stdout or "{}") if probe.returncode == 0 else {}
    if not found.get("streams"):
        problem = (probe.stderr.strip().splitlines() or ["no video in it"])[-1]
        raise ValueError(
            f"{path} cannot be read as a video ({problem}): convert it to MP4, or give a folder of frames"
        )
    stream = found["streams"][0]
    rate = next(
        (r for r in (_number(stream.get(key)) for key in ("avg_frame_rate", "r_frame_rate")) if r),
        FOLDER_RATE,
    )
    rate = min(rate, 120.0)  # some files claim 90000
    count = int(
        _number(stream.get("nb_frames")) or _number(found.get("format", {}).get("duration")) * rate
    )
    width, height = LARGEST
    # A constant rate, because phones vary theirs; ffmpeg itself turns what was filmed upright.
    filters = f"fps={rate},scale='min({width},iw)':'min({height},ih)':force_original_aspect_ratio=decrease"
    filters += ",scale='max(2,trunc(iw/2)*2)':'max(2,trunc(ih/2)*2)'"  # H.264 needs even sides
    # PPM, because each frame then begins with its size.
    command = [
        "ffmpeg",
        "-nostdin",
        "-v",
        "error",
        "-i",
        f"file:{path}",
        "-map",
        "0:v:0",
        "-vf",
        filters,
    ]
    command += ["-f", "image2pipe", "-c:v", "ppm", "-"]
    errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 not a pipe: a full one would block ffmpeg
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
    )
    stack.callback(_end, process)

    def frames() -> Iterator[np.ndarray]:
        while (frame := _read_ppm(process.stdout)) is not None:
            yield frame
        if process.wait():
            print(f"Warning: {path} could not be read to its end ({_last_line(errors)})")

    return Clip(frames(), rate, count or None)


def _number(text: str | None) -> float:
    """Return the value of a number or fraction that ffprobe prints, 0 if there is none:
    "30000/1001", "25", "N/A"."""
    try:
        numerator, _, denominator = str(text).partition("/")
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        return 0.0


def _read_ppm(stream) -> np.ndarray | None:
    """Return the next frame of a stream of PPM images, `uint8 [H, W, 3]`; None at its end."""
    header = [stream.readline() for _ in range(3)]  # P6, width and height, 255
    if header[0] != b"P6\n" or not header[2]:
        return None
    width, height = map(int, header[1].split())
    pixels = stream.read(3 * width * height)
    if len(pixels) < 3 * width * height:
        return None
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def _write_mp4(frames: Iterator[np.ndarray], rate: float, target: Path) -> None:
    first = next(frames)
    size = f"{first.shape[1]}x{first.shape[0]}"
    command = [
        "ffmpeg",
        "-nostdin",
        "-y",
        "-v",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        size,
    ]
    command += [
        "-r",
        str(rate),
        "-i",
        "-",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        "-movflags",
        "+faststart",
    ]
    with (
        replacing(target) as unfinished,
        tempfile.TemporaryFile() as errors,
        contextlib.ExitStack() as stack,
    ):
        process = subprocess.Popen(
            [*command, f"file:{unfinished}"], stdin=subprocess.PIPE, stderr=errors
        )
        stack.callback(_end, process)
        assert process.stdin
        with (
            contextlib.suppress(BrokenPipeError),
            process.stdin,
        ):  # broken: ffmpeg has ended early and says why
            for frame in itertools.chain([first], frames):
                process.stdin.write(frame.tobytes())
        if process.wait():
            raise RuntimeError(f"ffmpeg could not write {target} ({_last_line(errors)})")


def _end(process: subprocess.Popen) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe:
                pipe.close()
    process.wait()


def _last_line(errors) -> str:
    errors.seek(0)
    return (errors.read().decode(errors="replace").strip().splitlines() or ["it ended early"])[-1]


class _FrameFiles(Image.Image):
    """An image whose frames are read from files when they are needed: Pillow would keep a list of
    images in memory."""

    def __init__(self, files: list[Path]):
        super().__init__()
        self.files, self.n_frames = files, len(files)
        self.seek(0)

    def seek(self, frame: int) -> None:
        with Image.open(self.files[frame]) as file:
            image = file.convert("RGB")
        self.im, self._mode, self._size = image.im, image.mode, image.size


def _write_images(frames: Iterator[np.ndarray], rate: float, target: Path) -> None:
    """Write a folder of JPEG frames, and from it an animated WebP."""
    with publishing(target.with_suffix("")) as folder:
        files = []
        for number, frame in enumerate(frames, 1):
            files.append(folder / f"{number:06}.jpg")
            Image.fromarray(frame).save(files[-1], quality=92)
        with replacing(target) as unfinished:
            _FrameFiles(files).save(
                unfinished, save_all=True, duration=round(1000 / rate), loop=0, quality=75
            )


def _free_path(folder: Path, name: str, suffix: str) -> Path:
    """Return the first of `name`, `name-2`, `name-3` ... that no file and no folder has."""
    number, path = 1, folder / (name + suffix)
    while path.exists() or path.with_suffix("").exists():
        number += 1
        path = folder / f"{name}-{number}{suffix}"
    return path


def show_video(path: str | Path):
    """Return an object that plays a result of `segment_video` in a notebook, without a link to the
    file."""
    from IPython.display import HTML

    path = user_path(path)
    if (size := path.stat().st_size) > MOST_TO_SHOW:
        return HTML(f"The video is too large to be shown here ({size / 2**20:.0f} MB): {path}")
    data = base64.b64encode(path.read_bytes()).decode()
    if path.suffix == ".webp":
        return HTML(
            f'<img src="data:image/webp;base64,{data}" style="max-width: 100%" alt="segmented video">'
        )
    style = 'autoplay controls loop muted playsinline style="max-width: 100%"'
    return HTML(f'<video {style} src="data:video/mp4;base64,{data}"></video>')
