"""Digits with other labels: whether they are even, whether they are greater than 4, and their value."""

import csv

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

LABELS = ["even", "large"]


def write_table(root, train=None):
    """Write train.csv, val.csv and their images to a folder, and return the digits of the validation images.

    Args:
        root: The folder, a Path that exists.
        train: Number of training images. The default is all.
    """
    images, digits = load_digits(return_X_y=True)
    rows, held_out = train_test_split(np.arange(len(digits)), test_size=360, random_state=0, stratify=digits)
    for split, chosen in (("train", rows[:train]), ("val", held_out)):
        with (root / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", *LABELS, "value"])
            for row in chosen:
                flags = flags_of(digits[row])
                names = [name for name, flag in zip(LABELS, flags, strict=True) if flag]
                Image.fromarray(np.round(images[row].reshape(8, 8) * (255 / 16)).astype(np.uint8)).save(
                    root / f"{split}{row}.png"
                )
                writer.writerow([f"{split}{row}.png", ";".join(names), *flags, digits[row]])
    return digits[held_out]


def flags_of(digit):
    """Return 1 or 0 for each label of a digit."""
    return int(digit % 2 == 0), int(digit > 4)
