"""Compare predicted with measured training memory: `python scripts/memory_table.py [docs/memory.json [ROUNDS]]`.

Each network and batch size is measured by `efficientnet_tf.summary --measure` in three processes, or in ROUNDS. The
median counts. TensorFlow runs operations as soon as their inputs are ready, and an unlucky order holds more outputs at
the same time.
"""

import json
import statistics
import subprocess
import sys

from efficientnet_tf.config.load import describe_environment
from efficientnet_tf.runtime.hardware import describe_hardware
from efficientnet_tf.runtime.terminal import track

VARIANTS = ("b0", "b1", "b2", "b3")
BATCHES = (8, 16, 32)
SIZE = 224
ROUNDS = 3


def measure(variant: str, batch: int) -> tuple[int, int]:
    """Return the predicted and the measured memory of a training step, in bytes."""
    command = [sys.executable, "-m", "efficientnet_tf.summary", f"--variant={variant}", f"--batch={batch}"]
    command += ["--set", f"data.image_size={SIZE}", "--measure", "--json"]
    summary = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return summary["memory"]["training"]["total"], summary["measured"]["train_peak_bytes"]


def main(output: str, rounds: str | int = ROUNDS) -> None:
    """Measure every network and batch size in each round, print the table and write it as JSON."""
    environment = describe_environment() | describe_hardware()
    cells = [(variant, batch) for variant in VARIANTS for batch in BATCHES]
    jobs = cells * int(rounds)
    results = [(cell, *measure(*cell)) for cell in track(jobs, len(jobs), "measuring", "runs")]
    rows = []
    print("| variant | batch | predicted MiB | measured MiB | | lowest and highest |\n|---|--:|--:|--:|--:|--:|")
    for variant, batch in cells:
        pairs = [(predicted, peak) for cell, predicted, peak in results if cell == (variant, batch)]
        predicted, peaks = pairs[0][0], [peak for _, peak in pairs]
        low, peak, high = min(peaks), statistics.median(peaks), max(peaks)
        row = {"variant": variant, "size": SIZE, "batch": batch, "predicted_bytes": predicted, "measured_bytes": peak}
        rows.append(row | {"low_bytes": low, "high_bytes": high, "error": round(predicted / peak - 1, 3)})
        sizes = " | ".join(f"{n / 2**20:,.0f}" for n in (predicted, peak))
        print(
            f"| {variant} | {batch} | {sizes} | {predicted / peak - 1:+.1%} | {low / 2**20:,.0f}, {high / 2**20:,.0f} |"
        )
    with open(output, "w") as file:
        json.dump({"environment": environment, "rounds": int(rounds), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["docs/memory.json"]))
