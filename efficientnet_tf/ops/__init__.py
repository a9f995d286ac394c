"""Operations on tensors: image operations, random numbers, and fused operations for training on a CPU.

May import `config` and `scaling`. Public names: the image operations in `image`, such as `random_erase`; `make_seed`,
`derive_seed`, `uniform` and `uniform_shared` in `random`; `compile_for_cpu` in `xla`; the layers in `fused_cpu`
and `convolutions_cpu`.
"""
