"""Compound scaling, and the cost of a network, computed from numbers alone without building anything.

Modules:
    compound: Scale a network, and decide its channels, repeats and resolution.
    layers: List the layers of a network with their shapes, parameters and multiply-adds.
    complexity: Add up parameters, multiply-adds and receptive fields.
    memory: Predict the memory of training and inference.
    budget: Find the largest network within a budget.

May import `config`. Imports no TensorFlow.

Public names, importable from `efficientnet_tf`: `Coefficients`, `compound`, `count_cost` and `fit_budget`.
"""
