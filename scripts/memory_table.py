"""Compare predicted with measured training memory: `python scripts/memory_table.py [docs/memory.json]`.

Each network and batch is measured in a process of its own by `efficientnet_tf.summary --measure`.
"""

import json
import subprocess
import sys

from tqdm import tqdm

from efficientnet_tf.benchmark import hardware
from efficientnet_tf.config import environment

VARIANTS = ("b0", "b1", "b2", "b3")
BATCHES = (8, 16, 32)
SIZE = 224


def measure(variant, batch):
    """Return a row: predicted and measured bytes."""
    command = [sys.executable, "-m", "efficientnet_tf.summary", f"--variant={variant}", f"--batch={batch}"]
    command += ["--set", f"data.image_size={SIZE}", "--measure", "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    predicted, peak = told["memory"]["training"]["total"], told["measured"]["train_peak_bytes"]
    row = {"variant": variant, "size": SIZE, "batch": batch, "predicted_bytes": predicted, "measured_bytes": peak}
    return row | {"error": round(predicted / peak - 1, 3)}


def main(output):
    """Measure all, print the table, write it."""
    stated = environment() | hardware()
    rows = [measure(v, b) for v, b in tqdm([(v, b) for v in VARIANTS for b in BATCHES])]
    print("| variant | batch | predicted MiB | measured MiB | |\n|---|--:|--:|--:|--:|")
    for row in rows:
        sizes = f"{row['predicted_bytes'] / 2**20:,.0f} | {row['measured_bytes'] / 2**20:,.0f}"
        print(f"| {row['variant']} | {row['batch']} | {sizes} | {row['error']:+.1%} |")
    with open(output, "w") as file:
        json.dump({"environment": stated, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/memory.json")
