#!/usr/bin/env bash
# Train on a TPU VM until training is done, and create the TPU VM again whenever it is preempted. Run this in a checkout
# on your own machine. It needs the gcloud command, logged in. Use a --model_dir on gs://, because nothing else is kept.
#   ZONE=us-central2-b TYPE=v3-32 bash scripts/tpu_until_done.sh NAME --variant=b4 --data_dir=gs://bucket/tfds --model_dir=gs://bucket/b4
# VERSION sets the runtime (tpu-ubuntu2204-base). SPOT= requests a TPU VM that is not preempted. The TPU VM is not
# deleted at the end. Delete it with: gcloud compute tpus tpu-vm delete NAME --zone=ZONE
set -euo pipefail
: "${ZONE:?set it to the zone, for example us-central2-b}" "${TYPE:?set it to the slice, for example v3-32}"
: "${1:?give the name of the TPU VM as the first argument}"
name=$1
shift
version=${VERSION:-tpu-ubuntu2204-base} spot=${SPOT---spot} pause=${PAUSE:-60} folder=efficientnet_tf
tpu() {
  local verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" "$@" --zone="$ZONE"
}
everywhere() { tpu ssh "$name" --worker=all --command="$1"; }

command="cd $folder && bash scripts/until_done.sh .venv/bin/python -m efficientnet_tf.train --tpu=local$(printf ' %q' "$@")"
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
git archive --format=tar.gz --output="$scratch/$folder.tar.gz" HEAD
fresh=1
while true; do
  state=$(tpu describe "$name" --format='value(state)' 2>/dev/null || echo NONE)
  case $state in
    READY) ;;
    NONE)
      options=(--accelerator-type="$TYPE" --version="$version" ${spot:+"$spot"})
      if tpu create "$name" "${options[@]}"; then fresh=1; else sleep "$pause"; fi
      continue ;;
    PREEMPTED | TERMINATED | STOPPED) tpu delete "$name" --quiet || sleep "$pause"; continue ;;
    *) echo "tpu_until_done: $name is $state, waiting for it" >&2; sleep "$pause"; continue ;;
  esac
  if [ -n "$fresh" ]; then
    tpu scp "$scratch/$folder.tar.gz" "$name": --worker=all || { sleep "$pause"; continue; }
    everywhere "mkdir -p $folder && tar -xzf $folder.tar.gz -C $folder && cd $folder && bash scripts/setup_tpu_vm.sh" ||
      { sleep "$pause"; continue; }
    fresh=
  fi
  status=0
  everywhere "$command" || status=$?
  # 0 is done. 1 and 2 are errors that would happen again. After all others, for example 255 for a lost connection,
  # check the TPU VM and go on.
  case $status in 0 | 1 | 2) exit $status ;; esac
  echo "tpu_until_done: exit status $status, checking $name" >&2
  sleep "$pause"
done
