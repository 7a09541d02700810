"""Read and write videos with the program ffmpeg, through pipes, one frame in memory at a time.

The program ffprobe is not needed: it does not come with every ffmpeg."""

import contextlib
import functools
import itertools
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unet_utils.platform.files import replacing

LARGEST = 960, 540
"""Width and height of a frame; larger frames are reduced, so that memory and the size of the result
are bounded."""
PATIENCE = 120.0  # seconds that ffmpeg may take for one frame
ENCODERS = {
    "libx264": (),
    "libopenh264": (),
    "libvpx-vp9": ("-deadline", "realtime", "-cpu-used", "8", "-crf", "32", "-b:v", "0"),
}
"""Encoders whose videos browsers play, best first, and their settings. Not every ffmpeg has all of
them, because of licences."""
ADVICE = (
    "install it (apt-get install ffmpeg, brew install ffmpeg or winget install ffmpeg; Colab and "
    "Kaggle have it), or give a folder of frames or an animated GIF"
)


class Clip(NamedTuple):
    """A video to read."""

    frames: Generator[np.ndarray, None, None]  # uint8 [H, W, 3], all of one size; H and W are even
    rate: float  # frames per second
    length: int | None  # number of frames, if known


class FfmpegError(RuntimeError):
    """ffmpeg has failed; the message is its last line."""


def read_video(path: Path) -> Clip:
    """Open a video.

    Its frames raise a ValueError at their end if the rest of the file cannot be read.

    Raises:
        RuntimeError: there is no ffmpeg.
        ValueError: the file is no video.
    """
    if not shutil.which("ffmpeg"):
        raise RuntimeError(f"ffmpeg is needed to read {path.name}: {ADVICE}")
    # Without an output ffmpeg says what is in the file, and fails.
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-i", f"file:{path}"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE)
        report = done.stderr.decode(errors="replace")
    except subprocess.TimeoutExpired:
        report = f"no answer in {PATIENCE:.0f} seconds"
    stream = re.search(r"Stream #.* Video: .*", report)
    if not stream:
        problem = _last_line(report)
        if problem.startswith("At least one output file"):  # nothing else was wrong
            problem = "no video in it"
        raise ValueError(
            f"{path} cannot be read as a video ({problem}): "
            "convert it to MP4, or give a folder of frames"
        )
    found = re.search(r"([\d.]+) fps", stream[0]) or re.search(r"([\d.]+) tbr", stream[0])
    rate = min(float(found[1]), 120.0) if found else 0.0  # some files claim 90000
    rate = rate or 25.0
    length = None
    if found := re.search(r"Duration: (\d+):(\d+):([\d.]+)", report):
        hours, minutes, seconds = map(float, found.groups())
        length = round((3600 * hours + 60 * minutes + seconds) * rate) or None
    return Clip(_decode(path, rate, length), rate, length)


@functools.cache
def find_encoder(program: str | None) -> list[str] | None:
    """Return the options of this ffmpeg for the first of `ENCODERS` that works here; None if none
    does, with a message, or if there is no ffmpeg.

    Each is tried with one black frame, once: some builds list encoders that fail when they are
    used.
    """
    if not program:
        return None
    for name, settings in ENCODERS.items():
        encoder = ["-c:v", name, *settings, "-pix_fmt", "yuv420p"]
        black = np.zeros((64, 64, 3), np.uint8)
        with contextlib.suppress(FfmpegError):
            _encode(iter([black]), 25, [*encoder, "-f", "null", "-"])
            return encoder
    print(
        f"ffmpeg has none of the encoders {', '.join(ENCODERS)}: the result is frames and a WebP."
    )
    return None


def write_mp4(frames: Iterator[np.ndarray], rate: float, target: Path, encoder: list[str]) -> None:
    """Write frames `uint8 [H, W, 3]` of one size, H and W even.

    Args:
        frames: at least one.
        rate: frames per second.
        target: path of the file; replaced when all is written.
        encoder: as `find_encoder` returns it.

    Raises:
        RuntimeError: ffmpeg cannot write it.
    """
    with replacing(target) as unfinished:
        try:
            _encode(frames, rate, [*encoder, "-movflags", "+faststart", f"file:{unfinished}"])
        except FfmpegError as error:
            raise RuntimeError(f"ffmpeg could not write {target} ({error})") from error


def _encode(frames: Iterator[np.ndarray], rate: float, output: list[str]) -> None:
    first = next(frames)
    height, width, _ = first.shape
    options = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate)]
    with _run_ffmpeg([*options, "-i", "-", *output]) as process:
        assert process.stdin
        for frame in itertools.chain([first], frames):
            with _in_time(process):
                process.stdin.write(frame.tobytes())


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
    problem = None
    try:
        with _run_ffmpeg(options, strict=True) as process:
            while (frame := _read_ppm(process)) is not None:
                yield frame
                count += 1
    except FfmpegError as error:
        problem = error
    # A damaged file is complained of and has fewer frames. Where sound outlasts the pictures there
    # are fewer, too; and there are complaints that do no harm.
    frames = f"it has {count} of about {length} frames"
    too_few = length and count < 0.9 * length - 1
    if problem and too_few:
        raise ValueError(f"{path} cannot be read to its end ({problem}): {frames}") from problem
    if problem:
        print(f"Warning: {path} may be damaged ({problem})")
    elif too_few:
        print(f"Warning: {path} may end too early, or its sound is longer: {frames}")


def _read_ppm(process: subprocess.Popen) -> np.ndarray | None:
    """Return the next frame that ffmpeg writes, `uint8 [H, W, 3]`; None at the end."""
    assert process.stdout
    with _in_time(process):
        header = [process.stdout.readline() for _ in range(3)]  # P6, width and height, brightest
        if not header[2]:
            return None
        if header[0] != b"P6\n" or header[2] != b"255\n":
            raise FfmpegError("ffmpeg gives another kind of picture")
        width, height = map(int, header[1].split())
        pixels = process.stdout.read(3 * width * height)
    if len(pixels) < 3 * width * height:
        return None
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


@contextlib.contextmanager
def _run_ffmpeg(options: list[str], strict: bool = False) -> Iterator[subprocess.Popen]:
    """Run ffmpeg beside this block, with pipes to and from it; end it if the block ends early.

    Raises:
        FfmpegError: ffmpeg failed; or, if `strict`, it complained of something.
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
        errors.seek(0)
        complaints = errors.read().decode(errors="replace")
        if process.returncode or (strict and complaints):
            raise FfmpegError(_last_line(complaints))


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
