"""Evaluates classifiers: accuracy, per-class results, label sets of ImageNet, and class activation maps.

May import `weights` and everything it imports.
"""
