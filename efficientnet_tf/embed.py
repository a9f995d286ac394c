"""Write feature vectors of images: `python -m efficientnet_tf.embed --model_dir=DIR --output=vectors.npz folder/`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efficientnet_tf import cli

if TYPE_CHECKING:
    import numpy as np

_BLOCK = 2000  # rows that are compared together


def find_duplicates(vectors: np.ndarray, similarity: float) -> list[tuple[int, int, float]]:
    """Return the pairs of images whose vectors have almost the same direction.

    Args:
        vectors: Feature vectors, float [N, features].
        similarity: Smallest cosine of the angle between two vectors, in (0, 1].

    Returns:
        (first image, second image, cosine) of each pair, the most similar one first. The time grows with the square of
        the number of images.
    """
    import numpy as np

    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    pairs = []
    for start in range(0, len(unit), _BLOCK):
        rows = unit[start : start + _BLOCK]
        cosines = rows @ unit[start:].T
        first, second = np.nonzero(np.triu(cosines >= similarity, k=1))
        pairs += zip((first + start).tolist(), (second + start).tolist(), cosines[first, second].tolist(), strict=True)
    return sorted(pairs, key=lambda pair: -pair[2])


def main(args: argparse.Namespace) -> int:
    """Compute and write the vectors. The status is 1 if a file could not be read."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.data.scan import find_images
    from efficientnet_tf.export.check import check_model
    from efficientnet_tf.runtime.backend import choose_backend
    from efficientnet_tf.runtime.files import atomic_writer, check_output, write_output
    from efficientnet_tf.runtime.parquet import check_paths, require_pyarrow
    from efficientnet_tf.runtime.tables import format_csv

    choose_backend(args.backend)
    if args.similarity > 1:
        raise UserError(f"similarity={args.similarity:g} is not possible. A cosine is at most 1.")
    check_output("output", args.output, (".npz", ".parquet"), [args.model_dir, *args.images])
    if args.output.endswith(".parquet"):
        require_pyarrow(f"output={escape(args.output)}")
    check_output("duplicates", args.duplicates, (".csv",), [args.model_dir, *args.images])
    check_model(args.model_dir, checkpoint=args.checkpoint)
    paths = find_images(args.images)
    if args.output.endswith(".parquet"):
        check_paths(args.output, paths, "FILE.npz")
    import numpy as np

    from efficientnet_tf.export.load import load_model

    vectors, failed = _compute(load_model(args.model_dir, checkpoint=args.checkpoint), paths)
    read = [path for path, vector in zip(paths, vectors, strict=True) if vector is not None]
    found = np.stack([vector for vector in vectors if vector is not None]) if read else np.zeros([0, 0], np.float32)
    with atomic_writer(args.output) as file:
        _write(file, args.output, read, found)
    print(f"{escape(args.output)}: {len(read):,} vectors of {found.shape[1]:,} numbers")
    if args.duplicates:
        pairs = find_duplicates(found, args.similarity)
        rows = [{"first": read[i], "second": read[j], "similarity": round(cosine, 4)} for i, j, cosine in pairs]
        write_output("duplicates", args.duplicates, format_csv(["first", "second", "similarity"], rows))
        print(f"{escape(args.duplicates)}: {len(pairs):,} pairs with a similarity of at least {args.similarity:g}")
    if failed:
        print(f"{failed} file(s) could not be read. All others have a vector.", file=sys.stderr)
    return cli.EXIT_ERROR if failed else 0


def _write(file, name, paths, vectors):
    """Write paths and vectors to a file that is open, in the format that its name asks for."""
    if name.endswith(".parquet"):
        from efficientnet_tf.runtime.parquet import ParquetWriter

        with ParquetWriter(file, {"path": "text", "vector": "numbers"}) as table:
            for row in zip(paths, vectors, strict=True):
                table.write(row)
        return
    import numpy as np

    # Paths as bytes in UTF-8, in which any file name can be written.
    np.savez(file, paths=np.array([path.encode(errors="surrogateescape") for path in paths]), vectors=vectors)


def _compute(model: Any, paths: Sequence[str]) -> tuple[list[Any], int]:
    """Return the vector of each image, None for one that cannot be read, and how many there are of these."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.runtime.terminal import RateBar

    vectors, failed = [], 0
    with RateBar(len(paths), "Embedding", "images") as bar:
        for vector in model.iterate_vectors(paths):
            bar.advance()
            if isinstance(vector, UserError):
                failed += 1
                bar.print(escape(str(vector)), sys.stderr)
                vector = None
            vectors.append(vector)
    return vectors, failed


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = cli.make_parser(
        "embed", "Write the feature vectors of images, which are close to each other for images that look alike."
    )
    parser.add_argument("images", type=cli.path, nargs="+", metavar="IMAGE", help="Image files, or folders of them.")
    parser.add_argument(
        "--model_dir",
        type=cli.model_path,
        required=True,
        help="Model directory of a run, its model.keras, or hf://user/name on the Hugging Face Hub.",
    )
    cli.add_checkpoint_argument(parser)
    cli.add_backend_argument(parser)
    parser.add_argument(
        "--output",
        type=cli.path,
        required=True,
        metavar="FILE.npz|FILE.parquet",
        help="File to write: arrays of NumPy, `paths`, bytes in UTF-8, and `vectors`, float32 [N, features], or a "
        "Parquet file with the columns `path` and `vector`.",
    )
    parser.add_argument(
        "--duplicates",
        type=cli.path,
        metavar="FILE.csv",
        help="Also write the pairs of images that look almost the same.",
    )
    parser.add_argument(
        "--similarity",
        type=cli.positive_number,
        default=0.95,
        help="Smallest cosine between the vectors of two images that count as almost the same.",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
