"""Trains a model: the trainer, the training step, schedules, optimizers, EMA and checkpoints.

May import `evaluation` and everything it imports.
"""
