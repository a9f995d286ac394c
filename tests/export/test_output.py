"""Where exports are written: what is refused, and that no part of one ever has the final name."""

import os
import random
import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.export.output import UNFINISHED, check_output, unfinished_output

FILES = ("net.tflite", "net.onnx", "net.xml", "folder")


def parts(output):
    """Return the names of the files of an output."""
    return ["net.bin", "net.xml"] if output == "net.xml" else [output]


def write(unfinished, name, content=b"x" * 1000):
    """Write an export as the real ones are written."""
    if name == "folder":
        os.makedirs(os.path.join(unfinished, "variables"))
        for part in ("variables/data", "saved_model.pb"):
            Path(unfinished, part).write_bytes(content)
        return
    for part in parts(name):
        Path(os.path.dirname(unfinished), part + UNFINISHED).write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_outputs_appear_whole(tmp_path, name):
    output = str(tmp_path / name)
    (tmp_path / (name + UNFINISHED)).write_text("left by a kill")
    check_output("run", output)
    with unfinished_output(output) as unfinished:
        assert os.path.dirname(unfinished) == str(tmp_path)
        write(unfinished, name)
        assert not os.path.exists(output)
    assert sorted(os.listdir(tmp_path)) == sorted(parts(name))
    with pytest.raises(UserError, match="exists"):
        check_output("run", output)


@pytest.mark.parametrize("name", FILES)
def test_failures_leave_nothing(tmp_path, name):
    output = str(tmp_path / name)
    with pytest.raises(KeyError), unfinished_output(output) as unfinished:
        write(unfinished, name)
        raise KeyError
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match=f"output={output} cannot be written: No space left on device"):
        with unfinished_output(output) as unfinished:
            write(unfinished, name)
            raise OSError(28, "No space left on device")
    with pytest.raises(UserError, match="cannot be written: No such file or directory"), unfinished_output(output):
        pass  # nothing was written
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", FILES)
def test_full_disk(tmp_path, name):
    """A limit on the size of files stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be written: File too large"):
            with unfinished_output(str(tmp_path / name)) as unfinished:
                write(unfinished, name, b"x" * 2**17)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [FILES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FILES[1:])])
def test_two_exports_to_one_output(tmp_path, name):
    output = str(tmp_path / name)
    with unfinished_output(output) as unfinished:
        write(unfinished, name)
        with pytest.raises(UserError, match=r"is in use by process \d+"), unfinished_output(output):
            pass
        kept = os.listdir(tmp_path)
    assert len(kept) > len(parts(name)) and sorted(os.listdir(tmp_path)) == sorted(parts(name))


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(UserError, match="exists now"), unfinished_output(str(tmp_path / "net.onnx")) as unfinished:
        write(unfinished, "net.onnx")
        (tmp_path / "net.onnx").write_text("precious")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("net.onnx", "precious")]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_kills_leave_no_part_with_the_final_name(tmp_path, name):
    """Each child exports to one folder after the other until it is killed. The last export is then done again."""
    rng = random.Random(0)
    for kill in range(12):
        child = os.fork()
        if not child:
            for count in range(10_000):
                folder = tmp_path / f"{kill}-{count}"
                folder.mkdir()
                with unfinished_output(str(folder / name)) as unfinished:
                    write(unfinished, name)
            os._exit(1)
        while not list(tmp_path.glob(f"{kill}-*")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        folders = sorted(tmp_path.glob(f"{kill}-*"), key=lambda path: int(path.name.partition("-")[2]))
        for folder in folders:
            check_whole(folder, name)
            assert folder == folders[-1] or sorted(os.listdir(folder)) == sorted(parts(name))
        last = folders[-1]
        if not (last / name).exists():
            check_output("run", str(last / name))
            with unfinished_output(str(last / name)) as unfinished:
                write(unfinished, name)
            check_whole(last, name)
        assert not [n for n in os.listdir(last) if n.endswith(UNFINISHED)]


def check_whole(folder, name):
    """Fail if something in a folder has a final name but is not complete."""
    for part in parts(name):
        path = folder / part
        if path.is_dir():
            sizes = {p.name: p.stat().st_size for p in path.rglob("*") if p.is_file()}
            assert sizes == {"data": 1000, "saved_model.pb": 1000}
        elif path.exists():
            assert path.stat().st_size == 1000


def test_kill_between_the_two_files_of_openvino(tmp_path):
    (tmp_path / "net.bin").write_text("weights")
    (tmp_path / f"net.xml{UNFINISHED}").write_text("network")
    check_output("run", str(tmp_path / "net.xml"))
    with unfinished_output(str(tmp_path / "net.xml")) as unfinished:
        write(unfinished, "net.xml")
    assert sorted(os.listdir(tmp_path)) == ["net.bin", "net.xml"]
    assert (tmp_path / "net.bin").stat().st_size == 1000


def test_wrong_places_are_named(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo.onnx")
    os.symlink("nothing", tmp_path / "link.onnx")
    os.symlink(tmp_path / "run", tmp_path / "linked")
    (tmp_path / "file").write_text("")
    (tmp_path / "there.bin").write_text("precious")
    (tmp_path / "empty").mkdir()
    run = str(tmp_path / "run")
    cases = {
        run: "exists and is not an empty folder",
        f"{run}/": "exists and is not an empty folder",
        f"{tmp_path}/linked": "exists and is not an empty folder",
        f"{tmp_path}/fifo.onnx": "fifo.onnx exists",
        f"{tmp_path}/link.onnx": "link.onnx exists",
        f"{tmp_path}/there.xml": "there.bin exists",
        f"{tmp_path}/file": "exists and is not an empty folder",
        f"{tmp_path}/none/net.onnx": "is not a folder. Create it first",
        f"{tmp_path}/file/net.onnx": "is not a folder",
        "/dev/null": "exists",
        f"{run}/checkpoints/net.onnx": "in which training deletes files",
        f"{run}/checkpoints/export": "in which training deletes files",
        "": "is empty",
        "s3://bucket/net.onnx": "is on s3://",
    }
    for output, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            check_output(run, output)
        assert str(caught.value).startswith("output=")
    for output in (f"{tmp_path}/empty", f"{run}/export", f"{run}/net.xml", f"{tmp_path}/new/", f"{tmp_path}/a b.onnx"):
        check_output(run, output)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_folder_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="nothing can be written to"):
        check_output("run", str(tmp_path / "locked" / "net.onnx"))


def test_other_threads_do_not_see_a_part(tmp_path):
    output, seen, ended = tmp_path / "net.onnx", set(), threading.Event()

    def watch():
        while not ended.is_set():
            if output.exists():
                seen.add(output.stat().st_size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with unfinished_output(str(output)) as unfinished, open(unfinished, "wb") as file:
        for _ in range(100):
            file.write(b"x" * 1000)
            file.flush()
    time.sleep(0.05)
    ended.set()
    watcher.join()
    assert seen == {100_000}
