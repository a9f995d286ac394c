"""Measures the speed of the input pipeline, of training and of inference.

May import `visualization` and everything it imports.
"""
