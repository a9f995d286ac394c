#!/usr/bin/env bash
# Create an environment with TensorFlow for TPU. It runs in a checkout on every host of a TPU VM. `tpu_until_done.sh`
# calls it. To call it by hand:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command="cd efficientnet_tf && bash scripts/setup_tpu_vm.sh"
#
# The extra [tpu] pins tensorflow-tpu 2.19.1, because later wheels require a libtpu that they cannot load (the import
# aborts). It also pins cloud-tpu-client 0.10, with which TensorFlow looks up the names of TPUs. Do not install the
# extra [preflight] in the same environment, because its compiler needs a newer libtpu.
set -euo pipefail
python=${PYTHON:-python3.11}
if ! command -v "$python" >/dev/null; then  # the python3 of the TPU images is too old for this package
  sudo apt-get update -qq
  sudo apt-get install -y -qq python3.11 python3.11-venv
fi
"$python" -m venv .venv
.venv/bin/pip install -q -e '.[tpu]'
.venv/bin/python -c "import tensorflow as tf; print(tf.__version__, tf.config.list_logical_devices('TPU') or 'no TPU')"
