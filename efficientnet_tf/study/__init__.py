"""Trains many networks and compares them: the scaling studies of the paper and the search for its coefficients.

May import `preflight` and every package that `preflight` may import. Imports no TensorFlow, because each network is
trained in a separate process by the command `train`. Nothing here is public API: use the commands `study` and `search`.

Modules:
    designs: The networks of each study, and how their results are grouped.
    coefficients: The search for the coefficients of compound scaling.
    mnasnet_space, sampling: The networks among which a baseline is searched, and how the next one is chosen.
    architecture_search, architecture_report: The search for a baseline, and what it writes.
    runs, job_queue, runner: Training runs, the queue that processes share, and the loop that trains them.
    results, inference, columns: What the runs measured, as rows of a table and as means over seeds.
    report, page: The CSV file, the plots and the interactive HTML page of a study.
"""
