"""Compare predicted with measured training memory: `python scripts/memory_table.py [docs/memory.json [ROUNDS]]`.

Each network and batch is measured by `efficientnet_tf.summary --measure`, in three processes, or ROUNDS. What counts is
their median: TensorFlow runs operations as they become ready, and in an unlucky order more outputs are held at once.
"""

import json
import statistics
import subprocess
import sys

from tqdm import tqdm

from efficientnet_tf.config.load import describe_environment
from efficientnet_tf.runtime.hardware import describe_hardware

VARIANTS = ("b0", "b1", "b2", "b3")
BATCHES = (8, 16, 32)
SIZE = 224
ROUNDS = 3


def measure(variant, batch):
    """Return predicted and measured bytes."""
    command = [sys.executable, "-m", "efficientnet_tf.summary", f"--variant={variant}", f"--batch={batch}"]
    command += ["--set", f"data.image_size={SIZE}", "--measure", "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return told["memory"]["training"]["total"], told["measured"]["train_peak_bytes"]


def main(output, rounds=ROUNDS):
    """Measure all, in turns; print the table, write it."""
    stated = describe_environment() | describe_hardware()
    cells = [(variant, batch) for variant in VARIANTS for batch in BATCHES]
    told = [(cell, *measure(*cell)) for cell in tqdm(cells * int(rounds))]
    rows = []
    print("| variant | batch | predicted MiB | measured MiB | | lowest and highest |\n|---|--:|--:|--:|--:|--:|")
    for variant, batch in cells:
        (predicted, *_), peaks = zip(*((p, peak) for cell, p, peak in told if cell == (variant, batch)), strict=True)
        low, peak, high = min(peaks), statistics.median(peaks), max(peaks)
        row = {"variant": variant, "size": SIZE, "batch": batch, "predicted_bytes": predicted, "measured_bytes": peak}
        rows.append(row | {"low_bytes": low, "high_bytes": high, "error": round(predicted / peak - 1, 3)})
        sizes = " | ".join(f"{n / 2**20:,.0f}" for n in (predicted, peak))
        print(
            f"| {variant} | {batch} | {sizes} | {predicted / peak - 1:+.1%} | {low / 2**20:,.0f}, {high / 2**20:,.0f} |"
        )
    with open(output, "w") as file:
        json.dump({"environment": stated, "rounds": int(rounds), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["docs/memory.json"]))
