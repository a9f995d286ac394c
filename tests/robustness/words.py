"""Hostile flags, paths, variants, recipes and configs. All of them must be refused without TensorFlow."""

import json
import string

from robustness.harness import EITHER, OK, REFUSED
from robustness.kit import PATHS, RECIPE, VARIANT, replace_flag, write_irregular

SCHEMES = ("s3://bucket/x", "hf://owner/x", "https://host/x", "file:///tmp/x", "S3://b/x", "az://c/x", "hdfs://h/x")


def _end(kind, value):
    """Return a path with the ending that an output flag wants."""
    return value + kind.removeprefix("new").strip() if value else value


def _variants(flag, kind, value):
    return value + ".yaml" if flag in ("variant", "recipe", "baseline") else _end(kind, value)


def paths(write):
    """Every flag that holds a path gets texts that are no path of this package, and names that hold no file."""
    for command, flags in PATHS.items():
        valid = write.kit.commands()[command]
        folder = write.folder(command)
        irregular = write_irregular(folder)
        for flag, kind in flags.items():
            texts = {"empty": "", "blank": "  ", **{text.partition(":")[0]: text for text in SCHEMES}}
            for name, text in texts.items():
                value = text if name in ("empty", "blank") else _variants(flag, kind, text)
                argv = [command, *replace_flag(valid, flag, value)]
                item = "D s3:// hf:// https:// paths, empty flags"
                write.add(folder, f"{command} --{flag}: {name}", argv, light=True, item=item)
            if kind == "new":
                continue
            for name in irregular:
                value = irregular[name]
                if flag in ("variant", "recipe", "baseline"):
                    value = folder / f"{flag}-{name}.yaml"
                    if not value.is_symlink():
                        value.symlink_to(irregular[name])
                if name == "folder" and (kind != "file" or command in ("predict", "explain", "weights")):
                    continue
                # An input of `weights` and `--init_from` may be looked at by TensorFlow.
                argv = [command, *replace_flag(valid, flag, value)]
                light = flag not in ("", "init_from") and command != "weights"
                if not kind.startswith("new"):
                    write.add(folder, f"{command} --{flag}: {name}", argv, light=light, seconds=30, item="B2 irregular")
            if not kind.startswith("new"):
                missing = folder / "missing.yaml"
                argv = [command, *replace_flag(valid, flag, missing)]
                write.add(folder, f"{command} --{flag}: missing", argv, light=True, item="E in time")
                long = folder / ("x" * 300 + ".yaml")
                argv = [command, *replace_flag(valid, flag, long)]
                write.add(folder, f"{command} --{flag}: name of 300 letters", argv, light=True, item="D paths")
            elif not flag.endswith("dir"):
                for name, value in (("under a file", "tiny.txt/x"), ("in a missing folder", "missing/x")):
                    (folder / "tiny.txt").write_text("text")
                    argv = [command, *replace_flag(valid, flag, _end(kind, value))]
                    write.add(folder, f"{command} --{flag}: {name}", argv, light=True, item="E in time")


def words(write):
    """Misspelled flags, missing values, strange values and unknown commands."""
    folder = write.folder("flags")
    near = {"model_dir": "--modle_dir=x", "data_dir": "--data-dir=x", "variant": "--varient=b0", "output": "--ouput=x"}
    for command, valid in write.kit.commands().items():
        write.add(
            folder, f"{command} --help", [command, "--help"], status=OK, light=True, says="usage", item="E in time"
        )
        for flag in set(PATHS[command]) & set(near):
            word = near[flag].partition("=")[0]
            settings = {"light": True, "says": f"(?s){word}.*--{flag}", "item": "E misspelled"}
            write.add(folder, f"{command} {word}", [command, *valid, near[flag]], **settings)
            # That a flag is missing is less help than how it is spelled.
            write.add(folder, f"{command} {word} alone", [command, near[flag]], **settings)
        for number, odd in enumerate(("--", "--=", "-", "---", "--é=1", "--set", "--verbose=3", "\udcff", "\u2028")):
            if command in ("predict", "explain") and not odd.startswith("--"):
                continue
            if command == "serve" and odd == "--":  # It would run until it is stopped.
                continue
            argv = [command, *valid, odd]
            status = EITHER if odd in ("--",) else REFUSED
            writes = ("*",) if status == EITHER else ()
            light = status == REFUSED
            if light or command in ("summary", "scale"):
                write.add(folder, f"{command} odd word {number}", argv, light=light, status=status, writes=writes)
        if command not in ("predict", "explain", "scale", "benchmark"):
            for text in _overrides():
                argv = [command, *valid, f"--set={text}"]
                name = f"{command} --set {text[:40]!r}"
                write.add(folder, name, argv, light=True, item="D numbers out of range")
    for argv in ([], ["-h"], ["--help"]):
        write.add(folder, f"main {argv}", argv, status=OK, light=True, says="predict", item="E lists the commands")
    write.add(folder, "main --version", ["--version"], status=OK, light=True, says=r"\d+\.\d+")
    for word in (
        "trian",
        "evalute",
        "",
        "\x1b[31m",
        "../train",
        "config.load",
        "train/../x",
        "--set",
        "\udcff",
        "x" * 9999,
    ):
        says = "train" if word == "trian" else ""
        write.add(folder, f"main {word[:20]!r}", [word], light=True, says=says, item="E lists the commands")


def _overrides():
    yield from (
        "",
        "=",
        "train",
        "train=",
        "train.epochs",
        "train.epochs=",
        "train..epochs=1",
        ".=1",
        "train.epochs=-1",
    )
    yield from (
        "train.epochs=1e400",
        "train.epochs=.nan",
        "train.epochs=.inf",
        "train.epochs=[1",
        "train.epochs=2026-01-01",
    )
    yield from ("train.batch_size=1.5", "train.batch_size=0x10000000000000000", f"train.batch_size={'9' * 10000}")
    yield from ("train.seed=-1", "train.seed=2147483648", "model.width=1e300", "model.depth=1e300", "model.width=0")
    yield from ("model.resolution=100000000000000000000", "model.stages=[]", "model.mean=[923]", "model.mean=[]")
    yield from ("model.stages=" + "[" * 2000, "train.epochs=&a [*a]", "train.epochs=!!python/object:os.system x")
    yield from ("model=1", "__class__.__init__=1", "train.epochs=\x1b[31m", "train.epochs=\udcff")
    yield from ("train.epochs=\u2028", "data.source=tfds:../../x y", "data.source=\U0001f600", "data.image_size=1e9")
    yield from (
        "data.image_size=[32]",
        "data.image_size=[32, -1]",
        "data.image_size=[[32, 32]]",
        "data.image_size=32x48",
    )
    yield from ("train.epoch=3", "data.service=grpc://host:99999", "model.std=[0, 0, 0]")


def numbers(write):
    """Numbers out of range in each flag that holds one."""
    commands = write.kit.commands()
    flags = {
        "summary": ("classes", "batch", "memory"),
        "scale": ("target_macs", "target_params", "target_memory", "alpha", "beta", "gamma", "batch"),
        "search": ("resolution", "alpha", "seeds", "tolerance", "phi", "heartbeat_seconds"),
        "study": ("resolution", "seeds", "widths", "depths", "heartbeat_seconds"),
        "weights": ("classes",),
        "predict": ("top", "checkpoint"),
        "show": ("rows", "columns"),
        "prepare": ("shards", "workers"),
        "export": ("images", "calibration_images", "checkpoint"),
        "benchmark": ("batch", "sizes", "threads", "rounds", "seconds"),
        "preflight": ("batch", "classes", "images"),
        "serve": ("port", "max_batch", "batch_delay_ms", "max_request_mb", "max_megapixels", "max_requests"),
        "train": ("replicas", "worker"),
        "evaluate": ("replicas",),
    }
    item = "D numbers out of range"
    folder = write.folder("numbers")
    for command, names in flags.items():
        for name in names:
            bad = ["", "-1", "0", "nan", "inf", "1e400", "x", "1e-400", "9" * 10000, "0x10", "1,,2", "--"]
            if name not in ("memory", "target_macs", "target_params", "target_memory", "seconds", "tolerance"):
                bad += ["100000000000000000000"]
            if (command, name) in (("export", "images"), ("serve", "port")):
                bad.remove("0")
            for text in bad:
                argv = [command, *replace_flag(commands[command], name, text)]
                says = "" if text else rf"--?{name}|{name}"
                write.add(folder, f"{command} --{name}={text[:24]}", argv, light=True, says=says, item=item)


# Keys of a variant and of a recipe, because a message about a wrong value shows it.
USES = ("width: *a11", "train: {epochs: *a11}")


def _bombs():
    """Yield (name, YAML text) of small files that grow, nest or never end when they are read."""
    lists = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lists += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    yield "billion laughs", "\n".join([*lists, *USES])
    maps = ["a0: &a0 {x: 1}"] + [
        f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}" for i in range(1, 12)
    ]
    yield "billion laughs of mappings", "\n".join([*maps, *USES])
    merges = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    yield "merge keys", "\n".join([*merges, *USES])
    yield "alias of itself", "model: &m {stages: [*m]}"
    yield "list of itself", "&a [*a]"
    yield "key that is an alias", "? &a [x]\n: *a"
    yield "nested lists", "model: " + "[" * 100_000
    yield "nested and closed", "model: " + "[" * 5000 + "]" * 5000
    yield "nested mappings", "\n".join(" " * i + f"k{i}:" for i in range(3000))
    yield "flow mappings", "model: " + "{a: " * 5000 + "1" + "}" * 5000
    yield "10,000 digits", "width: " + "9" * 10_000
    yield "100,000 digits in hexadecimal", "width: 0x" + "f" * 100_000
    yield "sexagesimal digits", "width: 1" + ":59" * 5000
    yield "large exponent", "width: 1e999999999"
    yield "a million keys", "\n".join(f"k{i}: 1" for i in range(200_000))
    yield "a long line", "width: " + "x" * 3_000_000
    yield "long key", "k" * 1_000_000 + ": 1"


def _texts(valid):
    """Yield (name, content) of files that are no variant or recipe, made from a valid one."""
    yield "empty", b""
    yield "spaces", b"   \n\n"
    yield "null bytes", valid.encode().replace(b"\n", b"\n\0", 1)
    yield "latin-1", valid.encode() + "# naïve".encode("latin-1") + b"\nx: \xff"
    yield "utf-16", valid.encode("utf-16")
    yield "utf-32", valid.encode("utf-32")
    yield "gzip", b"\x1f\x8b\x08\0\0\0\0\0" + bytes(range(200))
    yield "a picture", b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(range(256))
    yield "tab", valid.encode() + b"\tx: 1\n"
    yield "list", b"- 1\n- 2\n"
    yield "number", b"3"
    yield "two documents", valid.encode() + b"\n---\n" + valid.encode()
    yield "python object", b"a: !!python/object/apply:os.system ['touch owned']\n"
    yield "unknown tag", b"a: !foo 1\n"
    yield "escape sequence", valid.encode() + b'"\\e[31m\\u2028": 1\n'
    yield "duplicate key", valid.encode() + valid.encode()
    yield "keys that are numbers", b"1: 2\n3: 4\n"
    yield "key that is null", b"~: 2\n"
    yield "key that is a list", b"[1, 2]: 3\n"
    yield "unclosed", b"a: [1, 2\nb: {"
    yield "control characters", b"a: \x1b[31m\n"


def configs(write):
    """Variants and recipes that are bombs, no text, no YAML or no config."""
    for flag, valid in (("variant", VARIANT), ("recipe", RECIPE)):
        others = [*((name, text.encode()) for name, text in _bombs()), *_texts(valid)]
        folder = write.folder(flag)
        for number, (name, content) in enumerate(others):
            path = folder / f"{number}.yaml"
            path.write_bytes(content)
            if flag == "recipe" and name in ("empty", "spaces"):
                continue  # a recipe without keys has the defaults
            commands = ("summary", "train", "preflight", "show")[:: 1 if number % 7 == 0 else 4]
            for command in commands:
                argv = [command, *replace_flag(write.kit.commands()[command], flag, path)]
                item = "C3 YAML" if number < 17 else "D non-UTF-8"
                write.add(folder, f"{command} --{flag}: {name}", argv, light=True, seconds=15, item=item)
    folder = write.folder("crlf")
    for name, content in (("crlf", VARIANT.replace("\n", "\r\n")), ("byte-order mark", "\ufeff" + VARIANT)):
        (folder / f"{name}.yaml").write_bytes(content.encode())
        argv = ["summary", f"--variant={folder}/{name}.yaml", "--json", "--classes=3"]
        write.add(folder, f"summary of a variant with {name}", argv, status=OK, item="A2 CRLF and byte-order marks")
    _wrong_values(write)


def _wrong_values(write):
    """Give each key of a variant values of other types, and random ones."""
    folder = write.folder("values")
    keys = [line.partition(":")[0] for line in VARIANT.splitlines() if line[0].isalpha()]
    values = [
        "-1",
        ".nan",
        "-.inf",
        "1e300",
        "9" * 400,
        "[]",
        "{}",
        "null",
        "'1'",
        "true",
        "2026-01-01",
        "'\\u2028'",
        "[[1]]",
    ]
    for number in range(len(keys) + write.count):
        key = keys[number % len(keys)]
        value = values[number % len(values)] if number < len(keys) else write.random.choice(values)
        if write.random.random() < 0.3:
            value = "".join(write.random.choices(string.printable.strip(), k=8))
        path = folder / f"{number}.yaml"
        lines = [f"{key}: {value}" if line.startswith(f"{key}:") else line for line in VARIANT.splitlines()]
        path.write_text("\n".join(lines if key != "stages" else [*lines[:6], f"stages: {value}"]))
        argv = ["summary", f"--variant={path}"]
        write.add(folder, f"summary {key}: {value[:20]}", argv, status=EITHER, item="D numbers out of range")
    for name, stage in _stages():
        path = folder / f"{name}.yaml"
        path.write_text("\n".join(VARIANT.splitlines()[:6]) + f"\nstages: [{json.dumps(stage)}]\n")
        write.add(folder, f"summary stage: {name}", ["summary", f"--variant={path}"], light=True)


def _stages():
    valid = {"kernel": 3, "stride": 1, "expand": 1, "channels": 8, "repeats": 1}
    yield "even kernel", valid | {"kernel": 4}
    yield "huge kernel", valid | {"kernel": 10**9}
    yield "no repeats", valid | {"repeats": 0}
    yield "10^12 repeats", valid | {"repeats": 10**12}
    yield "10^12 channels", valid | {"channels": 10**12}
    yield "10^400 channels", valid | {"channels": 10**400}
    yield "a word", "x"
    yield "no stride", {k: v for k, v in valid.items() if k != "stride"}
    yield "unknown key", valid | {"\x1b[31m": 1}


def clusters(write):
    """TF_CONFIG and flags of clusters that cannot be."""
    folder = write.folder("cluster")
    worker = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    texts = {
        "no JSON": "{",
        "a list": "[]",
        "a number": "3",
        "a word": '"x"',
        "empty object": "{}",
        "deep": "[" * 100_000,
        "port 99999": json.dumps(worker | {"cluster": {"worker": ["a:1", "b:99999"]}}),
        "port 0": json.dumps(worker | {"cluster": {"worker": ["a:0", "b:1"]}}),
        "negative port": json.dumps(worker | {"cluster": {"worker": ["a:1", "b:-1"]}}),
        "port that is a word": json.dumps(worker | {"cluster": {"worker": ["a:x", "b:1"]}}),
        "no port": json.dumps(worker | {"cluster": {"worker": ["a", "b"]}}),
        "same address twice": json.dumps(worker | {"cluster": {"worker": ["a:1", "a:1"]}}),
        "index 2 of 2": json.dumps(worker | {"task": {"type": "worker", "index": 2}}),
        "negative index": json.dumps(worker | {"task": {"type": "worker", "index": -1}}),
        "index that is a word": json.dumps(worker | {"task": {"type": "worker", "index": "x"}}),
        "index that is a list": json.dumps(worker | {"task": {"type": "worker", "index": [0]}}),
        "unknown task": json.dumps(worker | {"task": {"type": "boss", "index": 0}}),
        "no task": json.dumps({"cluster": worker["cluster"]}),
        "task that is a list": json.dumps(worker | {"task": []}),
        "workers that are a word": json.dumps(worker | {"cluster": {"worker": "a:1"}}),
        "workers that are numbers": json.dumps(worker | {"cluster": {"worker": [1, 2]}}),
        "cluster that is a list": json.dumps(worker | {"cluster": ["a:1"]}),
        "parameter servers": json.dumps(worker | {"cluster": {"worker": ["a:1"], "ps": ["b:1"]}}),
        "strange address": json.dumps(worker | {"cluster": {"worker": ["\x1b[31m:1", "b:1"]}}),
    }
    for name, text in texts.items():
        argv = write.kit.train(write.kit.photos)
        status, writes = (EITHER, ("run*",)) if name == "empty object" else (REFUSED, ())
        write.add(
            folder,
            f"train TF_CONFIG: {name}",
            argv,
            status=status,
            writes=writes,
            light=status == REFUSED,
            env={"TF_CONFIG": text},
            item="D TF_CONFIG",
        )
    for text in ("a", "a:x", "a:1,a:1", "a:99999,b:1", "\x1b[31m:1,b:1", ",", "a:1," * 10_000):
        argv = [*write.kit.train(write.kit.photos), f"--workers={text}", "--worker=0"]
        write.add(folder, f"train --workers={text[:24]}", argv, light=True, says="workers", item="D TF_CONFIG")
