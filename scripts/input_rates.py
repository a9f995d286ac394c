"""Compare how fast training images arrive from the sources of files: `python scripts/input_rates.py`.

The same photographs, with the size of ImageNet's, are written as a folder of files, as TFRecords, as Parquet and as tar
files. Each source is then read in turns, once without decoding and once as training images of B0. The script writes
docs/speed/input_sources.json. All files are in the memory of the system, so the figures say what the formats cost, and
not how fast the disk is.
"""

import argparse
import io
import json
import os
import statistics
import tarfile
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from efficientnet_tf.benchmark.input import make_photos, measure_rate
from efficientnet_tf.config.load import describe_environment, load_config
from efficientnet_tf.data.failures import Failures
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import train_dataset
from efficientnet_tf.data.source import Order, Source, without_tuning
from efficientnet_tf.data.write_tfrecord import write_records
from efficientnet_tf.runtime.hardware import describe_hardware

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "speed" / "input_sources.json"
SOURCES = ("records", "folder", "parquet", "webdataset")
PHOTOS, CLASSES, SHARDS, BATCH = 1024, 4, 8, 32


def write_sources(root: Path) -> None:
    """Write the same photographs for each source."""
    photos = make_photos(PHOTOS)
    for number, photo in enumerate(photos):
        folder = root / "folder" / "train" / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}.jpg").write_bytes(photo)
    data = load_config("b0", "folder", ["data.source=folder", f"data.dir={root}/folder"]).data
    write_records(data, "train", str(root / "records"), SHARDS, 2)
    for shard in range(SHARDS):
        own = range(shard, PHOTOS, SHARDS)
        images = [{"bytes": photos[n], "path": f"{n}.jpg"} for n in own]
        (root / "parquet").mkdir(exist_ok=True)
        table = pa.table({"image": images, "label": [n % CLASSES for n in own]})
        pq.write_table(table, root / "parquet" / f"train-{shard:05d}-of-{SHARDS:05d}.parquet", row_group_size=100)
        (root / "webdataset").mkdir(exist_ok=True)
        with tarfile.open(root / "webdataset" / f"train-{shard:04d}.tar", "w") as tar:
            for n in own:
                for name, content in ((f"{n:05d}.jpg", photos[n]), (f"{n:05d}.cls", str(n % CLASSES).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def start(source: Source, config, decodes: bool):
    """Return an iterator of the number of images in each batch."""
    if decodes:
        batches = train_dataset(source, config, Failures(source), 0, tf.distribute.InputContext())
        return iter(batches.map(lambda images, _: tf.shape(images)[0]).as_numpy_iterator())
    images = source.stream(Order(batch=BATCH, shuffle=True))
    sizes = images.map(lambda _p, _i, payload: tf.strings.length(source.load(payload)[0]), num_parallel_calls=2)
    return iter(without_tuning(sizes.batch(BATCH).map(tf.size).prefetch(2)).as_numpy_iterator())


def measure(root: Path, rounds: int, seconds: float) -> list[dict]:
    """Return a row for each source and kind of reading."""
    rows = []
    for decodes in (False, True):
        iterators = {}
        for name in SOURCES:
            settings = [f"data.source={name}", f"data.dir={root / name}", "data.shuffle_buffer=256"]
            config = load_config("b0", "folder", [*settings, f"train.batch_size={BATCH}", "data.image_size=224"])
            iterators[name] = start(open_source(config.data, "train", True), config, decodes)
        rates = {name: [] for name in SOURCES}
        for round_number in range(rounds + 1):
            for name, iterator in iterators.items():
                rate = measure_rate(iterator, seconds / 2, seconds)
                if round_number:
                    rates[name].append(rate)
        median = {name: statistics.median(values) for name, values in rates.items()}
        for name, values in rates.items():
            row = {"source": name, "decodes": decodes, "images_per_second": round(float(median[name]), 1)}
            row |= {"low": round(float(min(values)), 1), "high": round(float(max(values)), 1)}
            rows.append(row | {"of_records": round(float(median[name] / median["records"]), 3)})
    return rows


def main(args: argparse.Namespace) -> None:
    """Measure and write the results."""
    with tempfile.TemporaryDirectory() as folder:
        write_sources(Path(folder))
        rows = measure(Path(folder), args.rounds, args.seconds)
    environment = describe_environment("pyarrow") | describe_hardware()
    RESULTS.write_text(json.dumps({"environment": environment, "photos": PHOTOS, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(row)


def make_parser() -> argparse.ArgumentParser:
    """Return the flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="Rounds that count. One more comes first. (default: 7)")
    parser.add_argument("--seconds", type=float, default=3.0, help="Length of one measurement. (default: 3)")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
