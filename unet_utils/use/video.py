"""Segment a video: the original at the left, the classes blended over it at the right.

The program ffmpeg reads videos and writes MP4. Without it, animated images and folders of frames
are read, and the result is a folder of frames and an animated WebP."""

import base64
import contextlib
import itertools
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from unet_utils.evaluation import Trained, predict_classes
from unet_utils.platform.environment import progress_bar
from unet_utils.platform.files import list_folder, publishing, replacing, user_path
from unet_utils.use.photos import free_name, read_photo

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
    *(".wmv", ".3gp", ".mts", ".m2ts", ".flv", ".ogv"),
)
ANIMATIONS = (".gif", ".webp", ".png", ".apng")
FRAMES = (".jpg", ".jpeg", ".png")
LARGEST = 960, 540
"""Width and height of a frame; larger frames are reduced, so that memory and the size of the result
are bounded."""
FOLDER_RATE = 25.0  # frames per second of a folder of frames
GPU_BATCH = 8  # frames; on a CPU one at a time is as fast, and takes less memory
MOST_TO_SHOW = 40 * 2**20  # bytes
PATIENCE = 120.0  # seconds that ffmpeg may take for one frame
ENCODERS = {
    "libx264": (),
    "libopenh264": (),
    "libvpx-vp9": ("-deadline", "realtime", "-cpu-used", "8", "-crf", "32", "-b:v", "0"),
}
"""Encoders whose videos browsers play, best first, and their settings. Not every ffmpeg has all of
them, because of licences."""
FFMPEG_ADVICE = (
    "install it (apt-get install ffmpeg, brew install ffmpeg or winget install ffmpeg; Colab and "
    "Kaggle have it), or give a folder of frames or an animated GIF"
)


class Clip(NamedTuple):
    """A video to read."""

    frames: Generator[np.ndarray, None, None]  # uint8 [H, W, 3], all of one size; H and W are even
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

    With an ffmpeg that has one of `ENCODERS` the result is `NAME-segmented.mp4`, which browsers
    play, otherwise the folder `NAME-segmented` of frames and `NAME-segmented.webp`. The frame rate
    is kept; sound is not. Existing files are not overwritten: a number is added to the name.

    Args:
        trained: the model.
        path: a video (needs ffmpeg), an animated GIF, WebP or PNG, or a folder of JPEG or PNG
            frames in natural order.
        out: folder of the result, made if missing.
        flip: as in `evaluation.predict`.
        progress: show a bar.
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
        raise FileNotFoundError(f"no file or folder {path}")
    if path.is_dir():
        clip = _open_folder(path)
    elif path.suffix.lower() in ANIMATIONS and is_video(path):
        clip = _open_animation(path)
    else:
        clip = _open_video(path)
    most = None if max_seconds is None else max(1, round(max_seconds * clip.rate))
    total = min(filter(None, (most, clip.length)), default=None)
    problem = None

    def readable() -> Iterator[np.ndarray]:
        nonlocal problem
        try:
            yield from itertools.islice(clip.frames, most)
        except ValueError as error:  # must not lose what was read before
            problem = error

    bar = progress_bar(total=total, desc=path.name, unit="frame", disable=not progress)
    with bar, contextlib.closing(clip.frames):
        pairs = _side_by_side(trained, readable(), flip, bar.update)
        first = next(pairs, None)
        if first is None:
            raise problem or ValueError(f"{path} has no frame that can be read")
        out.mkdir(parents=True, exist_ok=True)
        name = f"{path.name if path.is_dir() else path.stem}-segmented"
        name = free_name(out, name, ["", ".mp4", ".webp"])
        encoder = _find_encoder()
        target = out / (name + (".mp4" if encoder else ".webp"))
        frames = itertools.chain([first], pairs)
        if encoder:
            _write_mp4(frames, clip.rate, target, encoder)
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


def _open_video(path: Path) -> Clip:
    """Open a video with ffmpeg, which decodes it through a pipe, frame by frame."""
    if not shutil.which("ffmpeg"):
        raise RuntimeError(f"ffmpeg is needed to read {path.name}: {FFMPEG_ADVICE}")
    # Without an output ffmpeg says what is in the file. The program ffprobe is made for that, but
    # does not come with every ffmpeg.
    _, report = _ask_ffmpeg(["-i", f"file:{path}"])
    stream = re.search(r"Stream #.* Video: .*", report)
    if not stream:
        problem = "no video in it" if "Stream #" in report else _last_line(report)
        raise ValueError(
            f"{path} cannot be read as a video ({problem}): "
            "convert it to MP4, or give a folder of frames"
        )
    found = re.search(r"([\d.]+) fps", stream[0]) or re.search(r"([\d.]+) tbr", stream[0])
    rate = min(float(found[1]), 120.0) if found else 0.0  # some files claim 90000
    rate = rate or FOLDER_RATE
    length = None
    if found := re.search(r"Duration: (\d+):(\d+):([\d.]+)", report):
        hours, minutes, seconds = map(float, found.groups())
        length = round((3600 * hours + 60 * minutes + seconds) * rate) or None
    return Clip(_decode(path, rate, length), rate, length)


def _decode(path: Path, rate: float, length: int | None) -> Generator[np.ndarray, None, None]:
    """Yield the frames of a video.

    Raises:
        ValueError: its end cannot be read.
    """
    # A constant rate, because phones vary theirs; ffmpeg itself turns what was filmed upright. A
    # pixel may be wider than high (sar). H.264 needs even sides.
    scale = f"min(1,min({LARGEST[0]}/(iw*sar),{LARGEST[1]}/ih))"
    width = f"max(2,trunc(iw*sar*{scale}/2)*2)"
    height = f"max(2,trunc(ih*{scale}/2)*2)"
    options = ["-i", f"file:{path}", "-map", "0:v:0"]
    options += ["-vf", f"fps={rate},scale='{width}':'{height}'"]
    # PPM, because each frame then begins with its size.
    options += ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    count = 0
    try:
        with _run_ffmpeg(options) as process:
            while (frame := _read_ppm(process)) is not None:
                yield frame
                count += 1
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read to its end ({error})") from error
    if length and count < 0.9 * length - 1:
        raise ValueError(
            f"{path} has only {count} of about {length} frames that it announces: it is damaged, "
            "or its sound is longer than its pictures"
        )


def _read_ppm(process: subprocess.Popen) -> np.ndarray | None:
    """Return the next frame that ffmpeg writes, `uint8 [H, W, 3]`; None at the end."""
    assert process.stdout
    with _in_time(process):
        header = [process.stdout.readline() for _ in range(3)]  # P6, width and height, brightest
        if not header[2]:
            return None
        if header[0] != b"P6\n" or header[2] != b"255\n":
            raise RuntimeError("ffmpeg gives another kind of picture")
        width, height = map(int, header[1].split())
        pixels = process.stdout.read(3 * width * height)
    if len(pixels) < 3 * width * height:
        return None
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def _write_mp4(frames: Iterator[np.ndarray], rate: float, target: Path, encoder: list[str]) -> None:
    first = next(frames)
    with replacing(target) as unfinished:
        height, width, _ = first.shape
        options = [*_raw_input(width, height, rate), *encoder, "-movflags", "+faststart"]
        try:
            with _run_ffmpeg([*options, f"file:{unfinished}"]) as process:
                assert process.stdin
                for frame in itertools.chain([first], frames):
                    with _in_time(process):
                        process.stdin.write(frame.tobytes())
        except RuntimeError as error:
            raise RuntimeError(f"ffmpeg could not write {target} ({error})") from error


def _find_encoder() -> list[str] | None:
    """Return ffmpeg's options for the first of `ENCODERS` that works here, None if none does.

    Each is tried with one black frame: some builds list encoders that fail when they are used.
    """
    if not shutil.which("ffmpeg"):
        return None
    for name, settings in ENCODERS.items():
        encoder = ["-c:v", name, *settings, "-pix_fmt", "yuv420p"]
        options = [*_raw_input(64, 64, 25), *encoder, "-f", "null", "-"]
        problem, _ = _ask_ffmpeg(options, bytes(64 * 64 * 3))
        if not problem:
            return encoder
    print(
        f"ffmpeg has none of the encoders {', '.join(ENCODERS)}: the result is frames and a WebP."
    )
    return None


def _raw_input(width: int, height: int, rate: float) -> list[str]:
    options = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    return [*options, "-r", str(rate), "-i", "-"]


def _ask_ffmpeg(options: list[str], data: bytes = b"") -> tuple[int, str]:
    """Run ffmpeg with this input, and return its exit status and what it prints."""
    command = ["ffmpeg", "-hide_banner", *options]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return 1, f"no answer in {PATIENCE:.0f} seconds"
    return done.returncode, done.stderr.decode(errors="replace")


@contextlib.contextmanager
def _run_ffmpeg(options: list[str]) -> Iterator[subprocess.Popen]:
    """Run ffmpeg beside this block, with pipes to and from it; end it if the block ends early.

    Raises:
        RuntimeError: ffmpeg failed.
    """
    command = ["ffmpeg", "-nostdin", "-y", "-v", "error", *options]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as errors:  # not a pipe: a full one would block ffmpeg
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors)
        assert process.stdin and process.stdout  # noqa: PT018
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended early and says why
                yield process
                process.stdin.close()
            with _in_time(process):
                process.wait()
        finally:
            process.kill()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()
            process.wait()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(_last_line(errors.read().decode(errors="replace")))


@contextlib.contextmanager
def _in_time(process: subprocess.Popen) -> Iterator[None]:
    """Kill a process that takes longer than `PATIENCE` for this block: pipes have no time limit."""
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "it ended early, or did nothing for too long")


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
