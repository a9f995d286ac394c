"""The machine that a run uses: devices, workers, files, hardware.

May import the packages above and `ops`.
"""
