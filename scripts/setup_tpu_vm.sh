#!/usr/bin/env bash
# On every host of a TPU VM, in a checkout: an environment with TensorFlow for TPU. `tpu_until_done.sh` calls it; by hand:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command="cd efficientnet_tf && bash scripts/setup_tpu_vm.sh"
#
# What the extra [tpu] pins, and why: tensorflow-tpu 2.19.1, for the later wheels ask for a libtpu that they cannot load
# (the import aborts), and cloud-tpu-client 0.10, by which TensorFlow finds a TPU by its name. The extra [preflight] has
# a newer libtpu for its compiler and must not be installed beside [tpu].
set -euo pipefail
python=${PYTHON:-python3.11}
if ! command -v "$python" >/dev/null; then  # the images' own python3 is older than this package needs
  sudo apt-get update -qq
  sudo apt-get install -y -qq python3.11 python3.11-venv
fi
"$python" -m venv .venv
.venv/bin/pip install -q -e '.[tpu]'
.venv/bin/python -c "import tensorflow as tf; print(tf.__version__, tf.config.list_logical_devices('TPU') or 'no TPU')"
