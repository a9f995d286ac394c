"""Compound scaling, and what a network costs, computed from numbers alone.

May import `config`. Imports no TensorFlow.
"""
