"""Writes trained models for TensorFlow Serving, LiteRT, ONNX Runtime and OpenVINO.

May import `training` and everything it imports.
"""
