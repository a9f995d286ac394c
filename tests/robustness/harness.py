"""The cases of the robustness tests: how they are described, run and judged.

`ROBUSTNESS_PACKAGE=FOLDER` tests the package in another checkout. `ROBUSTNESS_SEED` and `ROBUSTNESS_CASES` make other
and more random cases.
"""

import dataclasses
import fnmatch
import json
import os
import random
import re
import select
import stat
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = Path(os.environ.get("ROBUSTNESS_PACKAGE", ROOT))
SEED = int(os.environ.get("ROBUSTNESS_SEED", "0"))
COUNT = int(os.environ.get("ROBUSTNESS_CASES", "6"))  # random cases of each kind
PATIENCE = float(os.environ.get("ROBUSTNESS_PATIENCE", "1"))  # factor of the time limits, for slow machines
PEAK_MIB = 1500  # with TensorFlow
RESTART_MIB = 1150


@dataclasses.dataclass
class Case:
    """A command line and what it must do.

    Attributes:
        name: Name in the test report.
        argv: The command and its arguments. Relative paths are in the case's own folder, which is the working folder.
        status: The exit statuses that are right.
        says: Pattern that standard output and standard error together must contain.
        never: Pattern that they must not contain.
        writes: Patterns of the files that may appear in the case's folder.
        light: Whether the answer must come without TensorFlow. Such a case runs where importing it fails.
        worker: "light" and "tensorflow" are shared processes, "locale" is one with LC_ALL=C. "fresh" is a new one.
        check: Function of (case, answer) that returns what is wrong, or "".
        item: The promise that the case belongs to, for the report.
    """

    name: str
    argv: list
    status: tuple = (1, 2)
    says: str = ""
    never: str = ""
    writes: tuple = ()
    light: bool = False
    worker: str = "tensorflow"
    seconds: float = 60
    file_bytes: int = 0
    stop_after: float = 0
    env: dict = dataclasses.field(default_factory=dict)
    check: Callable | None = None
    item: str = ""
    folder: Path = Path()

    def __post_init__(self):
        self.argv = [str(word) for word in self.argv]
        if self.light and self.worker == "tensorflow":
            self.worker = "light"
        if self.light:
            self.seconds = min(self.seconds, 20)


OK, REFUSED, EITHER = (0,), (1, 2), (0, 1, 2)


class Writer:
    """What a generator gets: folders to write into, a random generator, and the shared inputs."""

    def __init__(self, root, kind, kit=None):
        self.root, self.kit = Path(root) / kind, kit
        self.random = random.Random(f"{SEED}/{kind}")
        self.count = COUNT
        self.cases = []

    def folder(self, name):
        """Return a new folder for a case."""
        path = self.root / re.sub(r"\W+", "_", f"{len(self.cases)}_{name}")
        path.mkdir(parents=True)
        return path

    def add(self, folder, name, argv, **settings):
        self.cases.append(Case(name, argv, folder=folder, **settings))


# ------------------------------------------------------------------------------------------------------------- run


class Worker:
    """A process that runs command lines. It is started when it is needed, and again after it was killed."""

    def __init__(self, root, kind):
        self.kind, self.process = kind, None
        self.home = Path(root) / f"home-{kind}"
        for name in ("capture", "tmp", "home"):
            (self.home / name).mkdir(parents=True, exist_ok=True)

    def start(self):
        environment = dict(os.environ) | {
            "PYTHONPATH": str(PACKAGE),
            "ROBUSTNESS_CAPTURE": str(self.home / "capture"),
            "HOME": str(self.home / "home"),
            "TMPDIR": str(self.home / "tmp"),
            "WANDB_MODE": "offline",
            "COLUMNS": "120",
        }
        for name in ("TF_CONFIG", "KERAS_HOME"):
            environment.pop(name, None)
        if self.kind == "locale":
            environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        mode = ["light"] if self.kind in ("light", "locale") else []
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), *mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("ROBUSTNESS_DEBUG") else subprocess.DEVNULL,
            env=environment,
            cwd=self.home,
        )

    def run(self, case):
        """Return the answer of a case. A process that hangs in C++ is killed."""
        if self.process is None:
            self.start()
        seconds = case.seconds * PATIENCE
        request = {
            "argv": case.argv,
            "cwd": str(case.folder),
            "env": case.env,
            "seconds": seconds,
            "file_bytes": case.file_bytes,
            "stop_after": case.stop_after,
        }
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        line, end = b"", time.monotonic() + seconds + 10
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            part = os.read(self.process.stdout.fileno(), 2**20) if ready else b""
            if not part:
                status = "timeout" if not ready else f"killed by {self.stop()}"
                self.stop()
                capture = [(self.home / "capture" / n) for n in ("stdout", "stderr")]
                texts = [p.read_bytes().decode("utf-8", "surrogateescape") if p.exists() else "" for p in capture]
                return {"status": status, "seconds": seconds, "peak_mib": 0, "growth_mib": 0, "imported": ""} | dict(
                    zip(("stdout", "stderr"), texts, strict=True)
                )
            line += part
        answer = json.loads(line)
        if answer["rss_mib"] > RESTART_MIB:  # memory that other cases have left must not count for the next one
            self.stop()
        return answer

    def stop(self):
        """End the process and return its exit status."""
        process, self.process = self.process, None
        if process is None:
            return None
        process.kill()
        process.stdin.close()
        process.stdout.close()
        return process.wait()


class Harness:
    """The processes, and the folders that no case may change."""

    def __init__(self, root):
        self.root, self.workers, self.shared = Path(root), {}, []

    def run(self, case):
        """Run a case and return (answer, list of what is wrong)."""
        kind = case.worker
        worker = self.workers.setdefault(kind, Worker(self.root, kind))
        outside = [*self.shared, worker.home / "home", worker.home / "tmp"]
        before = [snapshot(folder) for folder in (case.folder, *outside)]
        answer = worker.run(case)
        if kind == "fresh":
            worker.stop()
        after = [snapshot(folder) for folder in (case.folder, *outside)]
        return answer, [*judge(case, answer), *judge_files(case, before, after)]

    def stop(self):
        for worker in self.workers.values():
            worker.stop()


def run_cases(harness, cases):
    """Run cases; return {name: what is wrong} of those that fail."""
    wrong = {}
    log = os.environ.get("ROBUSTNESS_LOG")
    for case in cases:
        answer, problems = harness.run(case)
        if problems:
            wrong[case.name] = problems
        if log:
            with open(log, "a") as file:
                entry = {"item": case.item, "name": case.name, "problems": problems, "argv": case.argv} | answer
                file.write(json.dumps(entry) + "\n")
    return wrong


def report(kind, wrong, total):
    """Return the text of a failed test."""
    lines = [f"{len(wrong)} of {total} cases of {kind} fail. Repeat with ROBUSTNESS_SEED={SEED}:"]
    return "\n".join(lines + [f"- {name}: " + "; ".join(problems) for name, problems in wrong.items()])


# ----------------------------------------------------------------------------------------------------------- judge

# Other libraries' types, their internals and their unsafe advice.
FOREIGN = re.compile(
    r"\b(?!UserError\b)[A-Z]\w*(?:Error|Exception|Warning)\b|\{\{|\[Op:|<class '|object at 0x|errno|\[Errno|"
    r"weights_only|safe_mode|allow_pickle|enable_unsafe|For further information visit|Node: '"
)
# Caches of other libraries, and what TensorFlow leaves when it writes a SavedModel or a LiteRT file.
ALLOWED_OUTSIDE = (".cache*", ".config*", ".keras*", "__autograph_generated_file*", "__pycache__*")
ENDS = re.compile(r"""[.!?][)"'`]*$""")


def judge(case, answer):
    """Return what is wrong with how a command ended and with what it printed."""
    status, text = answer["status"], answer["stdout"] + answer["stderr"]
    if status == "timeout":
        return [f"did not end within {case.seconds:g} s"]
    wrong = []
    if status not in case.status:
        wrong.append(f"exit status {status}, not {' or '.join(map(str, case.status))}: {answer['stderr'][-500:]!r}")
    if "Traceback (most recent call last)" in text or re.search(r'^  File "', text, re.MULTILINE):
        wrong.append(f"a traceback: {text[-500:]!r}")
    strange = find_strange(text)
    if strange:
        wrong.append(f"prints {strange}")
    if status in (1, 2):
        wrong += judge_message(answer["stderr"], status)
    if answer["imported"] and case.worker in ("light", "locale") and case.light:
        wrong.append(f"imports TensorFlow before it refuses, at {answer['imported']}")
    elif case.says and not re.search(case.says, text):
        wrong.append(f"does not say /{case.says}/: {text[-400:]!r}")
    if case.never and (found := re.search(case.never, text)):
        wrong.append(f"says {found[0]!r}: {text[-400:]!r}")
    if answer["peak_mib"] > PEAK_MIB:
        wrong.append(f"takes {answer['peak_mib']} MiB")
    if not wrong and case.check:
        problem = case.check(case, answer)
        wrong += [problem] if problem else []
    return wrong


def judge_message(stderr, status):
    """Return what is wrong with an error message. The words that a user gave are shown in it, and do not count."""
    found = re.search(r"error: (.*)", stderr, re.DOTALL)
    if not found:
        # Some commands name each file that they cannot read, and then how many there were.
        if not re.search(r"could not be read|cannot be", stderr):
            return [f"no error message: {stderr[-300:]!r}"]
        message = stderr.strip()
    else:
        message = found[1].strip()
    wrong = []
    if foreign := FOREIGN.search(message):
        wrong.append(f"the message is another library's, with {foreign[0]!r}: {message[:400]!r}")
    if status == 1 and not ENDS.search(message):
        wrong.append(f"the message is no sentence: {message[-200:]!r}")
    if len(message) > 6000:
        wrong.append(f"the message has {len(message)} characters: {message[:200]!r}")
    if len(message) < 10:
        wrong.append(f"the message says nothing: {message!r}")
    return wrong


def find_strange(text):
    """Return the first character that no terminal should get, or None."""
    for character in text:
        if character in "\n\t" or " " <= character <= "~":
            continue
        category = unicodedata.category(character)
        if category in ("Cc", "Zl", "Zp", "Cs") or (category == "Cf" and character not in "\u200c\u200d"):
            return f"the character {character!r}"
    return None


def snapshot(folder):
    """Return {relative path: (type, size, time of the last change)} of everything in a folder."""
    found = {}
    for directory, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(directory, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            kind = stat.S_IFMT(status.st_mode)
            detail = () if kind == stat.S_IFDIR else (status.st_size, status.st_mtime_ns)
            found[os.path.relpath(path, folder)] = (kind, *detail)
    return found


def judge_files(case, before, after):
    """Return which files appeared, changed or are gone that should not have."""
    wrong = []
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        allowed = case.writes if number == 0 else ALLOWED_OUTSIDE
        touched = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        bad = [name for name in touched if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)]
        if bad:
            where = "" if number == 0 else " outside of its folder"
            wrong.append(f"leaves{where}: {bad[:5]!r}")
        left = [name for name in new if name not in old and re.search(r"\.tmp-\d+|\.tmp$", name)]
        if left:
            wrong.append(f"leaves temporary files: {left[:3]!r}")
    return wrong


def together(generators: Iterable[Callable], root, kit=None):
    """Return {kind: cases} of generators, each of which is a function of a `Writer` and named after its kind."""
    found = {}
    for generator in generators:
        writer = Writer(root, generator.__name__, kit)
        generator(writer)
        found[generator.__name__] = writer.cases
    return found
