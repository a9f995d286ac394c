#!/usr/bin/env bash
# On every host of a TPU VM, in a checkout: an environment with TensorFlow for TPU.
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command="cd efficientnet_tf && bash scripts/setup_tpu_vm.sh"
set -euo pipefail
python3 -m venv .venv
.venv/bin/pip install -e '.[tpu]'
.venv/bin/python -c "import tensorflow as tf; print(tf.__version__, tf.config.list_logical_devices('TPU') or 'no TPU')"
