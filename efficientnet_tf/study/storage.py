"""Opens the database of a study, and explains why one cannot be used.

Optuna keeps everything in it as text and JSON. Reading a database from a stranger runs no code, but its results are
believed.
"""

import contextlib
import os
import random
import re
import sqlite3
import time
import urllib.parse
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.runtime.files import check_file

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import URL

WAIT_SECONDS = 30.0  # the longest wait for a locked database or a server
TRY_SECONDS = 5.0  # the longest wait within SQLite, which no signal interrupts
GRACE_HEARTBEATS = 3  # a process that has missed this many heartbeats is considered dead
# The argument of each driver that limits the wait for a server.
_TIMEOUTS = {
    **dict.fromkeys(("psycopg", "psycopg2", "pymysql", "mysqldb"), "connect_timeout"),
    **{"pg8000": "timeout", "mysqlconnector": "connection_timeout"},
}
# What SQLite says, and what that means.
_REASONS = {
    "locked": f"another process has kept it locked for more than {WAIT_SECONDS:g} seconds",
    "readonly": "it is read-only, or it was moved or deleted",
    "unable to open": "its folder is missing or cannot be written to",
    "not a database": "the file is not an SQLite database",
    "malformed": "the database is damaged",
    "is full": "the disk is full",
    "disk i/o": "the disk is full or has an error",
    "no such table": "it has tables of another program or another version of Optuna, or it was deleted",
    "no such column": "it has tables of another program or another version of Optuna",
    "has no column": "it has tables of another program or another version of Optuna",
}
_TEMPORARY = ("locked", "already exists", "unique constraint")  # also when processes create the same tables


class StorageError(UserError):
    """The database of a study cannot be read or written.

    Args:
        message: A sentence.
        is_temporary: Whether the same call may succeed a little later.
    """

    def __init__(self, message: str, is_temporary: bool = False):
        super().__init__(message)
        self.is_temporary = is_temporary


def default_url(output_dir: str) -> str:
    """Return the URL of the database in the folder of a study.

    Raises:
        UserError: If the name of the folder cannot be part of a URL.
    """
    path = default_path(output_dir)
    with contextlib.suppress(ValueError):  # The name is not valid Unicode.
        for text in (path, urllib.parse.quote(path, safe="/ +")):  # Versions of SQLAlchemy differ in what they decode.
            if "{" in text or "}" in text:  # Optuna would fill in what is in braces.
                continue
            parsed = _parse(f"sqlite:///{text}")
            if parsed.database == path and not parsed.query:
                return f"sqlite:///{text}"
    raise UserError(
        f"output_dir={escape(output_dir)} has a name that the URL of a database cannot hold. Use another name, or give "
        "--storage."
    )


def default_path(output_dir: str) -> str:
    """Return the path of the database in the folder of a study."""
    return os.path.join(output_dir, "trials.db")


def check_url(url: str) -> None:
    """Check what can be known about a database before Optuna is imported, which takes a second.

    Raises:
        UserError: If the URL is not valid, or the database would be lost or belongs to another program.
    """
    try:
        _check_sqlite(url, _parse(url))
    except StorageError as error:
        if not error.is_temporary:
            raise


def open_storage(url: str, heartbeat_seconds: int) -> "RDBStorage":
    """Open a database. Try again for a while if it is locked, or if another process creates the same tables.

    Args:
        url: Database URL as Optuna takes it.
        heartbeat_seconds: Seconds between heartbeats, at least 1.

    Raises:
        StorageError: If the database cannot be opened, or is no database of Optuna.
    """
    parsed = _parse(url)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            _check_sqlite(url, parsed)
            with explain_errors(url):
                storage = _connect(url, parsed, heartbeat_seconds)
                if storage.engine.dialect.name == "sqlite":
                    _lock_on_read(storage)
                return storage
        except StorageError as error:
            if not error.is_temporary or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.2, 1))


def _connect(url: str, parsed: "URL", heartbeat_seconds: int) -> "RDBStorage":
    import optuna

    driver = parsed.get_driver_name()
    options = {"timeout": TRY_SECONDS} if driver == "pysqlite" else {}
    if driver in _TIMEOUTS:
        options = {_TIMEOUTS[driver]: 10}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(
            url,
            engine_kwargs={"connect_args": options},
            heartbeat_interval=heartbeat_seconds,
            grace_period=GRACE_HEARTBEATS * heartbeat_seconds,
        )


def _lock_on_read(storage: "RDBStorage") -> None:
    """Make SQLite lock the database when a transaction begins.

    By default it locks at the first write of a transaction. Two processes could then read that a trial waits, and both
    claim it.
    """
    from sqlalchemy import event

    engine = storage.engine
    event.listen(engine, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    storage.remove_session()
    engine.dispose()


def _parse(url: str) -> "URL":
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url.format(SCHEMA_VERSION=0))  # as Optuna does
        parsed.get_driver_name()  # Fails for kinds of databases that SQLAlchemy does not know.
        return parsed
    except (ArgumentError, ValueError, LookupError, AttributeError):
        raise StorageError(
            f"storage={hide_password(url)} cannot be opened: this is no URL of a database that is supported. Use one "
            "such as sqlite:///trials.db or postgresql://user@host/name."
        ) from None
    except ImportError as error:
        raise StorageError(
            f"storage={hide_password(url)} cannot be opened: the Python package {error.name} is not installed."
        ) from None


def _check_sqlite(url: str, parsed: "URL") -> None:
    """Raise StorageError if a database would be lost with this process, or is a file of another program."""
    if parsed.get_backend_name() != "sqlite":
        return
    path = parsed.database or ""
    if path in ("", ":memory:") or ":memory:" in path or parsed.query.get("mode") == "memory":
        raise StorageError(
            f"storage={hide_password(url)} is a database in memory, which would be lost. Use a file, for example "
            "sqlite:///trials.db."
        )
    if "uri" in parsed.query or not os.path.exists(path):
        return
    check_file(path)
    if os.path.getsize(path) == 0:
        return
    with explain_errors(url), contextlib.closing(_open_for_reading(path)) as connection:
        tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        columns = {column for _, column, *_ in connection.execute("pragma table_info(studies)")}
        if tables and "version_info" not in tables:
            raise StorageError(
                f"storage={hide_password(url)} is a database of another program, with the tables "
                f"{shorten(escape(', '.join(sorted(tables))))}. Use another file.",
                # Optuna creates its table of studies first, so another process may just be creating the others.
                is_temporary="study_id" in columns,
            )


def _open_for_reading(path: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{urllib.parse.quote(os.fsencode(os.path.abspath(path)))}?mode=ro", TRY_SECONDS, uri=True
    )


# --------------------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def explain_errors(url: str) -> Iterator[None]:
    """Raise StorageError for what Optuna and SQLAlchemy raise if a database cannot be read or written.

    Args:
        url: URL of the database, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}  # of libraries that may not be imported yet
        if "UpdateFinishedTrialError" in kinds or not kinds & _ERRORS:
            raise
        raise _explain(url, error, kinds) from None


# What is raised for a database that cannot be used. The last five are for one whose content is damaged or unexpected.
_ERRORS = {"SQLAlchemyError", "OptunaError", "Error", "ImportError"}
_ERRORS |= {"KeyError", "RuntimeError", "ValueError", "TypeError", "AssertionError"}


def _explain(url: str, error: Exception, kinds: set[str]) -> StorageError:
    where = f"storage={hide_password(url)}"
    if "KeyError" in kinds:
        return StorageError(f"{where} no longer has this study. Was it deleted?")
    if "ImportError" in kinds:
        return StorageError(f"{where} cannot be used: a Python package for it is not installed: {error}")
    cause = _find_cause(error)
    text = _first_line(cause)
    reason = next((reason for key, reason in _REASONS.items() if key in text.lower()), "")
    is_lost = not url.startswith("sqlite") and type(cause).__name__ in ("OperationalError", "InterfaceError")
    return StorageError(
        f"{where} cannot be used: {f'{reason} ({text})' if reason else text}.",
        is_temporary=is_lost or any(key in text.lower() for key in _TEMPORARY),
    )


def _find_cause(error: Any) -> BaseException:
    """Return the error of the database that others wrap."""
    while inner := getattr(error, "orig", None) or error.__cause__:
        error = inner
    return error


def _first_line(error: BaseException) -> str:
    return shorten(escape((str(error).strip().splitlines() or [type(error).__name__])[0]).rstrip("."), 300)


def hide_password(url: str) -> str:
    """Return a URL for a message: without a password, and with nothing invisible."""
    if not url.startswith("sqlite"):
        url = re.sub(r"(?<=//).*@", "***@", url)
        url = re.sub(r"(?<=[?&])(\w*(?:pass|pwd|token)\w*)=[^&]*", r"\1=***", url)
    return escape(shorten(url))
