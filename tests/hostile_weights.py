"""Writes weight files that ask for too much, lead elsewhere, or are damaged: what a stranger could send.

`VARIABLES` is a small model, and `write_*` write a valid file of it. The dicts have one entry per misuse of a format.
Nothing here needs TensorFlow or PyTorch.
"""

import io
import json
import pickle
import struct
import zipfile
import zlib

import h5py
import numpy as np

VARIABLES = {
    "stem_conv/kernel": (3, 3, 3, 8),
    "stem_bn/gamma": (8,),
    "stem_bn/beta": (8,),
    "stem_bn/moving_mean": (8,),
    "stem_bn/moving_variance": (8,),
    "predictions/kernel": (8, 3),
    "predictions/bias": (3,),
}
_GROUPS = {"stem_conv": "conv2d", "stem_bn": "batch_normalization", "predictions": "dense"}


def values():
    """Return {path: array} of the small model."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in VARIABLES.items()}


# ------------------------------------------------------------------------------------------------ valid files


def write_h5(path, change=None):
    """Write a .weights.h5 file. `change(file)` may spoil it."""
    with h5py.File(path, "w") as file:
        counts = {}
        for name, array in values().items():
            layer = name.partition("/")[0]
            group = file.require_group(f"layers/{_GROUPS[layer]}/vars")
            group.attrs["name"] = layer
            group.create_dataset(str(counts.get(layer, 0)), data=array)
            counts[layer] = counts.get(layer, 0) + 1
        if change is not None:
            change(file)
    return str(path)


def keras_config(before=(), after=(), **stem):
    """Return a config.json of a .keras file, with layers before and after the network."""
    layers = [
        {"class_name": "InputLayer", "config": {"name": "image"}},
        *before,
        {"class_name": "Rescaling", "config": {"name": "normalization", "scale": [0.5] * 3, "offset": [-1.0] * 3}},
        {"class_name": "Conv2D", "config": {"name": "stem_conv", "padding": "same"} | stem},
        {"class_name": "BatchNormalization", "config": {"name": "stem_bn", "epsilon": 1e-3}},
        {"class_name": "Dense", "config": {"name": "predictions", "activation": "linear"}},
        *after,
    ]
    return {"class_name": "Functional", "config": {"name": "model", "layers": layers}}


def write_keras(path, config=None, weights=None, compression=zipfile.ZIP_STORED):
    """Write a .keras file."""
    if weights is None:
        file = io.BytesIO()
        write_h5(file)
        weights = file.getvalue()
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config or keras_config()) if not isinstance(config, str) else config)
        archive.writestr("model.weights.h5", weights)
    return str(path)


TIMM = {
    "conv_stem.weight": (8, 3, 3, 3),
    "bn1.weight": (8,),
    "bn1.bias": (8,),
    "bn1.running_mean": (8,),
    "bn1.running_var": (8,),
    "classifier.weight": (3, 8),
    "classifier.bias": (3,),
}


def write_safetensors(path, change=None, data=b""):
    """Write a safetensors file. `change(header)` may spoil its header."""
    header, at = {}, 0
    for name, shape in TIMM.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    if change is not None:
        change(header)
    text = json.dumps(header).encode()
    content = np.arange(at // 4, dtype=np.float32).tobytes()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + content + data)
    return str(path)


def torch_pickle(tensors, location="cpu"):
    """Return the pickle of a state dict with float32 tensors, as PyTorch writes it, without PyTorch."""
    out = [b"\x80\x02", b"ccollections\nOrderedDict\n)R("]
    for key, (name, shape) in enumerate(tensors.items()):
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        out.append(_unicode(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(")
        storage = b"(" + _unicode("storage") + b"ctorch\nFloatStorage\n" + _unicode(str(key)) + _unicode(location)
        out.append(storage + _integer(int(np.prod(shape))) + b"tQ" + _integer(0))
        out += [b"(" + b"".join(map(_integer, numbers)) + b"t" for numbers in (shape, strides)]
        out.append(b"\x89ccollections\nOrderedDict\n)RtR")
    return b"".join([*out, b"u."])


def _unicode(text):
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value):
    return b"\x8a\x08" + struct.pack("<q", value) if value > 2**31 - 1 else b"J" + struct.pack("<i", value)


def write_torch(path, description=None, compression=zipfile.ZIP_STORED, tensors=None):
    """Write a .pth file as PyTorch 1.6 and later do."""
    tensors = tensors or TIMM
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", torch_pickle(tensors) if description is None else description)
        for key, shape in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{key}", np.zeros(min(int(np.prod(shape)), 1000), np.float32).tobytes())
    return str(path)


def write_legacy_torch(path, cut=None):
    """Write a .pth file as PyTorch before 1.6 did, or its first bytes."""
    content = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    content += torch_pickle(TIMM) + pickle.dumps([str(key) for key in range(len(TIMM))], 2)
    for shape in TIMM.values():
        count = int(np.prod(shape))
        content += struct.pack("<q", count) + np.arange(count, dtype=np.float32).tobytes()
    with open(path, "wb") as file:
        file.write(content[:cut])
    return str(path)


# ---------------------------------------------------------------------------------------------- hostile files


def _replace(file, data=None, **options):
    """Replace the kernel of the first convolution."""
    del file["layers/conv2d/vars/0"]
    return file["layers/conv2d/vars"].create_dataset("0", data=data, **options)


def _external_storage(file):
    _replace(file, shape=(3, 3, 3, 8), dtype="f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def _external_link(file):
    file["layers/conv2d/vars/1"] = h5py.ExternalLink("/etc/passwd", "/x")


def _soft_link(file):
    file["layers/conv2d/vars/1"] = h5py.SoftLink("/layers/dense/vars/0")


def _virtual(file):
    layout = h5py.VirtualLayout((3, 3, 3, 8), "f4")
    layout[...] = h5py.VirtualSource("/etc/hostname", "x", (3, 3, 3, 8))
    del file["layers/conv2d/vars/0"]
    file["layers/conv2d/vars"].create_virtual_dataset("0", layout)


def _references(file):
    _replace(file, data=np.full((3, 3, 3, 8), file.ref, dtype=h5py.ref_dtype))


def _fill_values(file):
    _replace(file, shape=(3, 3, 3, 8), dtype="f4", fillvalue=1.0)


def _huge(file):
    _replace(file, shape=(2**31,), dtype="f4")


def _huge_compressed(file):
    array = _replace(file, shape=(2**31,), dtype="f4", chunks=(2**22,), compression="gzip", compression_opts=9)
    chunk = zlib.compress(bytes(2**24), 9)
    for i in range(64):
        array.id.write_direct_chunk((i * 2**22,), chunk)


def _swelling_chunk(file):
    """A chunk of the right shape that inflates to 3 GB."""
    array = _replace(file, shape=(3, 3, 3, 8), dtype="f4", chunks=(3, 3, 3, 8), compression="gzip")
    packer = zlib.compressobj(9)
    data = b"".join([*(packer.compress(bytes(2**20)) for _ in range(3000)), packer.flush()])
    array.id.write_direct_chunk((0, 0, 0, 0), data)


def _huge_attribute(file):
    file["layers/conv2d/vars"].attrs.create("name", np.zeros(8000, "f4"))


def _cycle(file):
    file["layers/conv2d/again"] = file["layers"]


def _deep(file):
    file.create_group("layers" + "/x" * 500)


def _many_groups(file):
    group = file.create_group("layers/many")
    for i in range(120_000):
        group.create_group(str(i))


def _plugin_filter(file):
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((3, 3, 3, 8))
    creation.set_filter(33_333, h5py.h5z.FLAG_OPTIONAL, (1,))
    del file["layers/conv2d/vars/0"]
    space, kind = h5py.h5s.create_simple((3, 3, 3, 8)), h5py.h5t.IEEE_F32LE
    made = h5py.h5d.create(file["layers/conv2d/vars"].id, b"0", kind, space, creation)
    made.write_direct_chunk((0, 0, 0, 0), bytes(864))


H5 = {
    "external_storage": (_external_storage, "layers/conv2d/vars/0 is stored in another file, /etc/hostname"),
    "external_link": (_external_link, "layers/conv2d/vars/1 is a link to another file, /etc/passwd"),
    "soft_link": (_soft_link, "layers/conv2d/vars/1 is a link"),
    "virtual": (_virtual, "layers/conv2d/vars/0 is composed of arrays in other files"),
    "references": (_references, "stem_conv/kernel"),
    "fill_values": (_fill_values, "layers/conv2d/vars/0 has no stored values"),
    "huge": (_huge, "stem_conv/kernel"),
    "huge_compressed": (_huge_compressed, "stem_conv/kernel"),
    "swelling_chunk": (_swelling_chunk, "layers/conv2d/vars/0 is"),
    "huge_attribute": (_huge_attribute, "its attribute name is not a text"),
    "cycle": (_cycle, "contains itself or has two names"),
    "deep": (_deep, "is nested too deeply"),
    "many_groups": (_many_groups, "more than 100,000 objects"),
    "plugin_filter": (_plugin_filter, "another method than gzip"),
}


def bomb_zip(path, member="model.weights.h5", size=3 * 2**30):
    """Write a .keras file with a member that expands to zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        others = {"config.json", "model.weights.h5"} if str(path).endswith(".keras") else set()
        for name in others - {member}:
            archive.writestr(name, json.dumps(keras_config()))
        with archive.open(member, "w", force_zip64=True) as file:
            for _ in range(size // 2**20):
                file.write(bytes(2**20))
    return str(path)


def zip_with_names(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return str(path)


def overlapping_zip(path):
    """Write an archive whose second entry is inside the first one."""
    write_keras(path)
    with open(path, "rb") as file:
        data = bytearray(file.read())
    entries = [i for i in range(len(data)) if data[i : i + 4] == b"PK\1\2"]
    data[entries[2] + 42 : entries[2] + 46] = struct.pack("<I", 5)
    with open(path, "wb") as file:
        file.write(data)
    return str(path)


def lying_zip(path, size=3 * 2**30):
    """Write an archive whose list declares another size than a member has."""
    write_keras(path)
    with open(path, "rb") as file:
        data = bytearray(file.read())
    entry = data.rindex(b"PK\1\2")
    data[entry + 24 : entry + 28] = struct.pack("<I", size)
    with open(path, "wb") as file:
        file.write(data)
    return str(path)


def long_header(path, length=2**60):
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", length) + b"{" + bytes(100))
    return str(path)


def _set(key, value, name="conv_stem.weight"):
    return lambda header: header[name].update({key: value})


_EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
SAFETENSORS = {
    "outside": (_set("data_offsets", [0, 10**12]), "conv_stem.weight is not in the file"),
    "reversed": (_set("data_offsets", [10, 5]), "conv_stem.weight is not in the file"),
    "overlap": (_set("data_offsets", [0, 32], "bn1.weight"), "overlaps another one"),
    "type": (_set("dtype", "Q7"), "conv_stem.weight with an unknown type"),
    "type_list": (_set("dtype", ["F32"]), "conv_stem.weight with an unknown type"),
    "shape": (_set("shape", [2**60, 3]), "but 864 bytes"),
    "negative": (_set("shape", [-1, 3]), "numbers that are not possible"),
    "fraction": (_set("shape", [1.5]), "numbers that are not possible"),
    "rank": (_set("shape", [1] * 100), "100 axes"),
    "no_entry": (lambda header: header.update(x=None), "x with an unknown type"),
    "many": (
        lambda header: header.update(dict.fromkeys(map(str, range(100_001)), _EMPTY)),
        "100,008 tensors, more than the 100,000 allowed",
    ),
}  # fmt: skip

PICKLES = {
    "code": (b"cposix\nsystem\n(S'touch hacked'\ntR.", "object of the kind posix.system, which could run code"),
    "bytearray": (b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.", "object of the kind __builtin__.bytearray"),
    "memory": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "damaged|BYTEARRAY8|bytes|cut off"),
    "memo": (b"\x80\x02Nr\xff\xff\xff\x7f.", "instead of tensors with names"),
    "tuples": (b"\x80\x02}(" + b")" + b"2\x86" * 60 + b"Nu.", "DUP"),
    "no_dict": (b"\x80\x02]q\x00.", "contains a list instead of tensors"),
    "no_tensor": (b"\x80\x02}X\x01\0\0\0aK\x01s.", "'a' is not a tensor"),
    "cut": (b"\x80\x02}", "pickle"),
    "empty_stack": (b"\x80\x020.", "damaged"),
}


# ---------------------------------------------------------------------------------------- TensorFlow checkpoints


def _varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def write_index(path, entries, handle=None):
    """Write the index of a TensorFlow checkpoint with entries that may lie: {name: (shape, offset, size)}."""

    def block(items):
        body, restarts = b"", []
        for key, value in items:
            restarts.append(len(body))
            body += _varint(0) + _varint(len(key)) + _varint(len(value)) + key + value
        return body + b"".join(struct.pack("<I", r) for r in restarts or [0]) + struct.pack("<I", max(1, len(restarts)))

    def checked(data):
        return data + b"\0" + struct.pack("<I", _masked_crc(data + b"\0"))

    items = [(b"", b"\x08\x01\x1a\x02\x08\x01")]
    for name, (shape, offset, size) in sorted(entries.items()):
        dims = b"".join(b"\x12" + _varint(1 + len(_varint(n))) + b"\x08" + _varint(n) for n in shape)
        entry = b"\x08\x01\x12" + _varint(len(dims)) + dims + b"\x20" + _varint(offset) + b"\x28" + _varint(size)
        items.append((name.encode(), entry))
    data = block(items)
    content = checked(data)
    meta_at, meta = len(content), block([])
    content += checked(meta)
    index_at, index = len(content), block([(b"\xff", _varint(0) + _varint(len(data)))])
    content += checked(index)
    footer = _varint(meta_at) + _varint(len(meta))
    footer += handle or _varint(index_at) + _varint(len(index))
    with open(path, "wb") as file:
        file.write(content + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))
    return str(path)


def _masked_crc(data):
    crc = 0xFFFFFFFF
    for bit in (byte >> place & 1 for byte in data for place in range(8)):
        crc = crc >> 1 ^ (0x82F63B78 if (crc ^ bit) & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def write_checkpoint(folder, entries, data=bytes(4096), handle=None):
    """Write a checkpoint with a lying index, and return its prefix."""
    write_index(f"{folder}/model.ckpt.index", entries, handle)
    if data is not None:
        with open(f"{folder}/model.ckpt.data-00000-of-00001", "wb") as file:
            file.write(data)
    return f"{folder}/model.ckpt"


CHECKPOINTS = {
    "huge": ({"x/kernel": ((2**31,), 0, 4)}, {}, "has the shape"),
    "huge_consistent": ({"x/kernel": ((2**31,), 0, 2**33)}, {}, "is not in the data file"),
    "absurd": ({"x/kernel": ((2**62 + 1,), 0, 4)}, {}, "not possible"),
    "product": ({"x/kernel": ((2**40, 2**40), 0, 4)}, {}, "has the shape"),
    "cut": ({"x/kernel": ((2000,), 0, 8000)}, {}, "cut off"),
    "no_data": ({"x/kernel": ((1,), 0, 4)}, {"data": None}, "no such file"),
    "handle": ({"x/kernel": ((1,), 0, 4)}, {"handle": _varint(0) + _varint(2**60)}, "its index is damaged"),
}


# ------------------------------------------------------------------------------------------------ for memory


def bombs(folder):
    """Write every file that would need much memory, and return {name: path}."""
    made = {}
    for name in ("huge", "huge_compressed", "swelling_chunk", "huge_attribute", "many_groups", "deep"):
        made[f"h5 {name}"] = write_h5(folder / f"{name}.weights.h5", H5[name][0])
    made["zip bomb"] = bomb_zip(folder / "bomb.keras")
    made["config bomb"] = bomb_zip(folder / "config.keras", "config.json", 2 * 2**30)
    made["pth bomb"] = bomb_zip(folder / "bomb.pth", "archive/data.pkl")
    made["lying zip"] = lying_zip(folder / "lying.keras")
    made["huge h5 in .keras"] = _huge_in_keras(folder)
    made["header of 2^60"] = long_header(folder / "long.safetensors")
    made["header of 1 GB"] = _sparse_header(folder / "sparse.safetensors")
    made["100,000 tensors"] = write_safetensors(folder / "many.safetensors", SAFETENSORS["many"][0])
    made["sparse tensor"] = _sparse_tensor(folder / "tf_efficientnet_b0.safetensors")
    for name in ("bytearray", "memory", "memo"):
        made[f"pickle {name}"] = write_torch(folder / f"{name}.pth", PICKLES[name][0])
    made["pth of 2^31"] = write_torch(folder / "shape.pth", tensors={"conv_stem.weight": (2**31,)})
    for name in ("huge", "huge_consistent", "product", "handle"):
        (folder / name).mkdir()
        entries, options, _ = CHECKPOINTS[name]
        made[f"checkpoint {name}"] = write_checkpoint(folder / name, entries, **options)
    return made


def _huge_in_keras(folder):
    with open(write_h5(folder / "inner.h5", _huge_compressed), "rb") as file:
        return write_keras(folder / "huge.keras", weights=file.read())


def _sparse_header(path):
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 2**30) + b"{")
        file.truncate(2**31)
    return str(path)


def _sparse_tensor(path):
    """A tensor of 4 GB that is really in the file, in which no byte is allocated."""
    text = json.dumps({"conv_stem.weight": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2**32)
    return str(path)
