"""Exports trained models for TensorFlow Serving, LiteRT, ONNX Runtime and OpenVINO, and opens models of any kind.

Public names: `export.export_model`, `load.load_model` and `load.LoadedModel`. This package may import `training` and
the packages that `training` may import.
"""
