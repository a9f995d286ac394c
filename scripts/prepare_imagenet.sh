#!/usr/bin/env bash
# Convert ImageNet's tar files to TensorFlow Datasets' records, then to TFRecord files in the official layout with enough
# shards for many hosts.
#   bash scripts/prepare_imagenet.sh /data/tfds gs://bucket/imagenet
# Put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into /data/tfds/downloads/manual first. `data.source` reads the
# output of the first step as tfds:imagenet2012, and that of the second as records. If the script is interrupted, start
# it again: it continues where it stopped.
set -euo pipefail
tfds=$1
output=$2
python "$(dirname "$0")/prepare_tfds.py" imagenet2012 --data_dir="$tfds"
python -m efficientnet_tf.prepare --source=tfds:imagenet2012 --data_dir="$tfds" --output="$output" \
  --splits=train,validation --shards=1024,128
