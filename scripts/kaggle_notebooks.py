"""Write one folder per notebook, as Kaggle's command publishes it.

    python scripts/kaggle_notebooks.py YOUR_KAGGLE_NAME             into kaggle/
    kaggle kernels push --path kaggle/01_download                   publishes one of them

Each folder holds the notebook and its kernel-metadata.json: the data set is attached, internet is
on, and a GPU only where the notebook asks for one. They are private until you change that there.
Internet and a GPU need an account with a verified phone number."""

import argparse
import json
import re
import shutil
from pathlib import Path

import nbformat

from unet_utils.platform.download import DATASET
from unet_utils.platform.files import user_path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Write the folders of all notebooks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("user", help="your name on Kaggle, as in kaggle.com/NAME")
    parser.add_argument("--out", default="kaggle", help="folder to write to (default: kaggle)")
    arguments = parser.parse_args()
    user = arguments.user.lower()
    if not re.fullmatch(r"[a-z0-9-]+", user):
        parser.error(f"{arguments.user} is not a Kaggle name: take the one of kaggle.com/NAME")
    try:
        out = user_path(arguments.out)
    except ValueError as error:
        parser.error(str(error))
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        folder = out / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
        metadata = kernel_metadata(path, user)
        (folder / "kernel-metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", "utf-8")
        print(f"kaggle kernels push --path {folder}")


def kernel_metadata(path: Path, user: str) -> dict:
    """Return what Kaggle's command wants to know about a notebook.

    Args:
        path: of the notebook.
        user: name on Kaggle.
    """
    notebook = nbformat.read(path, as_version=4)
    title = f"Street scenes {path.stem.replace('_', ' ')}"
    return {
        # Kaggle makes this from the title, and refuses an id that differs.
        "id": f"{user}/{title.lower().replace(' ', '-')}",
        "title": title,
        "code_file": path.name,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": "accelerator" in notebook.metadata,
        "enable_internet": True,
        "dataset_sources": [DATASET],
        "competition_sources": [],
        "kernel_sources": [],
        "model_sources": [],
    }


if __name__ == "__main__":
    main()
