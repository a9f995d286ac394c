"""Configs: YAML files and overrides, checked against one schema.

Imports nothing else of this package, and no TensorFlow.
"""
