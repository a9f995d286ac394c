"""Check a TPU training run on a machine without a TPU.

The training and evaluation steps are traced by `tf.distribute.TPUStrategy` or by JAX for a simulated slice, lowered to
XLA, and compiled by the TPU compiler. Nothing is run.

Modules:
    topology: The slices that the compiler knows, with the published figures of their chips.
    checks: What would stop a run or slow it down.
    trace: The graphs of the training and evaluation steps of TensorFlow.
    lower: From the graph of a step to the XLA program of one replica.
    compile: Compiles a program for a slice, in a separate process, and reads the compiler's answer.
    libtpu: That process, which holds the compiler.
    tensorflow_steps: The steps of a run with TensorFlow: the four modules before, in order.
    jax_steps: The steps of a run with JAX, which need none of them.
    run: All of it, in order.
    report: The report for people.

May import `benchmark` and the packages below it. Public names: `run.run_preflight`, `topology.parse_topology`,
`report.format_report` and `report.format_markdown`. `trace` and `libtpu` use private parts of TensorFlow and jaxlib,
which they name.
"""
