"""Compare predicted with measured training memory: `python scripts/memory_table.py [docs/memory.json [ROUNDS]]`.

    python scripts/memory_table.py docs/memory_remat.json 3 remat    # B0 with and without train.remat, and the time

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


def measure(variant: str, batch: int, remat: bool = False) -> tuple[int, int, float]:
    """Return the predicted and the measured memory of a training step, in bytes, and its seconds."""
    command = [sys.executable, "-m", "efficientnet_tf.summary", f"--variant={variant}", f"--batch={batch}"]
    command += ["--set", f"data.image_size={SIZE}", "--set", f"train.remat={str(remat).lower()}", "--measure", "--json"]
    summary = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    measured = summary["measured"]
    return summary["memory"]["training"]["total"], measured["train_peak_bytes"], measured["train_seconds"]


def measure_remat(output: str, rounds: int) -> None:
    """Measure B0 with and without `train.remat` in turns, and write the medians."""
    rows = []
    for batch in BATCHES:
        found = [{remat: measure("b0", batch, remat) for remat in (False, True)} for _ in range(rounds)]
        for remat in (False, True):
            predicted, peak, seconds = (statistics.median(each[remat][i] for each in found) for i in range(3))
            row = {"variant": "b0", "size": SIZE, "batch": batch, "remat": remat, "predicted_bytes": predicted}
            rows.append(row | {"measured_bytes": peak, "seconds": round(seconds, 3)})
            print(rows[-1], flush=True)
    report = {"environment": describe_environment() | describe_hardware(), "rounds": rounds, "rows": rows}
    with open(output, "w") as file:
        json.dump(report, file, indent=1)


def main(output: str, rounds: str | int = ROUNDS, what: str = "") -> None:
    """Measure every network and batch size in each round, print the table and write it as JSON."""
    if what == "remat":
        return measure_remat(output, int(rounds))
    environment = describe_environment() | describe_hardware()
    cells = [(variant, batch) for variant in VARIANTS for batch in BATCHES]
    jobs = cells * int(rounds)
    results = [(cell, *measure(*cell)[:2]) for cell in track(jobs, len(jobs), "measuring", "runs")]
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
