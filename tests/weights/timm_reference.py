"""Runs a real timm model: `python timm_reference.py NAME FOLDER`.

Reads `images_<side>.npy`, images [N, H, W, C] in [0, 255], from the folder, and normalizes them as the configuration of
the pretrained model says. Writes the model's random weights as safetensors and .pth files, and its `logits_<side>.npy`.

timm imports torchvision for its data loaders, but the models do not use it. Empty modules take its place, because the
build of torchvision that fits a build of torch cannot always be installed. They exist in this process only.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from pathlib import Path

import numpy as np


class _AnyAttribute(type):
    """A class with every attribute, as an enumeration has them."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _AnyModule(types.ModuleType):
    """A module that defines a class of every name."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyAttribute(name, (), {})


class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports torchvision and each of its modules as an empty module."""

    def find_spec(self, name, path=None, target=None):
        is_torchvision = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_torchvision else None

    def create_module(self, spec):
        return _AnyModule(spec.name)

    def exec_module(self, module):
        pass


def import_timm():
    """Return the module timm."""
    sys.meta_path.append(_Torchvision())
    import timm

    return timm


def main(name, folder):
    timm = import_timm()
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7)
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    images = {}
    for path in folder.glob("images_*.npy"):
        normalized = (np.load(path) / 255 - mean) / std
        images[path] = torch.from_numpy(normalized.astype(np.float32).transpose(0, 3, 1, 2))
    with torch.no_grad():
        # Statistics of real features, so that logits are of the same size as those of a trained network.
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(images[min(images)])
        for norm in norms:
            norm.running_var += 0.1
        model.eval()
        for path, batch in images.items():
            np.save(path.with_name(path.name.replace("images", "logits")), model(batch).numpy())
    save_file(model.state_dict(), folder / f"{name}.safetensors")
    torch.save({"state_dict": model.state_dict()}, folder / f"{name}.pth")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
