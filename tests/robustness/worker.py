"""Runs command lines in one process, so that TensorFlow is imported once: `python worker.py [light]`.

Reads one JSON object per line from standard input and answers with one per line on standard output. With `light`, an
import of TensorFlow fails, and the answer tells that it was tried.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback

HEAVY = {"tensorflow", "keras", "jax"}
GIB = 2**30


class TooLong(BaseException):
    """The time limit of a case. No `except Exception` catches it."""


class Blocker:
    """An importer that refuses TensorFlow and remembers who asked for it."""

    tried = ""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            stack = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack(limit=40)]
            self.tried = next((place for place in reversed(stack) if "efficientnet_tf" in place), name)
            raise ModuleNotFoundError(f"No module named {name!r}", name="tensorflow")
        return None


def memory_mib(key):
    """Return VmRSS, the memory that is used now, or VmHWM, its peak."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) // 1024


def reset_peak():
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


@contextlib.contextmanager
def captured(folder):
    """Send everything that is written to standard output and standard error, also by C++, into two files."""
    names = [os.path.join(folder, name) for name in ("stdout", "stderr")]
    saved = [os.dup(1), os.dup(2)]
    for target, name in zip((1, 2), names, strict=True):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, target)
        os.close(file)
    try:
        yield names
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, file in zip((1, 2), saved, strict=True):
            os.dup2(file, target)
            os.close(file)


@contextlib.contextmanager
def limits(seconds, file_bytes, stop_after):
    """Limit the time and the size of written files, and send SIGTERM after some time if asked to."""

    def too_long(*_):
        raise TooLong

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
        sys.dont_write_bytecode = True  # Python would leave a part of a compiled module, and fail to read it later.
    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    child = os.fork() if stop_after else None
    if child == 0:
        time.sleep(stop_after)
        os.kill(os.getppid(), signal.SIGTERM)
        os._exit(0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = False


def write_pixels(path):
    """Write the pixels of an image, of 32 x 32 without resizing, to pixels.npy."""
    from efficientnet_tf import UserError, load_image

    try:
        pixels = load_image(path, 32, crop_padding=0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    importlib.import_module("numpy").save("pixels.npy", pixels)
    return 0


def run(argv):
    """Run a command line and return its exit status."""
    try:
        if argv[:1] == ["@pixels"]:
            return write_pixels(argv[1])
        code = importlib.import_module("efficientnet_tf.__main__").main(argv)
    except SystemExit as exited:
        code = exited.code
    except TooLong:
        return "timeout"
    except BaseException:  # Python itself would print the traceback and exit with 1
        traceback.print_exc()
        return 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        return 1
    return code or 0


def read(name):
    with open(name, "rb") as file:
        return file.read(2**22).decode("utf-8", "surrogateescape")


def main():
    answers = os.fdopen(os.dup(1), "w")
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    blocker = Blocker()
    if "light" in sys.argv[1:]:
        sys.meta_path.insert(0, blocker)
        importlib.import_module("efficientnet_tf.cli")
    # A bomb must not take the machine down with it.
    resource.setrlimit(resource.RLIMIT_DATA, (8 * GIB, 8 * GIB))
    folder, home = os.environ["ROBUSTNESS_CAPTURE"], os.getcwd()
    for line in requests:
        case = json.loads(line)
        blocker.tried = ""
        # Flags can hold bytes that are not UTF-8, as surrogates.
        argv = case["argv"]
        os.chdir(case["cwd"])
        environment = dict(os.environ)
        os.environ.update(case["env"])
        reset_peak()
        before, start = memory_mib("VmRSS"), time.monotonic()
        status = "timeout"
        with captured(folder) as names:
            with contextlib.suppress(TooLong), limits(case["seconds"], case["file_bytes"], case["stop_after"]):
                status = run(argv)
        answer = {
            "status": status,
            "seconds": time.monotonic() - start,
            "peak_mib": memory_mib("VmHWM"),
            "growth_mib": memory_mib("VmHWM") - before,
            "rss_mib": memory_mib("VmRSS"),
            "imported": blocker.tried,
            "stdout": read(names[0]),
            "stderr": read(names[1]),
        }
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(home)
        if "keras" in sys.modules and case["argv"][:1] != ["@pixels"]:
            sys.modules["keras"].backend.clear_session()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
