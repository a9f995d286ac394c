"""Check a TPU training run on a machine without a TPU.

The training and evaluation steps are traced by `tf.distribute.TPUStrategy` for a simulated slice, lowered to XLA, and
compiled by the TPU compiler. Nothing is run.

Modules:
    topology: The slices that the compiler knows, with the published figures of their chips.
    checks: What would stop a run or slow it down.
    trace: The graphs of the training and evaluation steps.
    lower: From the graph of a step to the XLA program of one replica.
    compile: Compiles a program for a slice, in a separate process.
    libtpu: That process, which holds the compiler.
    run: All of it, in order.
    report: The report for people.

May import `benchmark` and the packages below it. Public names: `run.run_preflight`, `topology.parse_topology`,
`report.format_report` and `report.format_markdown`. `trace` and `libtpu` use private parts of TensorFlow and jaxlib,
which they name.
"""
