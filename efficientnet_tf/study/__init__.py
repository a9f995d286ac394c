"""Trains many networks and compares them: the scaling studies of the paper and the search for its coefficients.

May import `preflight` and every package that `preflight` may import. Imports no TensorFlow: each network is trained in
a process of its own, by the command `train`.

Modules:
    designs: The networks of each study, and how their results are grouped.
    coefficients: The search for the coefficients of compound scaling.
    runs, job_queue, runner: Training runs, the queue that processes share, and the loop that works it off.
    results, inference, columns: What the runs measured, as rows of a table and as means over seeds.
    report, page: The CSV file, the plots and the interactive HTML page of a study.
"""
