"""Tests of databases that cannot be used: one sentence, a bounded wait, and nothing lost."""

import functools
import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

import optuna
import pytest
from outputs import full_disk
from study_runs import make_runs, train_all
from waiting import count_trials

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.study import runner, storage
from efficientnet_tf.study.job_queue import JobQueue
from efficientnet_tf.study.results import read_rows, read_states
from efficientnet_tf.study.storage import StorageError, default_url, hide_password


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(storage, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(storage, "TRY_SECONDS", 0.2)


@functools.cache
def read_new_database():
    """Return the content of a database with an empty study. To create its tables takes a second."""
    with tempfile.TemporaryDirectory() as folder:
        open_queue(folder)
        return (Path(folder) / "trials.db").read_bytes()


def make_database(path):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(read_new_database())


def open_queue(folder, url=None, name="list"):
    with JobQueue(str(folder), url, name, 1) as queue:
        return queue.owners()


def test_a_database_that_another_process_is_creating_is_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "trials.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table studies (study_id integer)")  # the first table that Optuna creates
    monkeypatch.setattr(time, "sleep", lambda seconds: make_database(path))
    assert open_queue(tmp_path) == {}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "no URL of a database"),
        ("nonsense", "no URL of a database"),
        ("a b\x1b[31m", r"storage=a b\\x1b\[31m cannot be opened"),
        ("redis://host", "no URL of a database"),
        ("mysql://user:secret@host/db", r"storage=mysql://\*\*\*@host/db cannot be .* not installed"),
        (
            "postgresql+psycopg2://u:se/cr@et@host",
            r"storage=postgresql\+psycopg2://\*\*\*@host cannot .* not installed",
        ),
        ("postgresql://host:99999999/x", "not installed"),
        ("sqlite://", "in memory, which would be lost"),
        ("sqlite+pysqlite://", "in memory, which would be lost"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file::memory:?uri=true", "in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory"),
        ("sqlite:///{folder}/missing/x.db", "its folder is missing or cannot be written to"),
        ("sqlite:///{folder}", "this is a folder, not a file"),
        ("sqlite:///{folder}/fifo", "this is a FIFO, not a file"),
        ("sqlite:////dev/null", "this is a device, not a file"),
        ("sqlite:///{folder}/{{x}}", "no URL of a database"),
        ("sqlite:///{folder}/{{", "no URL of a database"),
        ("sqlite:///{folder}/x\0", "cannot be"),
    ],
)
def test_storages_that_cannot_be_used_are_refused_at_once(tmp_path, url, reason):
    os.mkfifo(tmp_path / "fifo")
    before = time.monotonic()
    with pytest.raises(UserError, match=reason) as raised:
        open_queue(tmp_path, url.replace("{folder}", str(tmp_path)).replace("{{", "{").replace("}}", "}"))
    assert time.monotonic() - before < 10
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value) and "cr@et" not in str(raised.value)


def write_foreign(path):
    with sqlite3.connect(path) as connection:
        connection.execute("create table bookmarks (url text)")
    connection.close()


def write_clash(path):
    with sqlite3.connect(path) as connection:
        connection.execute("create table version_info (name text)")
        connection.execute("create table trials (cost real)")
    connection.close()


def write_truncated(path):
    make_database(path)
    os.truncate(path, os.path.getsize(path) // 2 + 7)


def write_other_version(path):
    make_database(path)
    with sqlite3.connect(path) as connection:
        connection.execute("update alembic_version set version_num = 'v9.9.9.a'")
    connection.close()


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b"not a database, but long enough to have a header" * 99), "not an SQLite data"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(4000)), "not an SQLite database|damaged|cannot be"),
        (write_truncated, "damaged"),
        (write_foreign, "a database of another program, with the tables bookmarks"),
        (write_clash, "tables of another program or another version of Optuna"),
        (write_other_version, "no longer compatible with the table schema"),
    ],
)
def test_files_of_other_programs_and_damaged_files_are_refused_and_unchanged(tmp_path, write, reason):
    path = tmp_path / "x.db"
    write(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=reason):
        open_queue(tmp_path, f"sqlite:///{path}")
    if reason.startswith("a database of another program"):
        assert path.read_bytes() == before


@pytest.mark.parametrize("directions", [["maximize"], ["minimize"], ["maximize", "minimize"]])
def test_a_study_of_another_program_with_the_same_name_is_refused(tmp_path, directions):
    url = f"sqlite:///{tmp_path}/x.db"
    study = optuna.create_study(study_name="list", storage=url, directions=directions)
    if directions == ["maximize"]:
        study.enqueue_trial({"x": 1})
    with pytest.raises(UserError, match="has a study 'list' that another program made"):
        open_queue(tmp_path, url)
    study._storage._backend.engine.dispose()
    assert open_queue(tmp_path, url, "other") == {}


def test_a_read_only_database_is_explained(tmp_path):
    make_database(tmp_path / "trials.db")
    url = f"sqlite:///file:{tmp_path}/trials.db?mode=ro&uri=true"
    with pytest.raises(StorageError, match="it is read-only"):
        open_queue(tmp_path, url, "new")


@pytest.mark.slow
def test_a_locked_database_is_waited_for_and_then_explained(tmp_path):
    make_database(tmp_path / "trials.db")
    other = sqlite3.connect(tmp_path / "trials.db")
    other.execute("BEGIN EXCLUSIVE")
    before = time.monotonic()
    with pytest.raises(UserError, match="trials.db cannot be used: another process has kept it locked"):
        open_queue(tmp_path)
    assert 0.4 < time.monotonic() - before < 20
    other.close()
    assert open_queue(tmp_path) == {}


@pytest.mark.slow
def test_a_full_disk_is_explained(tmp_path):
    make_database(tmp_path / "trials.db")
    size = os.path.getsize(tmp_path / "trials.db")
    with full_disk(size), JobQueue(str(tmp_path), None, "list", 1) as queue:
        with pytest.raises(StorageError, match="the disk is full"):
            for number in range(100):
                queue.enqueue(f"run{number}", "x" * 20_000)


def test_a_study_deleted_from_the_database_is_explained(tmp_path):
    make_database(tmp_path / "trials.db")
    url = f"sqlite:///{tmp_path}/trials.db"
    with JobQueue(str(tmp_path), None, "list", 1) as queue:
        optuna.delete_study(study_name="list", storage=url)
        with pytest.raises(StorageError, match=r"trials.db no longer has this study|Was it deleted"):
            queue.enqueue("x", "config")


@pytest.mark.slow
def test_damaged_results_in_the_database_are_skipped(tmp_path, caplog):
    runs = make_runs(2)
    train_all(runs, tmp_path)
    for value in ('"text"', "[]", '{"classes": 3}', '{"classes": "x", "top1": "1"}', "1e999"):
        with sqlite3.connect(tmp_path / "trials.db") as connection:
            connection.execute(
                "update trial_user_attributes set value_json = ? where key = 'result' and trial_id = 1", (value,)
            )
        connection.close()
        caplog.clear()
        assert [row["run"] for row in read_rows(runs, str(tmp_path), None, "list")] == ["width1.2_seed1"]
        assert "The result of run width1_seed0 in the database is damaged" in caplog.text
    with sqlite3.connect(tmp_path / "trials.db") as connection:
        connection.execute("update trial_user_attributes set value_json = '{\"a' where key = 'result'")
    connection.close()
    with pytest.raises(StorageError, match="trials.db cannot be used"):
        read_rows(runs, str(tmp_path), None, "list")


@pytest.mark.slow
def test_training_goes_on_while_the_database_is_locked(tmp_path, monkeypatch, capsys):
    """A heartbeat that fails does not end a run. Its result is recorded when the database is back."""
    runs = make_runs(1, 3)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.05)
    original, others = JobQueue.beat, []

    def beat(queue, trial, count):
        if count == 1:
            others.append(sqlite3.connect(tmp_path / "trials.db"))
            others[0].execute("BEGIN EXCLUSIVE")
        elif others:
            others.pop().close()
        return original(queue, trial, count)

    monkeypatch.setattr(JobQueue, "beat", beat)
    assert [row["run"] for row in train_all(runs, tmp_path)] == ["width1_seed0"]
    assert "another process has kept it locked" in capsys.readouterr().err
    assert count_trials(tmp_path) == {("width1_seed0", "COMPLETE"): 1}


@pytest.mark.slow
@pytest.mark.parametrize("deleted", ["", "trials.db"])
def test_a_folder_or_a_database_deleted_during_the_study_is_explained(tmp_path, monkeypatch, deleted):
    folder, runs = tmp_path / "study", make_runs(1, 2)
    original = JobQueue.beat

    def beat(queue, trial, count):
        if count == 1:
            shutil.rmtree(folder) if not deleted else os.remove(folder / deleted)
        return original(queue, trial, count)

    monkeypatch.setattr(JobQueue, "beat", beat)
    with pytest.raises(UserError, match="was deleted during the study|read-only, or it was moved or deleted"):
        train_all(runs, folder)
    monkeypatch.undo()
    if deleted:
        assert (folder / "runs" / "width1_seed0" / "metrics.jsonl").exists(), "the trained run is kept"
    else:
        assert not folder.exists(), "no part of it is created again"


@pytest.mark.slow
def test_folders_with_odd_names_have_their_database_inside(tmp_path):
    for name in ("a?b=c", "a#b", "a%20b", "{x}", "\u00fc \u732b", "a@b:c"):
        folder = tmp_path / name
        make_database(folder / "trials.db")
        with JobQueue(str(folder), None, "list", 1) as queue:
            queue.enqueue("x", "config")
        assert os.listdir(folder) == ["trials.db"] and count_trials(folder) == {("x", "WAITING"): 1}
    assert len(os.listdir(tmp_path)) == 6
    with pytest.raises(UserError, match="has a name that the URL of a database cannot hold"):
        default_url("a\udcff")
    assert read_states(make_runs(1), str(tmp_path / "none"), None, "list") == {"width1_seed0": "waiting"}


@pytest.mark.parametrize("url", ["postgresql://u:secret@h/d", "mysql://h/d?user=u&password=secret", "x://u:se@cret@h"])
def test_passwords_are_hidden(url):
    assert "secret" not in hide_password(url) and "cret" not in hide_password(url)
