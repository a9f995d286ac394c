"""Reads weights of Keras, timm, efficientnet_pytorch, the official code and this package, and loads them into a model.

May import `data` and every package below it.

Public names: `load.load_weights`, `loaded.LoadSummary` and `convert.convert_weights`. `formats.read_weights` reads a
file without a model. `python -m efficientnet_tf.weights` converts a file.
"""
