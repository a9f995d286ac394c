"""Keeps two processes from writing to the same place at once.

A lock is a small file that names its owner. On one machine the kernel guards it (`flock`) and releases it however the
owner ends, so that a run continues at once after a SIGKILL. Some file systems that several machines share do not pass
these locks on. The owner therefore changes the file's time every few seconds as well, and another machine takes a lock
over only after it has watched the file for a while without a change.

gs:// has no locks: there, a warning says that nothing is protected.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import shlex
import socket
import stat
import sys
import threading
import time
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import is_remote

NAME = "lock"  # of the file in a locked directory
HEARTBEAT_SECONDS = 10.0
WATCH_SECONDS = 35.0  # more than three heartbeats
DYING_SECONDS = 5.0  # A killed process holds its lock until its memory is freed.
_MAX_BYTES = 10_000

_logger = logging.getLogger(__name__)


def lock_directory(path: str, purpose: str, argument: str = "model_dir") -> "Lock":
    """Return the lock of a directory, which the caller enters as a context manager.

    Args:
        path: Path of the directory, local or gs://. It is created with the lock.
        purpose: What the owner does there, for the error message of others, for example "training".
        argument: Name of the argument that holds the path, for error messages.
    """
    return Lock(os.path.join(path, NAME), path, purpose, argument)


def lock_output(path: str, purpose: str, argument: str = "output") -> "Lock":
    """Return the lock of a file or a directory that is written and then renamed. It lies next to it.

    Args:
        path: Path of the output.
        purpose: As in `lock_directory`.
        argument: As in `lock_directory`.
    """
    path = path.rstrip("/")
    return Lock(f"{path}.{NAME}", path, purpose, argument)


class Lock:
    """The lock of a path. Use it as a context manager.

    Entering raises `UserError` if another process holds the lock. The message names that process.
    """

    def __init__(self, lock_path: str, path: str, purpose: str, argument: str):
        self._lock_path, self._path, self._argument = lock_path, path, argument
        self._owner = {
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "purpose": purpose,
            "command": shlex.join(sys.argv)[:1000],
            "token": secrets.token_hex(8),
        }
        self._descriptor: int | None = None
        self._ended = threading.Event()

    def __enter__(self) -> "Lock":
        if is_remote(self._path):
            _logger.warning(
                "%s=%s is on gs://, where nothing keeps a second process from writing to the same place. Make sure "
                "that only one does.",
                *(self._argument, escape(self._path)),
            )
            return self
        try:
            os.makedirs(os.path.dirname(self._lock_path) or ".", exist_ok=True)
            self._acquire()
        except OSError as error:
            raise UserError(
                f"{self._argument}={escape(self._path)} cannot be written: {os.strerror(error.errno or errno.EIO)}."
            ) from None
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        if self._descriptor is None:
            return
        self._heart.join()
        with contextlib.suppress(OSError):
            if self.find_loss() is None:
                os.unlink(self._lock_path)
        os.close(self._descriptor)
        self._descriptor = None

    def find_loss(self) -> str | None:
        """Return why this process may not write to the path any more, or None if it still holds the lock.

        Somebody may have deleted or moved a directory while it is in use.
        """
        if self._descriptor is None:
            return None
        try:
            with open(self._lock_path, "rb") as file:
                owner = _parse(file.read(_MAX_BYTES))
        except OSError as error:
            missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
            return "was deleted or moved" if missing else f"cannot be read ({os.strerror(error.errno or errno.EIO)})"
        if owner.get("token") == self._owner["token"]:
            return None
        return f"was taken over by {_describe(owner)}" if owner else "was deleted and created again"

    def check(self) -> None:
        """Raise UserError if the path was deleted, moved or taken over while this process holds its lock."""
        loss = self.find_loss()
        if loss:
            raise UserError(
                f"{self._argument}={escape(self._path)} {loss} while this process used it. Nothing more is written to "
                "it, and what was not saved before is lost. If it was moved, start the command with its new place."
            )

    def _acquire(self) -> None:
        give_up = time.monotonic() + DYING_SECONDS
        while self._descriptor is None:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise UserError(f"{escape(self._lock_path)} is not a regular file. Remove it.")
                is_guarded = self._flock(descriptor, give_up)
                # Its former owner may have removed the file between the two calls.
                if is_guarded is not None and _is_same(status, self._lock_path):
                    self._take_over(descriptor, is_guarded)
                    self._descriptor, descriptor = descriptor, None
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    def _flock(self, descriptor: int, give_up: float) -> bool | None:
        """Lock the open file. Return whether the kernel guards it, or None to try again."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            owner = _parse(os.pread(descriptor, _MAX_BYTES, 0))
            is_here = owner.get("boot") == self._owner["boot"]
            # It may be about to write its name, or to end. `check_unlocked` holds a lock for a moment.
            may_end = not owner or (is_here and not _is_alive(owner.get("pid")))
            if time.monotonic() < give_up - (0 if may_end else DYING_SECONDS - 0.3):
                time.sleep(0.1)
                return None
            raise self._refuse(owner) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                return False  # This file system has no locks.
            raise

    def _take_over(self, descriptor: int, is_guarded: bool) -> None:
        """Write this process's name into the file, once its former owner is certainly gone."""
        owner = _parse(os.pread(descriptor, _MAX_BYTES, 0))
        if owner and not (is_guarded and owner.get("boot") == self._owner["boot"]):
            self._watch(owner)
        content = json.dumps(self._owner).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        os.fsync(descriptor)
        if not is_guarded:
            time.sleep(1)  # Another process may have done the same at the same time. The last one has the lock.
            owner = _parse(os.pread(descriptor, _MAX_BYTES, 0))
            if owner.get("token") != self._owner["token"]:
                raise self._refuse(owner)

    def _watch(self, owner: dict[str, Any]) -> None:
        """Raise UserError if the owner, on another machine or after a restart of this one, gives a sign of life."""
        before = _version(self._lock_path)
        _logger.warning(
            "%s=%s was used by %s. Watching for %g seconds whether it still runs.",
            *(self._argument, escape(self._path), _describe(owner), WATCH_SECONDS),
        )
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, WATCH_SECONDS))
            if _version(self._lock_path) != before:
                raise self._refuse(owner)

    def _refuse(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"{self._argument}={escape(self._path)} is in use by {_describe(owner)}. Wait until it has ended, stop it, "
            "or choose another place."
        )

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._descriptor if self._descriptor is not None else self._lock_path)


def check_unlocked(path: str, argument: str = "model_dir") -> None:
    """Raise UserError if another process of this machine holds the lock of a directory. This takes no time.

    It lets a command refuse early. Only entering the lock itself is safe.

    Args:
        path: Path of a directory, which does not have to exist.
        argument: Name of the argument that holds the path, for the error message.
    """
    lock = lock_directory(path, "checking", argument)
    if is_remote(path) or not os.path.isfile(lock._lock_path):
        return
    give_up = time.monotonic() + DYING_SECONDS
    with contextlib.suppress(OSError), open(lock._lock_path, "rb") as file:
        while lock._flock(file.fileno(), give_up) is None:
            pass


def _boot_id() -> str:
    """Return a text that differs between machines and changes when a machine restarts."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return socket.gethostname()


def _is_alive(pid: Any) -> bool:
    """Return whether a process of this machine runs. A zombie does not."""
    try:
        with open(f"/proc/{int(pid)}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, ValueError, TypeError, IndexError):
        return False


def _is_same(status: os.stat_result, path: str) -> bool:
    try:
        now = os.stat(path)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)


def _version(path: str) -> tuple[int, bytes]:
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns, file.read(_MAX_BYTES)


def _parse(content: bytes) -> dict[str, Any]:
    """Return the owner that a lock file names, or {} if it names none."""
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict[str, Any]) -> str:
    """Return the owner of a lock for people. The file may have been written by anybody."""
    if not owner:
        return "another process"
    text = {key: escape(str(owner.get(key, "?")))[:200] for key in ("purpose", "pid", "host", "started", "command")}
    return "process {pid} on {host} ({purpose} since {started}: {command})".format(**text)
