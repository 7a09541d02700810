"""Arrays larger than memory: memory-mapped, read ahead, and never held as a whole."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unet_utils.dataset import build_arrays, map_array
from unet_utils.frames import read_ahead


def test_rows_read_ahead_are_the_rows(tmp_path):
    arrays = tuple(torch.randint(0, 256, (20, *shape)).byte() for shape in ((3, 4), (5,)))
    order = list(torch.randperm(20).split(3))
    batches = list(read_ahead(arrays, iter(order), "cpu"))
    assert len(batches) == len(order) == 7
    for indices, rows in zip(order, batches, strict=True):
        for row, array in zip(rows, arrays, strict=True):
            assert torch.equal(row, array[indices])
    assert list(read_ahead(arrays, [], "cpu")) == []


def test_no_more_than_two_batches_are_read_ahead():
    asked = []

    def order():
        for index in range(10):
            asked.append(index)
            yield torch.tensor([index])

    rows = read_ahead((torch.zeros(10, 1, dtype=torch.uint8),), order(), "cpu")
    next(rows)
    assert len(asked) == 3


def test_an_error_while_reading_is_not_lost():
    with pytest.raises(IndexError):
        list(read_ahead((torch.zeros(3, 1, dtype=torch.uint8),), [torch.tensor([7])], "cpu"))


def test_arrays_get_their_names_when_they_are_complete(tmp_path):
    shapes = {tmp_path / "a.npy": (4, 2), tmp_path / "b.npy": (4,)}

    def blocks(missing, fail):
        yield slice(0, 2), {file: np.ones(shapes[file], np.uint8)[:2] for file in missing}
        if fail:
            raise KeyboardInterrupt
        yield slice(2, 4), {file: np.full(shapes[file], 2, np.uint8)[:2] for file in missing}

    with pytest.raises(KeyboardInterrupt):
        build_arrays(shapes, lambda missing: blocks(missing, True))
    assert not any(file.exists() for file in shapes)
    build_arrays(shapes, lambda missing: blocks(missing, False))
    build_arrays(shapes, lambda missing: pytest.fail("they exist"))
    assert map_array(tmp_path / "b.npy").tolist() == [1, 1, 2, 2]


def test_a_file_that_was_cut_short_is_written_again(tmp_path):
    file = tmp_path / "a.npy"
    np.save(file, np.zeros((4, 200), np.uint8))
    file.write_bytes(file.read_bytes()[:500])
    build_arrays(
        {file: (4, 200)},
        lambda missing: [(slice(0, 4), dict.fromkeys(missing, np.ones((4, 200), np.uint8)))],
    )
    assert map_array(file).sum() == 800


SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from unet_utils import Frames, fit, get_scheme, recipe
from unet_utils.dataset import map_array

LIMIT, SIDE = 128 * 2**20, 512
folder = Path(sys.argv[1])
n = 10 * LIMIT // (SIDE * SIDE * 4) + 1
for name, shape in {"photos": (n, SIDE, SIDE, 3), "label_ids": (n, SIDE, SIDE)}.items():
    array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape)
    array[::7, 0] = 7  # the rest stays a hole

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

config = recipe("demo", base_channels=2, fold=1, image_size=32, batch_size=4, epochs=1)
scheme = get_scheme("categories7")
photos, label_ids = torch.zeros(8, 64, 64, 3).byte(), torch.full((8, 64, 64), 7).byte()
small = Frames(photos, label_ids, scheme, tuple(range(8)))
# What every training needs, whatever the set.
fit(small, config, folder / "small", "cpu", progress=False)
resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData:") + LIMIT,) * 2)
arrays = map_array(folder / "photos.npy"), map_array(folder / "label_ids.npy")
frames = Frames(*arrays, scheme, tuple(range(n)))
assert frames.photos.nbytes + frames.label_ids.nbytes > 10 * LIMIT
before = memory("RssAnon:")
history = fit(frames, config, folder / "run", "cpu", progress=False)
share = frames.class_counts()[0].item() / frames.label_ids.numel()
print(len(history), (memory("RssAnon:") - before) / LIMIT, share)
try:
    torch.ones(LIMIT + 1, dtype=torch.uint8)
except RuntimeError:
    print("the limit holds")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="imposes a limit that only Linux has")
def test_a_set_ten_times_the_memory_trains_within_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "OMP_NUM_THREADS": "1",
    }
    environment["MALLOC_MMAP_THRESHOLD_"] = (
        "100000"  # what is in use counts, not what the C library keeps for later
    )
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("1 ")
    assert done.stdout.endswith("the limit holds\n")
