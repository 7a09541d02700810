import json
import shutil
import subprocess
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import require
from PIL import Image

from unet_utils.demo.street import draw_scene
from unet_utils.use import ffmpeg, video
from unet_utils.use.photos import read_photo
from unet_utils.use.video import choose_video, is_video, segment_video, show_video

needs_ffmpeg = pytest.mark.usefixtures("programs")


@pytest.fixture(scope="module")
def programs():
    require(
        shutil.which("ffmpeg") and shutil.which("ffprobe"),
        "the programs ffmpeg and ffprobe are not installed",
    )


@pytest.fixture(scope="module")
def scenes():
    """Twelve views of a drawn street: the camera turns. Only to read."""
    street = Image.fromarray(draw_scene(np.random.default_rng(5))[0]).resize((320, 160))
    return [street.crop((4 * i, 0, 200 + 4 * i, 120)) for i in range(12)]


@pytest.fixture
def without_ffmpeg(monkeypatch, tmp_path):
    (tmp_path / "no programs").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))


def save_gif(scenes, path, milliseconds=80):
    scenes[0].save(path, save_all=True, append_images=scenes[1:], duration=milliseconds, loop=0)
    return path


def save_frames(scenes, folder):
    folder.mkdir()
    for number, scene in enumerate(scenes):
        scene.save(folder / f"{number:03}.png")
    (folder / "._000.png").write_text("hidden")
    (folder / "notes.txt").write_text("no frame")
    return folder


def save_mp4(scenes, path, rate="25", *options):
    size = "{}x{}".format(*scenes[0].size)
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        size,
        "-r",
        rate,
        "-i",
        "-",
    ]
    command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", *options, str(path)]
    subprocess.run(command, input=b"".join(scene.tobytes() for scene in scenes), check=True)
    return path


def probe(path) -> dict:
    fields = "stream=width,height,avg_frame_rate,nb_frames,codec_name,pix_fmt"
    command = ["ffprobe", "-v", "error", "-show_entries", fields, "-of", "json", str(path)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"][0]


def animation(path) -> tuple[int, tuple[int, int], float]:
    """Number of frames, size and mean duration in milliseconds."""
    with Image.open(path) as image:
        durations = []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            durations.append(image.info["duration"])
        return image.n_frames, image.size, float(np.mean(durations))


def test_without_ffmpeg_it_is_frames_and_a_webp(trained, scenes, tmp_path, without_ffmpeg):
    path = segment_video(trained, save_gif(scenes, tmp_path / "drive.gif"), tmp_path / "out")
    assert path == tmp_path / "out" / "drive-segmented.webp"
    assert animation(path) == (12, (400, 120), 80)
    frames = sorted((tmp_path / "out" / "drive-segmented").iterdir())
    assert [frame.name for frame in frames] == [f"{number:06}.jpg" for number in range(1, 13)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "drive-segmented",
        "drive-segmented.webp",
    ]
    with Image.open(frames[-1]) as image:
        pixels = np.asarray(image).astype(int)
    assert np.abs(pixels[:, :200] - np.asarray(scenes[-1])).mean() < 12  # the original at the left
    assert np.abs(pixels[:, 200:] - np.asarray(scenes[-1])).mean() > 20
    again = segment_video(trained, tmp_path / "drive.gif", tmp_path / "out")
    assert again.name == "drive-segmented-2.webp"


def test_a_folder_of_frames_is_a_video(trained, scenes, tmp_path, without_ffmpeg):
    folder = save_frames(scenes[:3], tmp_path / "frames")
    scenes[3].resize((300, 100)).save(folder / "999.jpg")  # another size
    assert animation(segment_video(trained, folder, tmp_path)) == (
        4,
        (400, 120),
        40,
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no JPEG or PNG frame"):
        segment_video(trained, tmp_path / "empty", tmp_path)
    (folder / "001.png").write_text("damaged")
    with pytest.raises(ValueError, match=r"001\.png cannot be read .*before is in .*\.webp"):
        segment_video(trained, folder, tmp_path / "out")
    assert len(list((tmp_path / "out" / "frames-segmented").iterdir())) == 1


def test_frames_are_played_in_the_order_that_a_person_means(trained, tmp_path, without_ffmpeg):
    (tmp_path / "frames").mkdir()
    for number in range(1, 13):
        Image.new("RGB", (32, 16), (20 * number,) * 3).save(tmp_path / f"frames/frame{number}.png")
    segment_video(trained, tmp_path / "frames", tmp_path)
    for number, file in enumerate(sorted((tmp_path / "frames-segmented").iterdir()), 1):
        assert abs(read_photo(file)[:, :16].mean() - 20 * number) < 3


def test_a_video_without_ffmpeg_says_what_to_do(trained, tmp_path, without_ffmpeg):
    (tmp_path / "drive.mp4").write_bytes(b"...")
    with pytest.raises(
        RuntimeError, match=r"ffmpeg is needed to read drive\.mp4: install it .* or give a folder"
    ):
        segment_video(trained, tmp_path / "drive.mp4", tmp_path)


def test_without_a_video_a_clip_is_drawn(tmp_path, capsys):
    machine = SimpleNamespace(data=tmp_path)
    clip = choose_video("", machine)
    frames = sorted(clip.iterdir())
    assert len(frames) == 25
    assert (read_photo(frames[0]) != read_photo(frames[-1])).mean() > 0.5  # it pans
    assert "set VIDEO to its path" in capsys.readouterr().out
    assert choose_video(" my.mp4 ", machine).name == "my.mp4"


def test_what_is_no_video_is_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        segment_video(trained, tmp_path / "gone.mp4", tmp_path)
    with pytest.raises(ValueError, match="is an address"):
        segment_video(trained, "https://x.org/drive.mp4", tmp_path)


def test_only_what_moves_is_a_video(scenes, tmp_path):
    save_gif(scenes, tmp_path / "moves.gif")
    scenes[0].save(tmp_path / "still.gif")
    scenes[0].save(tmp_path / "photo.png")
    (tmp_path / "broken.webp").write_text("no picture")
    names = [
        "moves.gif",
        "still.gif",
        "photo.png",
        "broken.webp",
        "gone.gif",
        "a.MP4",
        "b.mov",
        "c.jpg",
        "d",
    ]
    assert [name for name in names if is_video(tmp_path / name)] == ["moves.gif", "a.MP4", "b.mov"]
    assert is_video("https://x.org/a.mp4")
    assert not is_video("https://x.org/a.png")


def test_frames_are_read_when_they_are_needed(
    trained, scenes, tmp_path, monkeypatch, without_ffmpeg
):
    folder, opened, predicted = save_frames(scenes, tmp_path / "frames"), [], []
    real_predict = video.predict_classes
    monkeypatch.setattr(
        video, "read_photo", lambda file: (opened.append(file), read_photo(file))[1]
    )

    def predict(model, photos, size, flip):
        predicted.append(len(photos))
        assert len(opened) == sum(predicted)
        return real_predict(model, photos, size, flip)

    monkeypatch.setattr(video, "predict_classes", predict)
    segment_video(trained, folder, tmp_path / "out", max_seconds=10 / video.FOLDER_RATE)
    assert sum(predicted) == 10


def test_large_frames_are_reduced_to_even_sizes(trained, tmp_path, without_ffmpeg, monkeypatch):
    monkeypatch.setattr(video, "LARGEST", (101, 101))
    save_frames([Image.new("RGB", (333, 77), "red")] * 2, tmp_path / "frames")
    assert animation(segment_video(trained, tmp_path / "frames", tmp_path))[1] == (
        200,
        24,
    )


@needs_ffmpeg
@pytest.mark.parametrize(("rate", "size"), [("25", (200, 120)), ("30000/1001", (101, 61))])
def test_a_video_becomes_a_video_that_browsers_play(trained, scenes, tmp_path, rate, size):
    scenes = [scene.resize(size) for scene in scenes]
    path = tmp_path / "my drive: 1.mkv"
    save_mp4(scenes, path, rate, *(["-pix_fmt", "yuv444p"] if size[0] % 2 else []))
    done = segment_video(trained, path, tmp_path / "out")
    assert done.name == "my drive: 1-segmented.mp4"
    found = probe(done)
    assert (found["codec_name"], found["pix_fmt"], found["nb_frames"]) == ("h264", "yuv420p", "12")
    numerator, denominator = found["avg_frame_rate"].split("/")
    assert int(numerator) / int(denominator) == pytest.approx(
        25 if rate == "25" else 30000 / 1001, rel=1e-3
    )
    assert (found["width"], found["height"]) == (2 * (size[0] // 2 * 2), size[1] // 2 * 2)
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", f"file:{done}", str(tmp_path / "%d.png")], check=True
    )
    with Image.open(tmp_path / "12.png") as image:
        left = np.asarray(image.convert("RGB"))[:, : found["width"] // 2].astype(int)
    assert np.abs(left - np.asarray(scenes[-1].resize(left.shape[1::-1]))).mean() < 15
    assert [p.name for p in (tmp_path / "out").iterdir()] == [done.name]


@needs_ffmpeg
def test_with_ffmpeg_animations_become_videos_too(trained, scenes, tmp_path):
    done = segment_video(trained, save_gif(scenes, tmp_path / "drive.gif", 100), tmp_path)
    assert (probe(done)["nb_frames"], probe(done)["avg_frame_rate"]) == ("12", "10/1")


@needs_ffmpeg
def test_a_video_filmed_upright_is_upright_and_a_part_is_enough(trained, scenes, tmp_path):
    save_mp4(scenes, tmp_path / "flat.mp4")
    source, target = (
        ["-i", str(tmp_path / "flat.mp4")],
        ["-c", "copy", str(tmp_path / "turned.mp4")],
    )
    if subprocess.run(
        ["ffmpeg", "-v", "error", "-display_rotation", "90", *source, *target]
    ).returncode:
        old = ["-metadata:s:v", "rotate=90"]  # before ffmpeg 6
        subprocess.run(["ffmpeg", "-y", "-v", "error", *source, *old, *target], check=True)
    done = segment_video(trained, tmp_path / "turned.mp4", tmp_path, max_seconds=0.2)
    found = probe(done)
    assert (found["width"], found["height"], found["nb_frames"]) == (240, 200, "5")


@needs_ffmpeg
def test_a_file_that_is_no_video_is_named(trained, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be read as a video"):
        segment_video(trained, tmp_path / "text.mp4", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_ffmpeg
def test_what_was_read_of_a_damaged_video_is_kept(trained, scenes, tmp_path):
    whole = save_mp4(scenes, tmp_path / "whole.mkv", "25", "-g", "1").read_bytes()
    (tmp_path / "half.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.mkv .*has \d of about 12 .* is in .*\.mp4"):
        segment_video(trained, tmp_path / "half.mkv", tmp_path / "out")
    assert 3 < int(probe(tmp_path / "out" / "half-segmented.mp4")["nb_frames"]) < 9


@needs_ffmpeg
def test_a_video_that_ends_before_its_announced_end_is_said_to(trained, scenes, tmp_path, capsys):
    """ffmpeg does not complain of a recording that lacks its last packets."""
    whole = save_mp4(scenes, tmp_path / "whole.flv").read_bytes()
    end = 13  # behind the header of the file
    for _ in range(8):
        end += 15 + int.from_bytes(whole[end + 1 : end + 4], "big")
    (tmp_path / "half.flv").write_bytes(whole[:end])
    segment_video(trained, tmp_path / "half.flv", tmp_path / "out")
    assert "half.flv may end too early" in capsys.readouterr().out


@needs_ffmpeg
@pytest.mark.parametrize("pixels", ["yuv420p10le", "gray", "gbrp12le", "yuva420p"])
def test_pixels_of_any_kind_are_read(trained, scenes, tmp_path, pixels):
    save_mp4(scenes, tmp_path / "drive.mkv", "25", "-c:v", "ffv1", "-pix_fmt", pixels)
    assert probe(tmp_path / "drive.mkv")["pix_fmt"] == pixels
    clip = ffmpeg.read_video(tmp_path / "drive.mkv")
    frames = list(clip.frames)
    assert len(frames) == clip.length == 12
    for frame, scene in zip(frames, scenes, strict=True):
        expected = np.asarray(scene.convert("L" if pixels == "gray" else "RGB").convert("RGB"))
        assert np.abs(frame.astype(int) - expected).mean() < 8


@needs_ffmpeg
def test_pixels_that_are_not_square_are_shown_as_a_player_does(trained, scenes, tmp_path):
    frames = [scene.resize((72, 96)) for scene in scenes]
    save_mp4(frames, tmp_path / "wide.mp4", "25", "-vf", "setsar=16/9")
    done = segment_video(trained, tmp_path / "wide.mp4", tmp_path)
    assert (probe(done)["width"], probe(done)["height"]) == (256, 96)


def use_fake_ffmpeg(monkeypatch, folder, cases):
    """Put a program ffmpeg before the real one, without ffprobe.

    Args:
        cases: of a shell's `case` over all arguments.
    """
    folder.mkdir()
    real = shutil.which("ffmpeg")
    text = f'#!/bin/sh\ncase "$*" in {cases} esac\nexec {real} "$@"\n'
    (folder / "ffmpeg").write_text(text)
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@needs_ffmpeg
@pytest.mark.parametrize("lacks", ["*libx264*", "*libx26* | *libopenh264*", "*lib*"])
def test_the_next_encoder_is_used(trained, scenes, tmp_path, monkeypatch, capsys, lacks):
    save_mp4(scenes, tmp_path / "drive.mp4")
    with monkeypatch.context() as patch:
        use_fake_ffmpeg(patch, tmp_path / "programs", f"{lacks}) exit 1;;")
        done = segment_video(trained, tmp_path / "drive.mp4", tmp_path / "out")
        ffmpeg.find_encoder(shutil.which("ffmpeg"))  # as for the next video
    printed = capsys.readouterr().out
    if lacks == "*lib*":
        assert animation(done)[:2] == (12, (400, 120))
        assert printed.count("none of the encoders libx264, libopenh264, libvpx-vp9") == 1
    else:
        assert probe(done)["codec_name"] in ("h264", "vp9")
        assert probe(done)["nb_frames"] == "12"
        assert "encoder" not in printed


@needs_ffmpeg
def test_an_encoder_that_fails_says_why(trained, tmp_path, monkeypatch):
    cases = "*faststart*) echo 'No space left on device' >&2; exit 1;;"
    use_fake_ffmpeg(monkeypatch, tmp_path / "programs", cases)
    large = [Image.effect_noise((640, 360), 80).convert("RGB")] * 12  # more than a pipe holds
    folder = save_frames(large, tmp_path / "drive")
    why = r"ffmpeg could not write .*drive-segmented\.mp4 \(No space left on device\)"
    with pytest.raises(RuntimeError, match=why):
        segment_video(trained, folder, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@needs_ffmpeg
@pytest.mark.parametrize("hangs", ["*image2pipe*", "*-i*", "*faststart*"])
def test_nothing_waits_for_ever_for_ffmpeg(trained, scenes, tmp_path, monkeypatch, hangs):
    save_mp4(scenes, tmp_path / "drive.mp4")
    use_fake_ffmpeg(monkeypatch, tmp_path / "programs", f"{hangs}) exec /bin/sleep 600;;")
    monkeypatch.setattr(ffmpeg, "PATIENCE", 1.0)
    start = time.monotonic()
    with pytest.raises((ValueError, RuntimeError), match=r"did nothing for too long|no answer"):
        segment_video(trained, tmp_path / "drive.mp4", tmp_path / "out")
    assert time.monotonic() - start < 60


def test_videos_are_shown_inline_unless_they_are_large(tmp_path, monkeypatch):
    pytest.importorskip("IPython")
    for name, start in (("a.mp4", "<video autoplay"), ("a.webp", "<img")):
        (tmp_path / name).write_bytes(b"12345")
        html = show_video(tmp_path / name).data
        assert html.startswith(start)
        assert "base64,MTIzNDU=" in html
    monkeypatch.setattr(video, "MOST_TO_SHOW", 4)
    assert "too large" in show_video(tmp_path / "a.mp4").data


def test_a_long_video_needs_no_more_memory(trained, tmp_path, without_ffmpeg):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(60):
        Image.new("RGB", (320, 160), (number, 0, 0)).save(frames / f"{number:03}.png")
    peaks = []
    for seconds in (0.2, None):  # 5 frames, 60 frames
        tracemalloc.start()  # knows the arrays of NumPy
        segment_video(trained, frames, tmp_path / "out", max_seconds=seconds)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (
        peaks[1] < peaks[0] + 10 * 320 * 160 * 3
    )  # all frames side by side are 120 times this size
