"""Waits for other processes, and reads what they wrote to the database of the job queue."""

import collections
import sqlite3
import time


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not become true within {seconds} seconds"
        time.sleep(0.05)


def count_trials(folder):
    """Return {(name of the run, state): number of Optuna trials}, read from the database itself."""
    with sqlite3.connect(folder / "trials.db") as connection:
        found = connection.execute(
            "select a.value_json, t.state from trials t join trial_user_attributes a using (trial_id) where key = 'run'"
        ).fetchall()
    connection.close()
    return collections.Counter((name.strip('"'), state) for name, state in found)
