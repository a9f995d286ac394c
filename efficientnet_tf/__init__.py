"""EfficientNet on TensorFlow and Keras 3: the family B0-B8 and L2, and compound scaling itself.

The names below load on first use, so that importing this package imports neither TensorFlow nor Keras.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "build_model": "models.builder",
    "load_variant": "config.load",
    "load_config": "config.load",
    "load_weights": "weights.load",
    "class_activation_map": "evaluation.attribution",
    "grad_cam": "evaluation.attribution",
} | {f"EfficientNetB{i}": "applications" for i in range(8)}

__all__ = sorted(_HOME)


def __getattr__(name):
    """Import the module that defines `name` when it is first asked for (PEP 562)."""
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    """List the lazily imported names beside the loaded ones."""
    return sorted({*globals(), *_HOME})
