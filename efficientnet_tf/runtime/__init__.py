"""The machine that a run uses: devices, TPUs, other workers, files, memory, signals and the terminal.

May import `config`, `scaling` and `ops`. Import from its modules: `strategy.create_strategy`, `tpu.connect_tpu`,
`workers.is_chief`, `files.write_text`, `hardware.peak_bytes`, `signals.StopFlag`, `terminal.ProgressBar`.
"""
