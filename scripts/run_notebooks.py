"""Run the notebooks of the documentation and write their outputs into them: `python scripts/run_notebooks.py`.

    python scripts/run_notebooks.py                # all of them, about three minutes on two cores
    python scripts/run_notebooks.py quickstart     # one of them

A notebook runs in an empty folder and in a process of its own. It is written only if no cell fails. What changes with
each run, such as times of execution, is left out.
"""

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs/notebooks"
LONGEST_CELL_SECONDS = 600


def run(path):
    """Return a notebook with the outputs of its cells. Raises `nbclient.exceptions.CellExecutionError` if one fails."""
    import nbformat
    from nbclient import NotebookClient

    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=LONGEST_CELL_SECONDS,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_log(output)]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def is_log(output):
    """Return whether an output is empty, progress, or log lines of native libraries. These differ from run to run."""
    from efficientnet_tf.runtime.terminal import NATIVE_LOG

    if output.output_type == "display_data":
        return not output.data.get("text/plain", "figure").strip()
    lines = output.text.splitlines() if output.get("name") == "stderr" else ["answer"]
    return all(re.match(NATIVE_LOG + r"|.+: \d+ of \d+ |fully_quantize: |$", line) for line in lines)


def main(names):
    """Run the notebooks with these names."""
    import nbformat

    for name in names:
        started = time.monotonic()
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(run(path), path)
        print(f"{name}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*known, []], default=[], help="Default: all.")
    main(parser.parse_args().names or known)
