#!/usr/bin/env bash
# ImageNet's own tars -> TensorFlow Datasets' records -> TFRecord files of the official layout, sharded for many hosts.
#   bash scripts/prepare_imagenet.sh /data/tfds gs://bucket/imagenet
# ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar must lie in /data/tfds/downloads/manual. `data.source` reads the
# first step's output as tfds:imagenet2012, and the second's as records. Killed, it goes on where it was.
set -euo pipefail
tfds=$1
output=$2
python "$(dirname "$0")/prepare_tfds.py" imagenet2012 --data_dir="$tfds"
python -m efficientnet_tf.prepare --source=tfds:imagenet2012 --data_dir="$tfds" --output="$output" \
  --splits=train,validation --shards=1024,128
