"""EfficientNet on TensorFlow and Keras 3: B0 to B8 and L2, Lite, V2 and EdgeTPU, and compound scaling itself.

This module exports the public Python API. Each name is imported on first use, so that importing the package imports
neither TensorFlow nor Keras. The commands are `efficientnet-tf COMMAND`, or `python -m efficientnet_tf.COMMAND`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efficientnet_tf.applications import (
        EfficientNetB0,
        EfficientNetB1,
        EfficientNetB2,
        EfficientNetB3,
        EfficientNetB4,
        EfficientNetB5,
        EfficientNetB6,
        EfficientNetB7,
        EfficientNetB8,
        EfficientNetL2,
        EfficientNetLite0,
        EfficientNetLite1,
        EfficientNetLite2,
        EfficientNetLite3,
        EfficientNetLite4,
        EfficientNetV2B0,
        EfficientNetV2B1,
        EfficientNetV2B2,
        EfficientNetV2B3,
        EfficientNetV2L,
        EfficientNetV2M,
        EfficientNetV2S,
        build_model,
        decode_predictions,
        preprocess_input,
    )
    from efficientnet_tf.calibrate import calibrate_model
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.load import list_variants, load_config, load_variant
    from efficientnet_tf.config.schema import (
        AugmentConfig,
        Config,
        DataConfig,
        EvalConfig,
        ModelSpec,
        OptimizerConfig,
        Phase,
        ScheduleConfig,
        Stage,
        TrainConfig,
    )
    from efficientnet_tf.data.load_image import load_image
    from efficientnet_tf.data.mixing import cutmix, mixup
    from efficientnet_tf.data.policies import autoaugment, randaugment
    from efficientnet_tf.evaluate import evaluate_model
    from efficientnet_tf.evaluation.attribution import class_activation_map, grad_cam
    from efficientnet_tf.export.export import export_model
    from efficientnet_tf.export.load import LoadedModel, load_model
    from efficientnet_tf.hub.publish import push_model
    from efficientnet_tf.ops.image import random_erase
    from efficientnet_tf.predict import predict_images
    from efficientnet_tf.probe import probe_model
    from efficientnet_tf.scaling.budget import fit_budget
    from efficientnet_tf.scaling.complexity import count_cost
    from efficientnet_tf.scaling.compound import Coefficients, compound, scale_by_phi
    from efficientnet_tf.training.learning_rate_finder import find_learning_rate
    from efficientnet_tf.training.trainer import Callback, train_model
    from efficientnet_tf.weights.load import load_weights

__version__ = "0.2.0"

__all__ = [
    "AugmentConfig",
    "Callback",
    "Coefficients",
    "Config",
    "DataConfig",
    "EfficientNetB0",
    "EfficientNetB1",
    "EfficientNetB2",
    "EfficientNetB3",
    "EfficientNetB4",
    "EfficientNetB5",
    "EfficientNetB6",
    "EfficientNetB7",
    "EfficientNetB8",
    "EfficientNetL2",
    "EfficientNetLite0",
    "EfficientNetLite1",
    "EfficientNetLite2",
    "EfficientNetLite3",
    "EfficientNetLite4",
    "EfficientNetV2B0",
    "EfficientNetV2B1",
    "EfficientNetV2B2",
    "EfficientNetV2B3",
    "EfficientNetV2L",
    "EfficientNetV2M",
    "EfficientNetV2S",
    "EvalConfig",
    "LoadedModel",
    "ModelSpec",
    "OptimizerConfig",
    "Phase",
    "ScheduleConfig",
    "Stage",
    "TrainConfig",
    "UserError",
    "autoaugment",
    "build_model",
    "calibrate_model",
    "class_activation_map",
    "compound",
    "count_cost",
    "cutmix",
    "decode_predictions",
    "evaluate_model",
    "export_model",
    "find_learning_rate",
    "fit_budget",
    "grad_cam",
    "list_variants",
    "load_config",
    "load_image",
    "load_model",
    "load_variant",
    "load_weights",
    "mixup",
    "predict_images",
    "preprocess_input",
    "probe_model",
    "push_model",
    "randaugment",
    "random_erase",
    "scale_by_phi",
    "train_model",
]

# The module of each name, as in the imports above.
_MODULES = {
    **dict.fromkeys((name for name in __all__ if name.startswith("EfficientNet")), "applications"),
    **dict.fromkeys((name for name in __all__ if name.endswith("Config")), "config.schema"),
    **dict.fromkeys(("ModelSpec", "Phase", "Stage"), "config.schema"),
    "Callback": "training.trainer",
    "Coefficients": "scaling.compound",
    "LoadedModel": "export.load",
    "UserError": "config.errors",
    "autoaugment": "data.policies",
    "build_model": "applications",
    "calibrate_model": "calibrate",
    "class_activation_map": "evaluation.attribution",
    "compound": "scaling.compound",
    "count_cost": "scaling.complexity",
    "cutmix": "data.mixing",
    "decode_predictions": "applications",
    "evaluate_model": "evaluate",
    "export_model": "export.export",
    "find_learning_rate": "training.learning_rate_finder",
    "fit_budget": "scaling.budget",
    "grad_cam": "evaluation.attribution",
    "list_variants": "config.load",
    "load_config": "config.load",
    "load_image": "data.load_image",
    "load_model": "export.load",
    "load_variant": "config.load",
    "load_weights": "weights.load",
    "mixup": "data.mixing",
    "predict_images": "predict",
    "preprocess_input": "applications",
    "probe_model": "probe",
    "push_model": "hub.publish",
    "randaugment": "data.policies",
    "random_erase": "ops.image",
    "scale_by_phi": "scaling.compound",
    "train_model": "training.trainer",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
