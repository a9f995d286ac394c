"""Traces and compiles the training step for a TPU on a machine that has none.

May import `benchmark` and everything it imports.
"""
