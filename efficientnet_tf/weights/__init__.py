"""Reads weights of Keras, timm, the official checkpoints and this package into a model.

May import `data` and everything it imports.
"""
