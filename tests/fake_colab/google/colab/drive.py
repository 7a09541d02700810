"""Drive: a folder outside the machine, linked to where Colab mounts it."""

import os

from google.colab import errors


class MessageError(errors.Error):
    pass


def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    if " " in mountpoint:
        raise ValueError("Mountpoint must not contain a space.")
    my_drive = os.path.join(mountpoint, "MyDrive")
    if os.path.isdir(my_drive) and not force_remount:
        print(
            f"Drive already mounted at {mountpoint}; to attempt to forcibly remount, "
            f'call drive.mount("{mountpoint}", force_remount=True).'
        )
        return
    if not os.environ.get("FAKE_COLAB_DRIVE"):
        raise MessageError("Error: credential propagation was unsuccessful")
    if os.path.isdir(mountpoint) and os.listdir(mountpoint):
        raise ValueError("Mountpoint must not already contain files")
    if not os.path.isdir(os.path.dirname(mountpoint)):
        raise ValueError("Mountpoint must be in a directory that exists")
    os.makedirs(mountpoint, exist_ok=True)
    os.symlink(os.environ["FAKE_COLAB_DRIVE"], my_drive, target_is_directory=True)
    print(f"Mounted at {mountpoint}")


def flush_and_unmount(timeout_ms=24 * 60 * 60 * 1000):
    print("Drive not mounted, so nothing to flush and unmount.")
