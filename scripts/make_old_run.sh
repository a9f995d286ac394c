#!/usr/bin/env bash
# Write tests/fixtures/old_run: a short run trained by an earlier version of this package. Tests check that today's
# code resumes it. Run it from a clone that has the commit.
#
#     scripts/make_old_run.sh [COMMIT]
set -euo pipefail
cd "$(dirname "$0")/.."
commit=${1:-66ec417f074b}
output=$PWD/tests/fixtures/old_run
scratch=$(mktemp -d)
trap 'git worktree remove --force "$scratch/source"; rm -rf "$scratch"' EXIT
git worktree add --detach "$scratch/source" "$commit"
cp tests/tiny.yaml "$scratch/tiny.yaml"
cd "$scratch/source"
# Two epochs, and a checkpoint after each: the test deletes the second one and trains it again. Two blocks of the
# tiny network keep the files small.
stages='[{kernel: 3, stride: 1, expand: 1, channels: 8, repeats: 1},
  {kernel: 5, stride: 2, expand: 4, channels: 16, repeats: 1}]'
PYTHONPATH=$scratch/source python -m efficientnet_tf.train --variant="$scratch/tiny.yaml" --recipe=digits --device=cpu \
  --model_dir="$scratch/run" --set train.epochs=2 --set train.checkpoint_every_epochs=1 --set eval.every_epochs=2 \
  --set augment.policy=randaugment --set augment.mixup=0.2 --set "model.stages=$stages"
rm -rf "$output" && mkdir -p "$output"
rm -f "$scratch"/run/checkpoints/step-44.*
cp -r "$scratch"/run/{config.yaml,classes.txt,metrics.jsonl,model.keras,checkpoints} "$output"
