"""Write unet_utils/weights/reference_labels.npz: four bytes for the restored labels of each frame.

    python scripts/reference_labels.py --pairs FOLDER/cityscapes_data

`prepare` compares with these checksums and says whether a machine finds the same labels. Run this
again after every change of the restorer's weights or of `restoring.COMPUTATION`; it takes three
minutes on one CPU core."""

import argparse
from pathlib import Path

import numpy as np

from unet_utils.dataset import CityscapesPairs
from unet_utils.restoring import REFERENCE, label_checksums, restore_label_ids
from unet_utils.sources import FULL_SET


def main() -> None:
    """Restore all masks of the Kaggle set, and write the checksums."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, default=REFERENCE, help="file to write")
    args = parser.parse_args()
    checksums = {}
    for split, count in FULL_SET.items():
        pairs = CityscapesPairs(args.pairs, split)
        if len(pairs) != count:
            parser.error(f"{args.pairs} has {len(pairs)} pairs in {split}, the whole set {count}")
        blocks = pairs.blocks(progress=f"restoring {split}")
        parts = [label_checksums(restore_label_ids(masks)) for _, _, masks in blocks]
        checksums[pairs.fingerprint] = np.concatenate(parts)
    np.savez(args.out, **checksums)


if __name__ == "__main__":
    main()
