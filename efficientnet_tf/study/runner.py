"""Training runs of a list, each done once, by any number of processes or machines: `ledger` keeps the list.

Each run is trained by the command train in a process of its own, so that what crashes or runs out of memory is that
run alone.
"""

import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from tqdm import tqdm

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import diff_config, dump_config, dump_variant, load_config, parse_config
from efficientnet_tf.runtime.files import write_text
from efficientnet_tf.runtime.hardware import peak_bytes as read_peak_bytes
from efficientnet_tf.runtime.signals import EXIT_RESTART, StopFlag
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.study.job_queue import JobQueue, read_owners, state_of

POLL_SECONDS = 0.2
LOG_LINES = 8  # of a failed run, kept as its error
# The command train, but it ends when its standard input does: when the process that started it is gone.
PROGRAM = (
    "import os, runpy, threading\n"
    "threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()\n"
    "runpy.run_module('efficientnet_tf.train', run_name='__main__', alter_sys=True)\n"
)


@dataclass(frozen=True)
class Run:
    """A training run of a list."""

    name: str  # unique in the list; a legal folder name: "width1.4_seed2"
    spec: schema.ModelSpec
    labels: dict  # what tells it from the others, scalars, "seed" among them: {"dimension": "width", "seed": 2}
    overrides: tuple[str, ...] = ()  # "section.key=value" of the recipe, beside train.seed and data.image_size


def run_jobs(
    runs, output_dir, *, recipe, storage=None, study_name, overrides=(), train_arguments=(), heartbeat_seconds=60
):
    """Do the runs of a list that nobody has done, until none is left waiting or running elsewhere.

    Any number of processes may call this at once, and any may be killed: a run whose process has told nothing for three
    heartbeats is taken over and goes on from its checkpoint. A run that fails, by itself or killed for its memory, is
    recorded with the last lines of its log, and tried again when `work` is called again.

    Args:
        runs: list of Run; it may have grown since an earlier call.
        output_dir: str, a folder that all processes share. There come to lie variants/<name>.yaml, the model directory
            runs/<name> and runs/<name>.log.
        recipe: str, name or path of a recipe.
        storage: str, a database URL as Optuna takes it; by default sqlite:///<output_dir>/trials.db.
        study_name: str, the list's name in the storage.
        overrides: sequence of str, "section.key=value" for all runs.
        train_arguments: sequence of str, further flags of the command train: "--device=cpu".
        heartbeat_seconds: int >= 1, the same in all processes.

    Returns:
        A list of dict, a finished run each: see `rows`.

    Raises:
        UserError: when a run of the same name was listed with another config, for a config or a storage that does not
            work, and where Optuna is missing.
        SystemExit: with EXIT_RESTART after SIGTERM or Ctrl-C; the run is saved then and waits in the list.
    """
    settings = {run.name: _settings(run, overrides) for run in runs}
    configs = _load_configs(runs, recipe, settings)
    retried = ("missing", "interrupted", "failed")
    with (
        StopFlag(signal.SIGTERM, signal.SIGINT) as stop,
        JobQueue(output_dir, storage, study_name, heartbeat_seconds) as ledger,
        _make_bar(len(runs), study_name) as bar,
    ):
        while not stop.asked:
            ledger.tidy()
            owners = ledger.owners()
            _refuse_changed(configs, owners)
            found = {name: state_of(owners.get(name)) for name in configs}
            missing = [name for name, state in found.items() if state in retried]
            for name in missing:
                ledger.enqueue(name, dump_config(configs[name]))
            retried = ("missing", "interrupted")  # What fails from here on waits for another call.
            if missing:
                continue  # Another process may have been quicker: look again who owns what.
            bar.update(sum(state in ("done", "failed") for state in found.values()) - bar.n)
            run = next((run for run in runs if found[run.name] == "waiting" and ledger.claim(owners[run.name])), None)
            if run:
                arguments = [f"--recipe={recipe}", *(f"--set={text}" for text in settings[run.name]), *train_arguments]
                _do(run, output_dir, arguments, ledger, owners[run.name], bar, stop)
            elif {"waiting", "running"} & set(found.values()):
                bar.set_postfix_str("the rest runs elsewhere", refresh=False)
                time.sleep(1)
            else:
                break
    if stop.asked:
        print("stopped by a signal: the same command goes on from here", file=sys.stderr)
        raise SystemExit(EXIT_RESTART)
    return read_rows(runs, output_dir, storage, study_name)


def read_rows(runs, output_dir, storage, study_name):
    """Return what is known of the finished runs of a list; nothing is run.

    Args:
        runs: list of Run.
        output_dir: str, as for `work`.
        storage: str or None, as for `work`.
        study_name: str.

    Returns:
        A list of dict, in the order of the runs: the run's labels, then "run", its name; "depth", "width", "resolution"
        of its spec; "classes", and "params" (trainable) and "macs", counted with as many; "top1", "top5", "loss" of the
        last evaluation, of the averaged weights where there are any, and "raw_top1"; "images_per_second" in training,
        the median over all loops but the first, which compiles (None where there is no other); "train_seconds" of
        all its loops (not of starting, evaluating and saving); "peak_bytes", the most memory that the last of its
        processes had resident; "config", path of the run's config.yaml beneath `output_dir`.
    """
    owners = read_owners(output_dir, storage, study_name)
    owners = {name: trial for name, trial in owners.items() if state_of(trial) == "done"}
    results = {name: trial.user_attrs["result"] for name, trial in owners.items()}
    listed = [(run, results[run.name]) for run in runs if run.name in results]
    return [run.labels | _describe(run, result["classes"]) | result for run, result in listed]


def read_states(runs, output_dir, storage, study_name):
    """Return {name of a run: "waiting", "running", "done" or "failed"}; the arguments are those of `rows`.

    A run whose process is gone counts as running until another one takes it over.
    """
    owners = read_owners(output_dir, storage, study_name)
    found = {run.name: state_of(owners.get(run.name)) for run in runs}
    return {name: "waiting" if state in ("missing", "interrupted") else state for name, state in found.items()}


# ------------------------------------------------------------------------------------------------- a run


def _settings(run, overrides):
    """Return the `section.key=value` strings of a run; its seed and its resolution have the last word."""
    seed, side = run.labels["seed"], run.spec.resolution
    return [*overrides, *run.overrides, f"train.seed={seed}", f"data.image_size={side}"]


def _load_configs(runs, recipe, settings):
    """Return {name: Config} as training will resolve it."""
    configs = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            if run.name in configs or not re.fullmatch(r"\w[\w.+-]*", run.name):
                raise ValueError(f"a run's name must be a folder's and its own, received {run.name!r}")
            variant = os.path.join(folder, f"{run.name}.yaml")
            write_text(variant, dump_variant(run.spec))
            configs[run.name] = load_config(variant, recipe, settings[run.name])
    return configs


def _refuse_changed(configs, owners):
    for name in configs.keys() & owners.keys():
        text = owners[name].user_attrs["config"]
        # Parsed, for a key that is new in this version has its default there.
        changed = text != dump_config(configs[name]) and diff_config(parse_config(text, name), configs[name])
        if changed:
            raise UserError(
                f"run {name} is listed with another config. Take another --output_dir, or undo these changes (there -> "
                "asked for):\n  " + "\n  ".join(changed)
            )


def _make_bar(total, name):
    mininterval = 0.1 if sys.stderr.isatty() else 30  # in a log file, a line every half minute is enough
    return tqdm(total=total, unit="run", desc=name, dynamic_ncols=True, mininterval=mininterval)


def _do(run, output_dir, arguments, ledger, trial, bar, stop):
    """Train a run whose trial is claimed, and record how it ended."""
    variant = os.path.join(output_dir, "variants", f"{run.name}.yaml")
    model_dir = os.path.join(output_dir, "runs", run.name)
    write_text(variant, dump_variant(run.spec))
    command = [sys.executable, "-c", PROGRAM, f"--variant={variant}", f"--model_dir={model_dir}", *arguments]
    beats = itertools.count()

    def beat():
        bar.set_postfix_str(run.name + _last_accuracy(model_dir))
        return ledger.beat(trial, next(beats))

    log = f"{model_dir}.log"
    status, peak_bytes = _train(command, log, beat, ledger.heartbeat_seconds, stop)
    if status == 0:
        cost = {"peak_bytes": peak_bytes, "config": f"runs/{run.name}/config.yaml"}
        result = _measure(model_dir) | cost
        ledger.complete(trial, result)
        bar.write(f"{run.name}: top-1 {result['top1']:.2%}, trained for {result['train_seconds']:.0f} s")
    elif status == EXIT_RESTART or stop.asked or status is None:
        ledger.fail(trial)
    else:
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        ledger.fail(trial, error=f"{how}\n{_last_lines(log)}")
        bar.write(f"{run.name} failed, {how}; {log} ends so:\n{_last_lines(log)}", file=sys.stderr)


def _last_lines(log):
    with open(log, errors="replace", newline="\n") as file:
        lines = [line.rstrip().rpartition("\r")[2] for line in file]  # of a progress bar, its last state
    return "\n".join([line for line in lines if line][-LOG_LINES:])


def _train(command, log, beat, heartbeat_seconds, stop):
    """Run a command until it ends. Killed with this process, stopped by its flag, killed when `beat()` returns False.

    Returns:
        (exit status, None when it was taken over; peak resident memory in bytes, None where the system does not say).
    """
    os.makedirs(os.path.dirname(log), exist_ok=True)
    with open(log, "ab") as output:
        # A session of its own, for Ctrl-C is for this process, which passes it on as SIGTERM.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)
    asked, due, peak_bytes = False, 0.0, None
    try:
        while process.poll() is None:
            # Ask while it runs: after its end, the system counts the memory of the process that started it, too.
            peak_bytes = read_peak_bytes(process.pid) or peak_bytes
            if stop.asked and not asked:
                asked = True
                os.kill(process.pid, signal.SIGTERM)
            if time.monotonic() > due:
                due = time.monotonic() + heartbeat_seconds
                if not beat():
                    return None, None
            time.sleep(POLL_SECONDS)
        return process.returncode, peak_bytes
    finally:
        process.kill()
        process.wait()
        process.stdin.close()


def _read_metrics(model_dir):
    """Return the lines of metrics.jsonl that are whole."""
    path = os.path.join(model_dir, "metrics.jsonl")
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file if line.endswith("}\n")]


def _last_accuracy(model_dir):
    """Return how far training is, for the progress bar."""
    evaluations = [line for line in _read_metrics(model_dir) if line["kind"].startswith("eval/")]
    return f" {evaluations[-1]['top1']:.1%}" if evaluations else ""


def _measure(model_dir):
    """Return the part of a row that training tells."""
    lines = _read_metrics(model_dir)
    last = {line["kind"]: line for line in lines}
    raw = last["eval/raw"]
    best = last.get("eval/ema", raw)
    loops = [line for line in lines if line["kind"] == "train"]
    speeds = [line["images_per_second"] for line in loops[1:]]
    with open(os.path.join(model_dir, "classes.txt")) as file:
        classes = sum(1 for _ in file)
    return (
        {"classes": classes}
        | {key: best[key] for key in ("top1", "top5", "loss")}
        | {
            "raw_top1": raw["top1"],
            "images_per_second": statistics.median(speeds) if speeds else None,
            "train_seconds": sum(line["seconds"] for line in loops),
        }
    )


def _describe(run, classes):
    """Return the part of a row that the run's spec tells."""
    total = count_cost(run.spec, classes=classes)["total"]
    return {
        "run": run.name,
        "depth": run.spec.depth,
        "width": run.spec.width,
        "resolution": run.spec.resolution,
        "params": total.trainable_params,
        "macs": total.macs,
    }
