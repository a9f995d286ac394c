"""Model directories, weight files, exports, records and databases that are damaged, edited or made by strangers."""

import json
import os
import pickle
import shutil
import sqlite3
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
from robustness.harness import EITHER, OK
from robustness.kit import picture, write_irregular

OWNED = "touch owned"  # what the attacks run. No file of this name may appear.


class Attack:
    """Runs a shell command when it is unpickled."""

    def __reduce__(self):
        return os.system, (OWNED,)


def _copy(write, name, source):
    """Return (folder of a case, a copy of a model in it)."""
    folder = write.folder(name)
    target = folder / ("model" + Path(source).suffix)
    if Path(source).is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return folder, target


def _use(write, folder, name, model, **settings):
    """Add `predict` on a model."""
    argv = ["predict", f"--model_dir={model}", write.kit.image]
    write.add(folder, f"predict: {name}", argv, **({"seconds": 30} | settings))


# -------------------------------------------------------------------------------------------------- model directories


def model_directories(write):
    """A run with one file missing, emptied, cut, of another kind, or edited."""
    run = write.kit.run
    for part in ("config.yaml", "classes.txt", "model.keras", "checkpoints", "metrics.jsonl"):
        needed = part in ("config.yaml", "classes.txt")  # the weights are also in the checkpoints
        for how in ("missing", "empty", "cut", "random", "fifo", "folder"):
            if part == "checkpoints" and how != "missing":
                continue
            folder, model = _copy(write, f"{part}_{how}", run)
            _spoil(write, model / part, how)
            status = (1,) if needed and how not in ("random",) else EITHER
            settings = {"status": status, "light": needed and how in ("missing", "fifo", "folder")}
            says = part.replace(".", r"\.") if status == (1,) else ""
            _use(write, folder, f"{part} {how}", model, says=says, item="D damaged model directories", **settings)
    _edited(write)
    _resumed(write)


def _spoil(write, path, how):
    content = path.read_bytes() if path.is_file() else b""
    if how == "random":
        damaged = bytearray(content)
        for _ in range(20):
            damaged[write.random.randrange(len(damaged))] = write.random.randrange(256)
        path.write_bytes(bytes(damaged))
    elif how in ("empty", "cut"):
        path.write_bytes(content[: len(content) // 2] if how == "cut" else b"")
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if how == "fifo":
            os.mkfifo(path)
        elif how == "folder":
            path.mkdir()


def _edited(write):
    run = write.kit.run
    classes = "cat\ndog\nowl\n"
    for name, content in {
        "crlf": classes.replace("\n", "\r\n").encode(),
        "byte-order mark": b"\xef\xbb\xbf" + classes.encode(),
        "no newline at the end": classes.strip().encode(),
    }.items():
        folder, model = _copy(write, name, run)
        (model / "classes.txt").write_bytes(content)
        settings = {"says": r"(cat|dog|owl) \d", "never": r"\\r|\\ufeff"}
        _use(
            write, folder, f"classes.txt with {name}", model, status=OK, item="A2 CRLF or a byte-order mark", **settings
        )
    for name, content in {
        "two classes": b"cat\ndog\n",
        "four classes": classes.encode() + b"fox\n",
        "the same class twice": b"cat\ncat\nowl\n",
        "an empty line": b"cat\n\nowl\n",
        "latin-1": "cat\ndog\nna\u00efve\n".encode("latin-1"),
        "utf-16": classes.encode("utf-16"),
        "U+2028": "ca\u2028t\ndog\nowl\n".encode(),
        "escape": b"c\x1b[31mt\ndog\nowl\n",
        "null bytes": b"c\0t\ndog\nowl\n",
    }.items():
        folder, model = _copy(write, name, run)
        (model / "classes.txt").write_bytes(content)
        status = EITHER if name in ("U+2028", "escape") else (1,)
        says = r"classes\.txt" if status == (1,) else ""
        _use(write, folder, f"classes.txt with {name}", model, status=status, says=says, item="A2 class names")
    edits = {
        "mean 923": ("mean: [123.675, 116.28, 103.53]", "mean: [923, 116.28, 103.53]"),
        "std 1": ("std: [58.395, 57.12, 57.375]", "std: [1, 1, 1]"),
        "other stage": ("channels: 16", "channels: 24"),
        "other padding": ("padding: same", "padding: symmetric"),
        "other activation": ("activation: swish", "activation: relu"),
        "other size": ("image_size: 32", "image_size: 64"),
        "one channel": ("channels: 3,", "channels: 1,"),
        "unknown key": ("padding: same", "paddign: same"),
        "a bomb": ("padding: same", "padding: &a [*a]"),
        "python": ("padding: same", "padding: !!python/object/apply:os.system ['touch owned']"),
        "escape": ("name: tiny", 'name: "\\e[31m"'),
    }
    for name, (old, new) in edits.items():
        folder, model = _copy(write, name, run)
        text = (model / "config.yaml").read_text()
        # A text that the recorded config does not have would test nothing.
        settings = {"status": (1,), "says": r"config|" + new.partition(":")[0]}
        if old not in text:
            old = next(
                (line for line in text.splitlines() if line.strip().startswith(old.partition(":")[0] + ":")), None
            )
            if old is None:
                continue
        (model / "config.yaml").write_text(text.replace(old, old[: len(old) - len(old.lstrip())] + new))
        if name in ("escape", "other size"):
            settings = {"status": EITHER}
        _use(write, folder, f"config.yaml with {name}", model, item="A3 values edited in config.yaml", **settings)


def _resumed(write):
    """Train on in a directory whose files are damaged or whose config changed."""
    kit = write.kit
    item = "B4 a side file must not stop a resume"
    for name, change in {
        "unchanged": lambda model: None,
        "a byte that is not UTF-8 in metrics.jsonl": lambda model: _append(model / "metrics.jsonl", b"\xff\xfe\n"),
        "a cut line in metrics.jsonl": lambda model: _append(model / "metrics.jsonl", b'{"step": 3, "lo'),
        "no metrics.jsonl": lambda model: (model / "metrics.jsonl").unlink(),
    }.items():
        folder, model = _copy(write, name, kit.run)
        change(model)
        argv = kit.train(kit.photos, model_dir=model)
        write.add(folder, f"resume: {name}", argv, status=OK, writes=("model*",), item=item)
    item = "B3 a changed key"
    for name, more, says in (
        ("more epochs", ["--set=train.epochs=2"], r"--allow_change=train\.epochs"),
        ("other batch", ["--set=train.batch_size=6"], r"--allow_change=train\.batch_size"),
    ):
        folder, model = _copy(write, name, kit.run)
        argv = kit.train(kit.photos, *more, model_dir=model)
        write.add(folder, f"resume with {name}", argv, says=says, item=item)
    folder, model = _copy(write, "allowed", kit.run)
    argv = kit.train(kit.photos, "--set=train.epochs=2", "--allow_change=train.epochs", model_dir=model)
    write.add(folder, "resume with more epochs, allowed", argv, status=OK, writes=("model*",), item=item)
    folder, model = _copy(write, "without", kit.run)
    (model / "config.yaml").unlink()
    argv = kit.train(kit.photos, "--set=optimizer.learning_rate=9.0", model_dir=model)
    item = "A3 a run without its config.yaml"
    write.add(folder, "resume without config.yaml and another config", argv, says="learning_rate|config", item=item)
    folder, model = _copy(write, "stop", kit.run)
    argv = kit.train(kit.photos, "--set=train.epochs=100000", model_dir="new")
    settings = {"status": (75,), "writes": ("new*",), "stop_after": 6, "item": "B2 SIGTERM"}
    write.add(folder, "SIGTERM during training", argv, **settings)


def _append(path, data):
    with open(path, "ab") as file:
        file.write(data)


# ------------------------------------------------------------------------------------------------------ weight files


def _write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _large_member(path, name, size, others=()):
    """Write a zip with one member of zeros, without holding it in memory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, content in dict(others).items():
            archive.writestr(other, content)
        with archive.open(name, "w", force_zip64=True) as member:
            block = bytes(2**24)
            for _ in range(size // len(block)):
                member.write(block)


def _hdf5(path, change):
    """Write an HDF5 file that a function of the open file fills."""
    with h5py.File(path, "w") as file:
        change(file)


def weight_contents(folder, model):
    """Write hostile weight files; yield (item, name, path)."""
    folder, secret = Path(folder), Path(folder) / "secret.bin"
    secret.write_bytes(np.arange(10_000, dtype=np.float32).tobytes())
    yield from _pickles(folder)
    yield from _safetensors(folder)
    yield from _hdf5_files(folder, secret, model)
    yield from _keras_archives(folder, model)
    for name, content in {
        "empty.h5": b"",
        "empty.pth": b"",
        "empty.safetensors": b"",
        "empty.keras": b"",
        "text.pth": b"not weights",
        "one byte.pth": b"\x80",
        "html.safetensors": b"<html>404</html>",
        "lfs.weights.h5": b"version https://git-lfs.github.com/spec/v1\n",
        "numbers.npz": pickle.dumps(Attack()),
        "checkpoint.index": b"\0" * 100,
        "unknown.onnx": b"\x08\x07",
        "unknown": b"",
    }.items():
        path = folder / name
        path.write_bytes(content)
        yield "D damaged weights", name, path


def _pickles(folder):
    item = "C2 pickles"
    for protocol in (0, 2, 4):
        path = folder / f"pickle{protocol}.pth"
        path.write_bytes(pickle.dumps({"x": Attack()}, protocol))
        yield item, f"pickle that runs code, protocol {protocol}", path
    path = folder / "archive.pth"
    _write_zip(path, {"archive/data.pkl": pickle.dumps({"conv_stem.weight": Attack()}, 2), "archive/version": "3"})
    yield item, "archive of torch that runs code", path
    path = folder / "short.pth"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
    yield "D short legacy .pth", "legacy file that ends after its version", path
    path = folder / "magic.pth"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    yield "D short legacy .pth", "legacy file that ends after its magic number", path
    path = folder / "deep.pth"
    path.write_bytes(b"\x80\x02" + b"]" * 1 + b"(" * 1_000_000)
    yield item, "pickle that nests a million times", path
    path = folder / "memo.pth"
    path.write_bytes(b"\x80\x02" + b"K\x01r\xff\xff\xff\x7f.")
    yield item, "pickle with an index of 2^31", path
    path = folder / "bytes.pth"
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.")
    yield item, "pickle that declares 2^40 bytes", path
    path = folder / "bomb.pth"
    _large_member(path, "archive/data.pkl", 3 * 2**30, {"archive/version": "3"})
    yield "C1 zip bombs", "archive of torch of 3 GiB", path
    path = folder / "no_data.pth"
    _write_zip(path, {"archive/version": "3"})
    yield "D damaged zip", "archive of torch without data.pkl", path


def _safetensors(folder):
    item = "C1 safetensors headers"
    headers = {
        "2^63 bytes of header": struct.pack("<Q", 2**63) + b"{}",
        "2^40 bytes of header": struct.pack("<Q", 2**40) + b"{}",
        "header that is no JSON": struct.pack("<Q", 8) + b"{{{{{{{{",
        "header that is a list": struct.pack("<Q", 2) + b"[]",
        "header that nests": struct.pack("<Q", 100_000) + b"[" * 100_000,
        "empty header": struct.pack("<Q", 2) + b"{}",
    }
    tensors = {
        "2^62 values": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 64]},
        "negative shape": {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]},
        "offsets behind the end": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 2**40]},
        "offsets in reverse": {"dtype": "F32", "shape": [4, 4], "data_offsets": [64, 0]},
        "unknown type": {"dtype": "F99", "shape": [4, 4], "data_offsets": [0, 64]},
        "name with escapes": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]},
    }
    for name, tensor in tensors.items():
        key = "\x1b[31m\u2028" if "escapes" in name else "conv_stem.weight"
        text = json.dumps({key: tensor}).encode()
        headers[name] = struct.pack("<Q", len(text)) + text + bytes(64)
    for number, (name, content) in enumerate(headers.items()):
        path = folder / f"{number}.safetensors"
        path.write_bytes(content)
        yield item, f"safetensors: {name}", path


def _hdf5_files(folder, secret, model):
    """Yield copies of a model's weights, in which a variable reaches for other files or declares more than it has."""
    other, place = folder / "other.h5", "layers/batch_normalization/vars/0"
    _hdf5(other, lambda file: file.create_dataset("x", data=np.arange(8, dtype=np.float32)))
    with zipfile.ZipFile(model) as archive:
        valid = archive.read("model.weights.h5")

    def external(file):
        file.create_dataset(place, (8,), "f4", external=[(str(secret), 0, 32)])

    def link(file):
        file[place] = h5py.ExternalLink(str(other), "/x")

    def virtual(file):
        layout = h5py.VirtualLayout((8,), "f4")
        layout[:] = h5py.VirtualSource(str(other), "x", (8,))
        file.create_virtual_dataset(place, layout)

    def huge(file):
        file.create_dataset(place, (2**31,), "f4", chunks=(2**16,))

    def huge_compressed(file):
        file.create_dataset(place, (2**31,), "f4", chunks=(2**20,), compression="gzip", fillvalue=1)

    def soft_loop(file):
        file[place], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink(f"/{place}")

    def hard_loop(file):
        group = file.create_group(place)
        group["again"] = group

    def names(file):
        file.create_dataset("layers/\x1b[31m\u2028/vars/0", data=np.zeros(3))

    def texts(file):
        file.create_dataset(place, data=[b"x" * 10] * 8)
        file.attrs["layer_names"] = [b"stem_conv"]

    def attributes(file):
        file.attrs["layer_names"] = np.zeros((10, 10))

    def deep(file):
        group = file
        for _ in range(1500):
            group = group.create_group("g")

    cases = {
        "external storage": external,
        "external link": link,
        "virtual dataset": virtual,
        "dataset of 2^31 values": huge,
        "compressed dataset of 2^31 values": huge_compressed,
        "soft links in a loop": soft_loop,
        "hard links in a loop": hard_loop,
        "names with escapes": names,
        "texts": texts,
        "wrong attributes": attributes,
        "1,500 groups deep": deep,
        "nothing": lambda file: None,
    }
    for number, (name, change) in enumerate(cases.items()):
        path = folder / f"{number}.weights.h5"
        path.write_bytes(valid)
        with h5py.File(path, "r+") as file:
            del file[place]
            change(file)
        yield "C1 HDF5", f"HDF5: {name}", path


def _keras_archives(folder, model):
    """Yield .keras files made from a valid one."""
    with zipfile.ZipFile(model) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    code = {"module": "builtins", "class_name": "exec", "config": OWNED, "registered_name": None}
    layer = {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"name": "l", "function": {"class_name": "__lambda__", "config": {"code": "4wEA", "defaults": None}}},
        "registered_name": None,
    }
    changes = {
        "without config.json": {k: v for k, v in members.items() if k != "config.json"},
        "without weights": {k: v for k, v in members.items() if not k.endswith(".h5")},
        "config that is no JSON": members | {"config.json": b"{"},
        "config that is a list": members | {"config.json": b"[]"},
        "config that nests": members | {"config.json": b"[" * 100_000},
        "config of another class": members | {"config.json": json.dumps(config | code).encode()},
        "config of a Lambda": members | {"config.json": json.dumps(config | layer).encode()},
        "empty weights": members | {"model.weights.h5": b""},
        "path that leaves": members | {"../../owned": b"x", "/tmp/owned": b"x"},
        "nothing": {},
    }
    for number, (name, content) in enumerate(changes.items()):
        path = folder / f"{number}.keras"
        _write_zip(path, content)
        yield "D damaged zip", f".keras {name}", path
    content = Path(model).read_bytes()
    for name, data in {"cut": content[:-500], "damaged": content[:200] + bytes(400) + content[600:]}.items():
        path = folder / f"{name}.keras"
        path.write_bytes(data)
        yield "D damaged zip", f".keras {name}", path
    path = folder / "bomb.keras"
    others = {k: v for k, v in members.items() if not k.endswith(".h5")}
    _large_member(path, "model.weights.h5", 3 * 2**30, others)
    yield "C1 zip bombs", ".keras of 3 GiB", path
    path = folder / "config_bomb.keras"
    _large_member(path, "config.json", 3 * 2**30)
    yield "C1 zip bombs", ".keras with a config of 3 GiB", path
    _hdf5(folder / "huge.h5", lambda file: file.create_dataset("layers/x", (2**31,), "f4", chunks=(2**16,)))
    path = folder / "huge.keras"
    _write_zip(path, others | {"model.weights.h5": (folder / "huge.h5").read_bytes()})
    yield "C1 HDF5", ".keras with a dataset of 2^31 values", path


def weights(write):
    """Weight files of strangers, given to every command that reads weights."""
    folder = write.folder("files")
    irregular = write_irregular(folder)
    found = list(weight_contents(folder, write.kit.run / "model.keras"))
    found += [("B2 irregular files", f"weights: {name}", path) for name, path in irregular.items()]
    for number, (item, name, path) in enumerate(found):
        settings = {"item": item, "status": (1,), "seconds": 30}
        # The weights of a .keras file may be read although something else in it is wrong.
        settings["status"] = EITHER if "leaves" in name or "without config" in name else (1,)
        output = f"out{number}.weights.h5"
        writes = (output,) if settings["status"] == EITHER else ()
        argv = ["weights", f"--variant={write.kit.variant}", f"--input={path}", f"--output={output}", "--classes=3"]
        write.add(folder, f"weights: {name}", [*argv, "--reset_head"], writes=writes, **settings)
        heavy = "C1" in item or "leaves" in name
        if heavy or number % 4 == 0:
            argv = ["predict", f"--model_dir={path}", write.kit.image]
            status = EITHER if name.endswith(".keras damaged") else settings["status"]
            write.add(folder, f"predict: {name}", argv, **(settings | {"status": status}))
        if number % 5 == 0:
            argv = write.kit.train(write.kit.photos, f"--init_from={path}", model_dir=f"run{number}")
            writes = (f"run{number}*",) if settings["status"] == EITHER else ()
            write.add(folder, f"train --init_from: {name}", argv, writes=writes, **settings)


# ---------------------------------------------------------------------------------------------------------- exports


def exports(write):
    """Each file of an export missing, emptied, cut or damaged."""
    for kind, path in write.kit.models().items():
        if kind == "a run":
            continue
        places = [p.relative_to(path) for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [Path()]
        for place in places:
            for how in ("missing", "empty", "cut", *["random"] * (1 if path.is_dir() else write.count)):
                folder, model = _copy(write, f"{kind} {place} {how}", path)
                target = model / place if model.is_dir() else model
                if target.stat().st_size == 0:
                    continue
                _spoil(write, target, how)
                name = f"{kind} {place} {how} {len(write.cases) if how == 'random' else ''}".strip()
                status = (1,) if target == model and how != "random" else EITHER
                _use(write, folder, name, model, status=status, item="D damaged exports")


# ---------------------------------------------------------------------------------------------------------- records


def records(write):
    """Record files that are cut, damaged, irregular or hold other things."""
    valid = (write.kit.records / "train-00000-of-00001").read_bytes()
    first = struct.unpack("<Q", valid[:8])[0] + 16
    contents = {
        "valid": valid,
        "empty": b"",
        "cut in a record": valid[: first + 100],
        "cut in a length": valid[: first + 4],
        "a length of 2^60": struct.pack("<Q", 2**60) + valid[8:],
        "a wrong checksum": valid[:20] + bytes([valid[20] ^ 1]) + valid[21:],
        "text": b"no records",
        "gzip": b"\x1f\x8b\x08\0" + bytes(100),
        "no examples": make_record(b"\xff" * 50) * 4,
        "examples without an image": make_record(make_example({})) * 12,
        "label 10^12": make_record(make_example({"image/encoded": b"x", "image/class/label": 10**12})) * 12,
        "negative label": make_record(make_example({"image/encoded": b"x", "image/class/label": 2**64 - 5})) * 12,
        "broken images": make_record(make_example({"image/encoded": b"x", "image/class/label": 1})) * 12,
    }
    for number in range(write.count):
        damaged = bytearray(valid)
        for _ in range(5):
            damaged[write.random.randrange(len(damaged))] = write.random.randrange(256)
        contents[f"random {number}"] = bytes(damaged)
    for name, content in contents.items():
        folder, data = _copy(write, name, write.kit.records)
        (data / "train-00000-of-00001").write_bytes(content)
        shutil.copy(data / "train-00000-of-00001", data / "val-00000-of-00001")
        _train_records(write, folder, name, OK if name == "valid" else (1,) if "random" not in name else (0, 1))
    for name in ("fifo", "folder"):
        folder, data = _copy(write, name, write.kit.records)
        _spoil(write, data / "train-00000-of-00001", name)
        _train_records(write, folder, name, (1,), item="B2 irregular files")
    for name, new in {
        "0 of 2": "train-00000-of-00002",
        "3 of 1": "train-00003-of-00001",
        "no number": "train-x",
    }.items():
        folder, data = _copy(write, name, write.kit.records)
        (data / "train-00000-of-00001").rename(data / f"train-{new}")
        _train_records(write, folder, name, (1,))
    for name, text in {
        "two classes": b"cat\ndog\n",
        "latin-1": b"cat\ndog\n\xef\n",
        "U+2028": "a\u2028\nb\nc\n".encode(),
    }.items():
        folder, data = _copy(write, name, write.kit.records)
        (data / "classes.txt").write_bytes(text)
        _train_records(write, folder, f"classes.txt with {name}", (1,))


def _train_records(write, folder, name, status, item="D damaged records"):
    argv = ["show", *write.kit.config, "--data_dir=model", "--set=data.source=records"]
    argv += ["--output=x.png", "--rows=1", "--columns=1"]
    # `show` draws what it can read.
    some = (0, 1) if "image" in name else status
    settings = {"writes": ("x.png",) if 0 in some else (), "seconds": 40, "item": item}
    write.add(folder, f"show: records, {name}", argv, status=some, **settings)
    if len(write.cases) % 4 == 0:
        argv = write.kit.train("model", "--set=data.source=records")
        settings["writes"] = ("run*",)
        write.add(folder, f"train: records, {name}", argv, status=status, **settings)


def make_record(data):
    """Return one record, with the checksums of TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def _masked(data):
    """Return the masked CRC-32C of some bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _field(number, data):
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def make_example(features):
    """Return a serialized tf.train.Example of bytes and integers."""
    entries = b""
    for name, value in features.items():
        inner = _field(3, b"\x0a" + _packed(value)) if isinstance(value, int) else _field(1, _field(1, value))
        entries += _field(1, _field(1, name.encode()) + _field(2, inner))
    return _field(1, entries)


def _packed(value):
    data = _varint(value)
    return _varint(len(data)) + data


# ------------------------------------------------------------------------------------------------ outputs and storage


def full_disks(write):
    """Every command that writes, where no file can grow beyond some bytes: nothing keeps a final name.

    The limit also holds for what the command prints, so it is above the length of a message.
    """
    kit = write.kit
    model = f"--model_dir={kit.run}"
    evaluate = ["evaluate", model, f"--data_dir={kit.photos}", "--device=cpu"]
    weights = ["weights", f"--variant={kit.variant}", f"--input={kit.run}/model.keras"]
    lines = {
        "explain": (["explain", model, "--output=out.png", kit.image], 2000),
        "show": (
            ["show", *kit.config, f"--data_dir={kit.photos}", "--output=out.png", "--rows=1", "--columns=1"],
            2000,
        ),
        "SavedModel": (["export", model, "--output=out", "--images=8"], 20_000),
        "LiteRT": (["export", model, "--output=out.tflite", "--images=8"], 2000),
        "weights.h5": ([*weights, "--output=out.weights.h5"], 3000),
        ".keras": ([*weights, "--output=out.keras"], 3000),
        "prepare": (["prepare", f"--data_dir={kit.photos}", "--output=out", "--splits=train", "--shards=1"], 2000),
        "confusion": ([*evaluate, "--confusion=out.png"], 2000),
        "train": (kit.train(kit.photos, model_dir="out"), 3000),
    }
    for name, (argv, size) in lines.items():
        folder = write.folder(name)
        # Folders may stay, with what was complete before the disk was full. Files must not.
        writes = ("out*",) if name in ("prepare", "train") else ()
        check = _nothing_under(name, size)
        settings = {"status": (1,), "writes": writes, "file_bytes": size, "check": check, "item": "B4 full disk"}
        write.add(folder, f"full disk: {name}", argv, **settings)


def _nothing_under(name, size):
    """Return a check that no output has the size at which the disk was full."""

    def check(case, answer):
        files = [p for p in case.folder.rglob("*") if p.is_file() and p.stat().st_size in (0, size)]
        files = [p for p in files if ".progress" not in p.parts and "tfevents" not in p.name and p.name != "lock"]
        return f"partial files: {files}" if files else ""

    return check


def storages(write):
    """Databases of studies that cannot be used. tests/study/test_storage.py has a locked one, which takes long."""
    folder = write.folder("databases")
    (folder / "text.db").write_text("no database" * 100)
    (folder / "folder.db").mkdir()
    os.mkfifo(folder / "fifo.db")
    with sqlite3.connect(folder / "other.db") as other:
        other.execute("create table studies (x integer)")
    other.close()
    texts = {
        "text": f"sqlite:///{folder}/text.db",
        "folder": f"sqlite:///{folder}/folder.db",
        "fifo": f"sqlite:///{folder}/fifo.db",
        "missing folder": f"sqlite:///{folder}/none/x.db",
        "other tables": f"sqlite:///{folder}/other.db",
        "no URL": "trials.db",
        "unknown driver": "nosql://host/x",
        "missing driver": "oracle://host/x",
        "no server": "postgresql://127.0.0.1:1/x",
        "wrong port": "mysql://host:999999/x",
        "https": "https://host/x",
        "empty": "",
        "escape": "sqlite:///\x1b[31m/x",
    }
    for name, url in texts.items():
        for command in ("search", "study"):
            # Both open a database in one place.
            if command == "study" and name not in ("text", "https"):
                continue
            more = ["--alpha=1.2", "--beta=1.1", "--gamma=1.15"] if command == "search" else ["--study=one_dimension"]
            more += ["--widths=1", "--depths=1", "--resolutions=1"] if command == "study" else []
            argv = [command, *more, f"--baseline={write.kit.variant}", f"--recipe={write.kit.recipe}", "--seeds=1"]
            argv += [f"--data_dir={write.kit.photos}", "--output_dir=out", "--device=cpu", f"--storage={url}"]
            settings = {"status": (1, 2), "writes": ("out*",), "seconds": 60, "item": "D SQLite storage"}
            # The database's password must not be shown.
            write.add(folder, f"{command} --storage: {name}", argv, **settings)


def ordinary(write):
    """Each command with ordinary inputs, so that the others fail for the reason that they name."""
    for command, arguments in write.kit.commands().items():
        if command in ("benchmark", "train", "serve"):  # The last one runs until it is stopped, see tests/serving.
            continue
        folder = write.folder(command)
        writes = ("*",)
        status = EITHER if command == "preflight" else OK
        write.add(folder, f"ordinary: {command}", [command, *arguments], status=status, writes=writes, seconds=120)
    folder = write.folder("few_classes")
    never = r"top5|top-5"
    argv = ["evaluate", f"--model_dir={write.kit.run}", f"--data_dir={write.kit.photos}", "--device=cpu"]
    write.add(folder, "evaluate of three classes", argv, status=OK, never=never, item="A5 top-5 of three classes")
    argv = ["predict", f"--model_dir={write.kit.run}", "--json", write.kit.image]
    write.add(folder, "predict of three classes", argv, status=OK, item="A5 top-5 of three classes")
    argv = [
        "evaluate",
        f"--model_dir={write.kit.run}",
        f"--data_dir={write.kit.photos}",
        "--device=cpu",
        "--replicas=3",
    ]
    write.add(folder, "evaluate with three replicas", argv, status=(0, 1), worker="fresh", item="A5 replicas")


def locale(write):
    """Names outside of ASCII where the locale is C."""
    folder = write.folder("locale")
    shutil.copy(write.kit.variant, folder / "caf\u00e9.yaml")
    settings = {"worker": "locale", "item": "D a C locale"}
    argv = ["summary", "--variant=caf\u00e9.yaml"]
    write.add(folder, "summary", argv, status=EITHER, **settings)
    argv = ["scale", f"--baseline={write.kit.variant}", "--target_macs=1e6", "--output=caf\u00e9-2.yaml"]
    write.add(folder, "scale", argv, status=EITHER, writes=("*.yaml",), **settings)
    for command in write.kit.commands():
        write.add(folder, f"{command} --help", [command, "--help"], status=OK, **settings)
    for label in ("caf\u00e9", "\u732b"):
        for split in ("train", "val"):
            (folder / "data" / split / label).mkdir(parents=True)
            picture().save(folder / "data" / split / label / "\u00fc.jpg")
    argv = write.kit.train("data/caf\u00e9")
    write.add(folder, "train on a missing folder", argv, light=True, **settings)
    argv = write.kit.train("data", "--set=data.eval_split=\u732b")
    write.add(folder, "train with a missing split", argv, light=True, **settings)
