"""Operations on tensors: image operations, random numbers, and kernels for training on a CPU.

May import `config` and `scaling`.
"""
