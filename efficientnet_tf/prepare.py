"""Write a data set as record files: `python -m efficientnet_tf.prepare --source=folder --data_dir=IN --output=OUT`."""

import os

from efficientnet_tf import cli


def main(args):
    """Write each split and say what came out."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.data.write_tfrecord import write_records

    # Of several splits the first is for training, and says what the classes are.
    first = [f"data.train_split={args.splits[0]}"] if len(args.splits) > 1 else []
    data = load_config("b0", "folder", [f"data.source={args.source}", *first, *cli.overrides(args)]).data
    counts = args.shards if len(args.shards) > 1 else args.shards * len(args.splits)
    if len(counts) != len(args.splits):
        raise UserError(f"--shards={args.shards} for --splits={args.splits}: give one number, or one for each split")
    for split, shards in zip(args.splits, counts, strict=True):
        summary = write_records(data, split, args.output, shards, args.workers, args.beam)
        records, unreadable = sum(summary["records_per_file"]), summary["unreadable"]
        print(
            f"{args.output}: {split}, {records} images of {len(summary['examples_per_class'])} classes, {shards} files"
        )
        for line in unreadable[:10]:
            print(f"left out: {line}")
        if unreadable:
            print(f"{len(unreadable)} images cannot be decoded and were left out; {split}.json lists them all")


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "prepare",
        "Write a data set as TFRecord files, which data.source=records reads. Killed and started again by the same "
        "command, it goes on with the first file that is missing.",
    )
    parser.add_argument("--source", default="folder", help="folder, table, digits, synthetic or tfds:<name>")
    parser.add_argument("--output", required=True, help="where the files go, local or gs://")
    parser.add_argument("--splits", type=lambda text: text.split(","), default=["train", "val"], help="train,val")
    parser.add_argument("--shards", type=cli.positive_ints, default=[16], help="files a split: one number, or each")
    parser.add_argument("--workers", type=cli.positive_int, default=os.cpu_count(), help="files written side by side")
    parser.add_argument(
        "--beam", type=str.split, help="run on Apache Beam, which spreads over machines, with these flags of its own"
    )
    cli.add_override_arguments(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
