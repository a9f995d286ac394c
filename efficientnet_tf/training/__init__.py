"""Trains a model.

May import `evaluation` and every package below it. Read `trainer` first: it is a run from top to bottom. `step` says
what one training step computes, and `tensorflow_loop` and `jax_loop` run it on devices.

Public names: `trainer.train_model`, `trainer.Trainer`, `trainer.Callback`, `learning_rate_finder.find_learning_rate`.
"""
