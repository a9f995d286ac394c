"""Reads safetensors and .pth files of timm and of efficientnet_pytorch.

timm's pretrained models come with a config.json that says how to use them. Without one, the name of the model says it.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.image_size import as_size
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import check_file, read_text
from efficientnet_tf.weights.loaded import NORMALIZATIONS, LoadedWeights
from efficientnet_tf.weights.names import pytorch_names, timm_names
from efficientnet_tf.weights.safetensors_files import open_safetensors
from efficientnet_tf.weights.tensors import Shapes, StoredTensor, put_tensor, read_needed
from efficientnet_tf.weights.torch_files import open_torch

MAX_CONFIG = 2**20  # bytes of config.json
_ADVICE = "Correct it, or move it away and pass padding."


def read_safetensors(
    path: str, variables: Sequence[str], shapes: Shapes, padding: str | None = None, **_: Any
) -> LoadedWeights:
    """Read a safetensors file, or the model.safetensors of a folder."""
    file = os.path.join(path, "model.safetensors") if os.path.isdir(path) else path
    check_file(file)
    with open_safetensors(file) as tensors:
        return _convert(file, tensors, variables, shapes, padding)


def read_torch(
    path: str, variables: Sequence[str], shapes: Shapes, padding: str | None = None, **_: Any
) -> LoadedWeights:
    """Read a .pth file."""
    with open_torch(path) as tensors:
        return _convert(path, tensors, variables, shapes, padding)


def _convert(path, tensors: Mapping[str, StoredTensor], variables, shapes, padding):
    """Convert tensors to this package's names and layouts, and find out what else they need."""
    is_timm = "_conv_stem.weight" not in tensors
    ours, renamed = timm_names(variables) if is_timm else pytorch_names(variables), {}
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        if len(tensor.shape) == 4:  # [out, in, H, W], or [C, 1, H, W] for a depthwise convolution
            is_depthwise = name.endswith(("conv_dw.weight", "_depthwise_conv.weight"))
            tensor = tensor.transpose((2, 3, 0, 1) if is_depthwise else (2, 3, 1, 0))
        elif len(tensor.shape) == 2:
            tensor = tensor.transpose((1, 0))
        put_tensor(renamed, ours.get(name, name), tensor)
    what = "timm's weights" if is_timm else "weights of efficientnet_pytorch"
    needs, notes = _find_needs(path, padding) if is_timm else _pytorch_needs(path)
    return LoadedWeights(what, read_needed(renamed, shapes), needs, notes)


def _pytorch_needs(path):
    """Return the needs of efficientnet_pytorch, and notes. Its files of AdvProp are called adv-efficientnet-*."""
    needs = {"model.padding": "same", "model.batch_norm_epsilon": 1e-3}
    if not os.path.basename(path).startswith("adv-"):
        return needs, ()
    return needs | NORMALIZATIONS["advprop"], ("pixel normalization advprop, because the file is called adv-*",)


def _find_needs(path, padding):
    """Return what timm's weights need, and notes: from config.json, the name of the model, and `padding`."""
    config_path = os.path.join(os.path.dirname(path), "config.json")
    config = _read_config(config_path) if os.path.lexists(config_path) else {}
    settings = config.get("pretrained_cfg", config)
    try:
        needs, notes = _convert_settings(settings)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise UserError(
            f"{escape(config_path)}: its settings are not those of timm: {escape(str(error)[:200])}."
        ) from None
    architecture = str(config.get("architecture") or settings.get("architecture") or os.path.basename(path))
    family = _FAMILY.search(architecture)
    reason = f"because the model is {escape(architecture[:200])}"
    if padding is None:
        if not family:
            raise UserError(
                f"{escape(path)} does not say how the model pads. In timm, tf_efficientnet_* and efficientnet_* have "
                "the same tensors but pad differently, and neither the name of the file nor a config.json next to it "
                "says which one this is. Pass padding=same for tf_efficientnet_*, and padding=symmetric for "
                "efficientnet_*."
            )
        padding = "same" if family[1] else "symmetric"
        notes = (*notes, f"padding {padding}, {reason}")
    if family and "model.mean" not in needs:
        normalization = "advprop" if _HALF.search(architecture) else "imagenet"
        needs |= NORMALIZATIONS[normalization]
        notes = (*notes, f"pixel normalization {normalization}, {reason}")
    if family and family[2] in _SIZES and "data.image_size" not in needs:
        needs["data.image_size"] = _SIZES[family[2]]
        notes = (*notes, f"images of {_SIZES[family[2]]} pixels, {reason}")
    needs["model.padding"] = padding
    needs["model.batch_norm_epsilon"] = 1e-3 if padding == "same" else 1e-5
    return needs, notes


_FAMILY = re.compile(r"(tf_)?efficientnet(_b\d|_l2|_lite\d|_e[sml]|v2_b\d|v2_[smlx])|test_efficientnet")
# Models of timm that were trained with larger images than the variants of the same name.
_SIZES = {"_lite3": 300, "_lite4": 380}
# Models of timm that normalize pixels with a mean and a standard deviation of 0.5. The others use those of ImageNet.
_HALF = re.compile(
    r"tf_efficientnet(_lite|_e[sml]|v2_([smlx]|b3[._]in21k|b3[._]21))|efficientnet_b\d[._](ap|ra4)(?![a-z0-9])"
)


def _read_config(path) -> dict[str, Any]:
    """Return the content of config.json."""
    text = read_text(path, MAX_CONFIG)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else escape(str(error)[:200])
        raise UserError(
            f"{escape(path)} is not JSON: {reason}. Correct it, or move it away and pass padding."
        ) from None
    settings = config.get("pretrained_cfg", config) if isinstance(config, dict) else None
    if not isinstance(settings, dict):
        raise UserError(
            f"{escape(path)}: it contains no settings of timm. Correct it, or move it away and pass padding."
        )
    return config


def _convert_settings(settings) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Convert timm's pretrained_cfg, with mean and std of [0, 1], and the crop as a fraction of the resized side.

    Returns:
        The needs, and notes about what has no equal here.
    """
    needs, notes = {}, ()
    for key in ("mean", "std"):
        if key in settings:
            values = [_number(v, key) for v in settings[key]]
            if not 1 <= len(values) <= 1000 or (key == "std" and min(values) <= 0):
                raise ValueError(f"{key} must be a list of numbers, for std above 0")
            needs[f"model.{key}"] = tuple(255 * v for v in values)
    if len(needs) == 1 or len({len(values) for values in needs.values()}) > 1:
        raise ValueError("mean and std must be two lists of the same length")
    if "input_size" in settings:
        shape = settings["input_size"][-2:]
        if len(shape) != 2 or not all(type(side) is int and 1 <= side <= 100_000 for side in shape):
            raise ValueError("input_size must end with the height and the width of the images")
        needs["data.image_size"], size = as_size(shape), min(shape)
        if settings.get("crop_pct") is not None:
            fraction = _number(settings["crop_pct"], "crop_pct")
            if not 0.01 <= fraction <= 1:
                raise ValueError("crop_pct must be a number from 0.01 to 1")
            needs["data.crop_padding"] = round(size / fraction) - size
    mode = settings.get("crop_mode")
    if mode in ("squash", "border") and settings.get("crop_pct") == 1:
        needs.pop("data.crop_padding", None)
        needs["data.crop"] = "squash" if mode == "squash" else "pad"
        if mode == "border" and "model.mean" in needs:  # the color of timm's border
            needs["data.background"] = [round(v) for v in needs["model.mean"]]
    elif mode not in (None, "center"):
        described = f"crop mode {escape(str(mode)[:50])} with crop_pct {escape(str(settings.get('crop_pct'))[:50])}"
        notes = (f"evaluation uses the center crop, because {described} has no equal here",)
    if settings.get("interpolation") in ("bicubic", "bilinear"):
        needs["data.interpolation"] = settings["interpolation"]
    return needs, notes


def _number(value, key):
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{key} contains something else than numbers")
    return float(value)
