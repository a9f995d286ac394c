"""Download and prepare a dataset of TensorFlow Datasets once, before many machines train on it.

    python scripts/prepare_tfds.py imagenet2012 --data_dir=/data/tfds

ImageNet cannot be downloaded. Put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into <data_dir>/downloads/manual
first.
"""

import argparse

import tensorflow_datasets as tfds


def main():
    """Download the dataset if possible, write its records, and print the size of each split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="Name in tensorflow.org/datasets/catalog, for example imagenet2012 or imagenette.")
    parser.add_argument(
        "--data_dir", help="Folder for the records. Defaults to the data folder of TensorFlow Datasets."
    )
    args = parser.parse_args()
    builder = tfds.builder(args.name, data_dir=args.data_dir)
    builder.download_and_prepare()
    for name, split in builder.info.splits.items():
        print(f"{builder.data_path}: {name}, {split.num_examples} examples in {split.num_shards} files")


if __name__ == "__main__":
    main()
