"""Write a dataset as record files: `python -m efficientnet_tf.prepare --source=folder --data_dir=IN --output=OUT`."""

import os

from efficientnet_tf import cli


def main(args):
    """Write each split and print a summary."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.data.listing import check_data
    from efficientnet_tf.data.record_files import check_new_records

    # The first of several splits is the training split, which determines the classes.
    first = [f"data.train_split={args.splits[0]}"] if len(args.splits) > 1 else []
    data = load_config("b0", "folder", [f"data.source={args.source}", *first, *cli.overrides(args)]).data
    for key in ("pseudo_labels", "weight_column"):
        if getattr(data, key) is not None:
            raise UserError(f"Records have one class for each image, so data.{key} cannot be written to them.")
    counts = args.shards if len(args.shards) > 1 else args.shards * len(args.splits)
    if len(counts) != len(args.splits):
        raise UserError(
            f"--shards={','.join(map(str, args.shards))} does not match --splits={','.join(args.splits)}. Give one "
            "number, or one per split."
        )
    checked = check_data(data, args.splits)
    for split, shards in zip(args.splits, counts, strict=True):
        images = checked[split].images if split in checked else None
        check_new_records(data.source, split, args.output, shards, images)

    from efficientnet_tf.data.write_tfrecord import write_records  # imports TensorFlow

    for split, shards in zip(args.splits, counts, strict=True):
        summary = write_records(data, split, args.output, shards, args.workers, args.beam)
        records, unreadable = sum(summary["records_per_file"]), summary["unreadable"]
        classes = len(summary["examples_per_class"])
        print(f"{escape(args.output)}: {escape(split)}, {records} images of {classes} classes, {shards} files")
        for line in unreadable[:10]:
            print(f"left out: {escape(line)}")
        if unreadable:
            images = "1 image" if len(unreadable) == 1 else f"{len(unreadable)} images"
            print(f"{images} could not be decoded and left out. {split}.json lists them all.")


def make_parser():
    """Return the parser of the command's flags."""
    parser = cli.make_parser(
        "prepare",
        "Write a dataset as TFRecord files, which data.source=records reads. If the command is interrupted, start it "
        "again: it continues with the first missing file.",
    )
    parser.add_argument(
        "--source", default="folder", help="Source to read: folder, table, arrays, digits, synthetic or tfds:<name>."
    )
    parser.add_argument("--output", type=cli.path, required=True, help="Folder for the record files, local or gs://.")
    parser.add_argument(
        "--splits",
        type=lambda text: text.split(","),
        default=["train", "val"],
        help="Splits to write, separated by commas. The first one determines the classes.",
    )
    parser.add_argument(
        "--shards",
        type=cli.positive_ints,
        default=[16],
        help="Number of files per split: one number, or one per split.",
    )
    parser.add_argument(
        "--workers", type=cli.positive_int, default=os.cpu_count(), help="Number of files to write in parallel."
    )
    parser.add_argument(
        "--beam", type=str.split, help="Flags of Apache Beam. If given, Beam writes the files, on several machines."
    )
    cli.add_override_arguments(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
