"""Drive: a folder outside the machine, linked to where Colab mounts it."""

import os

from google.colab._message import MessageError


class TIMEOUT(Exception):
    """Stands for `pexpect.TIMEOUT`, whose text goes on for pages."""

    def __str__(self):
        return "Timeout exceeded.\n<pexpect.popen_spawn.PopenSpawn object>\nsearcher: searcher_re:"


FAILURES = {
    "refused": lambda: MessageError("Error: credential propagation was unsuccessful"),
    "root folder": lambda: ValueError("mount failed: timeout during initial read of root folder"),
    "timeout": TIMEOUT,
    "not here": lambda: NotImplementedError(
        "Mounting drive is unsupported in this environment. Use PyDrive instead."
    ),
    "nameless": NotImplementedError,
}


def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    failure = os.environ.get("FAKE_COLAB_NO_DRIVE") or (
        "" if os.environ.get("FAKE_COLAB_DRIVE") else "refused"
    )
    # As the real one does: the person is asked first, on every call, whether Drive is mounted or
    # not.
    if failure != "not here" and os.environ.get("FAKE_COLAB_ASKED"):
        with open(os.environ["FAKE_COLAB_ASKED"], "a") as file:
            file.write("asked\n")
    if failure:
        raise FAILURES[failure]()
    if " " in mountpoint:
        raise ValueError("Mountpoint must not contain a space.")
    my_drive = os.path.join(mountpoint, "MyDrive")
    if os.path.isdir(my_drive) and not force_remount:
        print(
            f"Drive already mounted at {mountpoint}; to attempt to forcibly remount, "
            f'call drive.mount("{mountpoint}", force_remount=True).'
        )
        return
    if os.path.islink(mountpoint):
        raise ValueError("Mountpoint must not be a symlink")
    if os.path.isdir(mountpoint) and os.listdir(mountpoint):
        raise ValueError("Mountpoint must not already contain files")
    if not os.path.isdir(os.path.dirname(mountpoint)):
        raise ValueError("Mountpoint must be in a directory that exists")
    os.makedirs(mountpoint, exist_ok=True)
    os.symlink(os.environ["FAKE_COLAB_DRIVE"], my_drive, target_is_directory=True)
    print(f"Mounted at {mountpoint}")
