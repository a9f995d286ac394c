"""Measure the speed of the input pipeline, of training and of inference on this machine.

Modules:
    setting: What a process is asked to run.
    worker: The processes that are timed: this package, other implementations, and the limits of the machine.
    jax_implementations: What a process runs with JAX.
    rounds: Starts workers and runs them in turn, so that all of them see the same machine.
    networks: Measures networks next to other implementations.
    input: Measures the input pipeline.
    measure: Time and memory of one network, for other commands.
    report: Tables and the JSON file.
    plot: The plot of time against multiply-adds.

May import `visualization` and the packages below it. Public names: `networks.NetworkBenchmark`, `input.measure_input`,
`measure.inference_seconds`, `measure.training_step`, `report.format_markdown` and `plot.draw_speed`.
"""
