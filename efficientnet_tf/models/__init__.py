"""Networks as Keras models, and the directories that trained ones are stored in.

May import `config`, `scaling`, `ops` and `runtime`.
"""
