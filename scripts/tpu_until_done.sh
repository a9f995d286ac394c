#!/usr/bin/env bash
# From a checkout on your own machine: trains on a TPU VM until the training is done, and makes the TPU VM anew when it
# was preempted. Needs the gcloud command, logged in. All that a run must keep lies in its --model_dir, on gs://.
#   ZONE=us-central2-b TYPE=v3-32 bash scripts/tpu_until_done.sh NAME --variant=b4 --data_dir=gs://bucket/tfds --model_dir=gs://bucket/b4
# VERSION is the runtime (tpu-ubuntu2204-base); SPOT= asks for one that is not preempted. The TPU VM is not deleted at the
# end: gcloud compute tpus tpu-vm delete NAME --zone=ZONE
set -euo pipefail
: "${ZONE:?the zone, such as us-central2-b}" "${TYPE:?the slice, such as v3-32}" "${1:?the name of the TPU VM}"
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
    *) echo "tpu_until_done: $name is $state, waiting" >&2; sleep "$pause"; continue ;;
  esac
  if [ -n "$fresh" ]; then
    tpu scp "$scratch/$folder.tar.gz" "$name": --worker=all || { sleep "$pause"; continue; }
    everywhere "mkdir -p $folder && tar -xzf $folder.tar.gz -C $folder && cd $folder && bash scripts/setup_tpu_vm.sh" ||
      { sleep "$pause"; continue; }
    fresh=
  fi
  status=0
  everywhere "$command" || status=$?
  # 0: done. 1 and 2: an error that would come again. All else, 255 of a lost connection among it: look, and go on.
  case $status in 0 | 1 | 2) exit $status ;; esac
  echo "tpu_until_done: status $status, looking at $name" >&2
  sleep "$pause"
done
