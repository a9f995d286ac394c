"""Writes the requests with which TensorFlow Serving warms up a SavedModel before it answers.

They are records of the message tensorflow.serving.PredictionLog. The package with its definition requires another build
of TensorFlow, so the few fields are written here.

Source: https://www.tensorflow.org/tfx/serving/saved_model_warmup, and tensorflow_serving/apis/*.proto.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from efficientnet_tf.export.metadata import make_field

PATH = "assets.extra/tf_serving_warmup_requests"
_PREDICT_LOG, _REQUEST, _MODEL_SPEC, _INPUTS, _SIGNATURE_NAME = 6, 1, 1, 2, 3  # numbers of fields
_KEY, _VALUE = 1, 2  # of an entry of a map


def write_warmup_requests(folder: str, inputs: Mapping[str, Any]) -> None:
    """Write one request for each signature.

    Args:
        folder: Folder of a SavedModel.
        inputs: {name of a signature: its input `image`, a TensorProto}.
    """
    path = os.path.join(folder, PATH)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:
        for name, image in inputs.items():
            model = make_field(_SIGNATURE_NAME, name.encode())
            entry = make_field(_KEY, b"image") + make_field(_VALUE, image.SerializeToString())
            request = make_field(_MODEL_SPEC, model) + make_field(_INPUTS, entry)
            writer.write(make_field(_PREDICT_LOG, make_field(_REQUEST, request)))
