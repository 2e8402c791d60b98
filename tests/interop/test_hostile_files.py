"""Files that try to run something, or to take all memory, when they are read: refused by name, nothing executed."""

import copyreg
import functools
import io
import json
import operator
import os
import pickle
import resource
import struct
import subprocess
import zipfile

import numpy as np
import pytest
import safetensors.torch
import snapshot_writer
import torch
from snapshot_writer import StandIn

from gankern.cli import main
from gankern.errors import InputError
from gankern.interop import rosinality, tensors
from gankern.interop.reading import read_networks
from gankern.models.files import save_network
from gankern.models.stylegan2 import Generator

SMALL = {"img_resolution": 8, "channel_base": 64, "channel_max": 8, "num_mapping_layers": 1}
MOST_MEMORY = 400 * 2**20


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def dumps(content, protocol=4):
    with snapshot_writer.stand_in_modules():
        return pickle.dumps(content, protocol)


def within(attribute):
    """A whole snapshot, one of whose modules has this attribute."""
    content = snapshot_writer.snapshot(G_ema=Generator(8, w_dim=8, **SMALL).state_dict())
    content["G_ema"]._modules["synthesis"].extra = attribute
    return dumps(content)


def storage(numbers=4, states=None, kind=b"storage"):
    """A storage's bytes in torch's older format, with another size than it has."""
    typed = torch.zeros(numbers)._typed_storage()
    file = io.BytesIO()
    torch.save(typed, file, _use_new_zipfile_serialization=False)
    data = file.getvalue().replace(b"storage", kind)
    if states is not None:
        short = b"K" + bytes([numbers])
        assert data.count(short) >= 1
        at = data.index(short, data.index(b"FloatStorage"))
        data = data[:at] + b"\x8a\x08" + struct.pack("<q", states) + data[at + len(short) :]
    return data


def tensor(data, offset, size, stride):
    return Calls(torch._utils._rebuild_tensor_v2, Calls(torch.storage._load_from_bytes, data), offset, size, stride)


def cyclic():
    module = StandIn("Generator")
    module._modules["again"] = module
    return dumps({"G_ema": module})


def exponential():
    module = StandIn("Leaf")
    for _ in range(15):
        parent = StandIn("Node")
        parent._modules |= {str(i): module for i in range(8)}
        module = parent
    return dumps({"G_ema": module})


def nested_keys():
    """A tuple within tuples, 200,000 deep, as a key: its hash would overrun the stack."""
    return b"\x80\x04}" + b")" + b"\x85" * 200_000 + b"K\x01s."


def global_of(module, name, rest):
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n" + rest


def again(function, *arguments, times=8):
    """Calls with the same arguments, over and over."""
    given = pickle.dumps(arguments, 3)[2:-1]
    return b"\x80\x03c" + function.encode() + b"\nq\xff" + given + b"q\xfe" + b"h\xffh\xfeR" * times + b"."


def doubled():
    """Instructions for a tuple whose repr has 2^60 parts."""
    return b")q\xf0" + b"0h\xf0h\xf0\x86q\xf0" * 60


def nested():
    """Instructions for tuples within tuples, 200,000 deep."""
    return b")" + b"\x85" * 200_000


def a_call_of(function, *arguments):
    """With arguments that are instructions."""
    return b"\x80\x02c" + function.encode() + b"\n(" + b"".join(arguments) + b"tR."


def shared_numbers():
    """A snapshot with 400 layers that are one layer's numbers."""
    content = snapshot_writer.snapshot(G_ema=Generator(128, w_dim=128, **SMALL).state_dict())
    mapping = content["G_ema"]._modules["mapping"]
    for i in range(1, 400):
        mapping._modules[f"fc{i}"] = mapping._modules["fc0"]
    return dumps(content)


def passing(attribute):
    """A snapshot one of whose modules has this instead of a set of buffers' names."""
    content = snapshot_writer.snapshot(G_ema=Generator(8, w_dim=8, **SMALL).state_dict())
    content["G_ema"]._modules["mapping"]._non_persistent_buffers_set = attribute
    return dumps(content)


def array_ordered_by(order):
    """A numpy array's state, with something else in place of its order."""
    function, arguments, state = np.zeros(3).__reduce__()

    class Array:
        def __reduce__(self):
            return function, arguments, (*state[:3], order, state[4])

    return dumps(Array())


REBUILD, LOAD = "torch._utils\n_rebuild_tensor_v2", "torch.storage\n_load_from_bytes"
STORAGE = dumps(Calls(torch.storage._load_from_bytes, storage()), 3)[2:-1]
COMMAND = "touch executed"
CALL = b"(X\x0e\x00\x00\x00touch executedtR."

HOSTILE = {
    "os.system": (lambda: dumps(Calls(os.system, COMMAND)), r"tries to use posix\.system"),
    "os.system, protocol 0": (lambda: b"cos\nsystem\n(S'touch executed'\ntR.", r"tries to use os\.system"),
    "INST": (lambda: b"(S'touch executed'\nios\nsystem\n.", r"make an object of os\.system"),
    "OBJ": (lambda: b"(cos\nsystem\nS'touch executed'\no.", r"tries to use os\.system"),
    "within a module": (lambda: within(Calls(os.system, COMMAND)), r"tries to use posix\.system"),
    "eval": (lambda: dumps(Calls(eval, "open('executed', 'w')")), r"tries to use builtins\.eval"),
    "exec": (lambda: within(Calls(exec, "open('executed', 'w')")), r"tries to use builtins\.exec"),
    "open": (lambda: dumps(Calls(open, "executed", "w")), r"tries to use (io|_io)\.open"),
    "Popen": (lambda: dumps(Calls(subprocess.Popen, ["touch", "executed"])), r"tries to use subprocess\.Popen"),
    "getattr": (lambda: dumps(Calls(getattr, "", "join")), r"tries to use builtins\.getattr"),
    "partial": (lambda: dumps(functools.partial(print, 1)), r"tries to use functools\.partial"),
    "attrgetter": (lambda: dumps(operator.attrgetter("a.b")), r"tries to use operator\.attrgetter"),
    "torch.load": (lambda: dumps(Calls(torch.load, "x")), r"tries to use torch\.serialization\.load"),
    "a known function's globals": (
        lambda: b"\x80\x04\x8c\x0dtorch.storage\x8c\x1c_load_from_bytes.__globals__\x93.",
        "tries to use torch.storage._load_from_bytes.__globals__",
    ),
    "any class": (lambda: dumps(np.random.RandomState(0)), r"tries to use numpy\.random"),
    "copyreg": (lambda: dumps(Calls(copyreg._reconstructor, io.BytesIO, object, None)), r"tries to use copyreg"),
    "an extension code": (lambda: b"\x80\x02\x82\x01.", "instruction EXT1"),
    "NEWOBJ_EX": (lambda: b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "instruction NEWOBJ_EX"),
    "an out-of-band buffer": (lambda: b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
    "a class is changed": (lambda: global_of("collections", "OrderedDict", b"}X\x01\x00\x00\x00aK\x01sb."), "state of"),
    "a dict's attributes": (lambda: b"\x80\x02}}X\x01\x00\x00\x00aK\x01sb.", "state of a dict"),
    "an object is called": (lambda: b"\x80\x02})R.", "tries to call a dict"),
    "a dict class with arguments": (lambda: dumps(Calls(dict, [((1,), 2)])), "tries to use builtins.dict"),
    "a persistent id": (lambda: b"\x80\x02X\x02\x00\x00\x00osQ.", "from outside"),
    "a persistent id, text": (lambda: b"Pos.system\n.", "from outside"),
    "a call in a storage": (lambda: dumps(Calls(torch.storage._load_from_bytes, b"cos\nsystem\n" + CALL)), "os.system"),
    "another persistent id in a storage": (
        lambda: dumps(tensor(storage(kind=b"sturage"), 0, (4,), (1,))),
        "unknown form",
    ),
    "a storage of 10 GB": (lambda: dumps(tensor(storage(states=10 * 2**30 // 4), 0, (4,), (1,))), "states 10,7"),
    "a storage of too little": (lambda: dumps(tensor(storage()[:-3], 0, (4,), (1,))), "are there"),
    "no storage": (lambda: dumps(tensor(b"", 0, (4,), (1,))), "truncated or malformed"),
    "a tensor of 10^18 numbers": (lambda: dumps(tensor(storage(), 0, (10**9, 10**9), (0, 0))), "from 4 numbers"),
    "a tensor beyond its storage": (lambda: dumps(tensor(storage(), 2, (4,), (1,))), "from 4 numbers"),
    "a tensor before its storage": (lambda: dumps(tensor(storage(), 0, (4,), (-1,))), "strides"),
    "a numpy array of objects": (lambda: within(np.array([{}])), "numpy data"),
    "10 GB of bytes": (lambda: b"\x80\x04\x8e" + struct.pack("<Q", 10 * 2**30) + b"abc.", "truncated or malformed"),
    "10 GB of text": (lambda: b"\x80\x04\x8d" + struct.pack("<Q", 10 * 2**30) + b"abc.", "truncated or malformed"),
    "a frame of 10 GB": (lambda: b"\x80\x04\x95" + struct.pack("<Q", 10 * 2**30) + b"}.", "not a StyleGAN snapshot"),
    "a memo of 2^31": (lambda: b"\x80\x02}r\xff\xff\xff\x7f.", "not a StyleGAN snapshot"),
    "a memo that isn't there": (lambda: b"\x80\x02h\x05.", "malformed"),
    "three million instructions": (lambda: b"\x80\x02" + b"}" * 3_000_000 + b".", "instructions"),
    "modules within themselves": (cyclic, "without end"),
    "8^15 modules": (exponential, "without end"),
    "a key 200,000 deep": (nested_keys, "a tuple where a plain word"),
    "a storage again and again": (lambda: again(LOAD, storage(250_000)), "_from_bytes the same things again"),
    "bytes again and again": (lambda: again("_codecs\nencode", "x" * 10**6, "latin1"), "encode the same things again"),
    "a set again and again": (lambda: again("builtins\nset", list(range(10**4))), "set the same things again"),
    "a shape again and again": (lambda: again("torch\nSize", [0] * 10**4), "Size the same things again"),
    "a layer again and again": (shared_numbers, "share their numbers"),
    "an endless shape": (lambda: a_call_of(REBUILD, STORAGE, b"K\x00", doubled(), b")"), "shape and strides"),
    "an endless stride": (lambda: a_call_of(REBUILD, STORAGE, b"K\x00", b")", nested()), "shape and strides"),
    "a shape that is a dict": (
        lambda: a_call_of(REBUILD, STORAGE, b"K\x00", b"}K\x09" + doubled() + b"s", b")"),
        "shape",
    ),
    "endless numpy data": (lambda: a_call_of("numpy\ndtype", doubled()), "numpy data of type a tuple"),
    "an endless encoding": (lambda: a_call_of("_codecs\nencode", b"X\x00\x00\x00\x00", nested()), "text as a tuple"),
    "a dict's attributes, a tensor": (
        lambda: b"\x80\x02}" + dumps(tensor(storage(), 0, (4,), (1,)), 3)[2:-1] + b"b.",
        "state",
    ),
    "a numpy array's order, a tensor": (lambda: array_ordered_by(tensor(storage(), 0, (4,), (1,))), "numpy array"),
    "buffers, a number": (lambda: passing(5), "_non_persistent_buffers_set is no set"),
    "buffers, a tensor": (lambda: passing(torch.zeros(4)), "_non_persistent_buffers_set is no set"),
    "nothing": (lambda: b"\x80\x04.", "malformed"),
    "TensorFlow": (lambda: global_of("dnnlib.tflib.network", "Network", b")\x81."), "written by a TensorFlow StyleGAN"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refused(case, tmp_path, monkeypatch):
    make, message = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "n.pkl").write_bytes(make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message) as caught:
        read_networks(tmp_path / "n.pkl")
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY
    assert [p.name for p in tmp_path.iterdir()] == ["n.pkl"]


def test_pickle_itself_would_run_them(tmp_path, monkeypatch):
    """That the cases are what they claim to be."""
    monkeypatch.chdir(tmp_path)
    for case in ("os.system", "os.system, protocol 0", "INST", "OBJ"):
        pickle.loads(HOSTILE[case][0]())
        assert (tmp_path / "executed").exists(), case
        (tmp_path / "executed").unlink()


def test_cut_short_anywhere(tmp_path):
    whole = dumps(snapshot_writer.snapshot(G_ema=Generator(8, w_dim=8, **SMALL).state_dict()))
    (tmp_path / "n.pkl").write_bytes(whole)
    assert read_networks(tmp_path / "n.pkl").G_ema is not None
    for size in range(0, len(whole), len(whole) // 40):
        (tmp_path / "n.pkl").write_bytes(whole[:size])
        with pytest.raises(InputError):
            read_networks(tmp_path / "n.pkl")


def test_any_byte_changed(tmp_path):
    """Loads, or is refused in one line; never another error."""
    whole = bytearray(dumps(snapshot_writer.snapshot(G_ema=Generator(8, w_dim=8, **SMALL).state_dict())))
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, len(whole), 120):
        changed = bytearray(whole)
        changed[at] = rng.integers(256)
        (tmp_path / "n.pkl").write_bytes(changed)
        try:
            read_networks(tmp_path / "n.pkl")
        except InputError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("kind", ["new.pt", "older.pt", "own.safetensors"])
def test_any_byte_of_other_files_changed(kind, tmp_path):
    """The pickles and headers at their beginnings above all."""
    G, path = Generator(8, w_dim=8, **SMALL), tmp_path / kind
    save_network(tmp_path / "own.safetensors", G, nimg=0, training={"G": G})
    if kind != "own.safetensors":
        content = {"g_ema": rosinality.write(G), "latent_avg": G.mapping.w_avg}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "new.pt")
    whole, rng, said = path.read_bytes(), np.random.default_rng(0), []
    for at in rng.integers(0, min(len(whole), 6000), 100):
        path.write_bytes(whole[:at] + bytes([rng.integers(256)]) + whole[at + 1 :])
        try:
            read_networks(path)
        except InputError as error:
            said.append(str(error))
    assert len(said) > 20
    assert all(text.isprintable() for text in said)


def test_the_command_line_exits_with_2_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "n.pkl").write_bytes(dumps(Calls(os.system, COMMAND)))
    assert main(["convert", str(tmp_path / "n.pkl"), str(tmp_path / "out.safetensors")]) == 2
    assert "posix.system" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


# -- torch's files ----------------------------------------------------------------------------------------------------


def saved(path, content, **how):
    torch.save(content, path, **how)


def deflated(path):
    saved(path, {"g_ema": {"conv1.conv.modulation.weight": torch.zeros(10_000_000)}})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def wide(path):
    """Of a w of 300,000 numbers: networks with it would have matrices of 360 GB."""
    sd = Generator(8, w_dim=8, **SMALL).state_dict() | {"mapping.w_avg": torch.zeros(300_000)}
    saved(path, {"G_ema": sd | {"mapping.fc0.weight": torch.zeros(1, 8)}})


def older_of_10_gb(path):
    """torch's older format; one storage states 10 GB."""
    saved(path, {"g_ema": {"conv1.conv.modulation.weight": torch.zeros(77)}}, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    at = data.index(b"KM", data.index(b"cpu"))  # 77, after the storage's device
    path.write_bytes(data[:at] + b"\x8a\x08" + struct.pack("<q", 10 * 2**30 // 4) + data[at + 2 :])


def a_network_file_of(path, **changed):
    """gankern's own, whose config asks for other sizes than its weights have."""
    save_network(path, Generator(8, w_dim=8, **SMALL), nimg=0)
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["gankern"])
    header["config"] |= changed
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, metadata={"gankern": json.dumps(header)})


def expanded(path):
    saved(path, {"g_ema": {"conv1.conv.modulation.weight": torch.zeros(1).expand(10**6, 10**6)}})


def metas(path):
    with torch.device("meta"):
        saved(path, {"G_ema": Generator(512, w_dim=512, img_resolution=64).state_dict()})


TORCH_FILES = {
    "a call": (lambda p: saved(p, {"g_ema": Calls(os.system, COMMAND)}), "posix.system|refused by torch"),
    "a call, older format": (
        lambda p: saved(p, {"g_ema": Calls(os.system, COMMAND)}, _use_new_zipfile_serialization=False),
        "posix.system|refused by torch",
    ),
    "a module": (lambda p: saved(p, {"g_ema": torch.nn.Linear(1, 1)}), "refused by torch"),
    "a bomb": (deflated, "larger than the file"),
    "a tensor of 10^12 numbers": (expanded, "no tensor of stored numbers"),
    "a w of 300,000 numbers": (wide, "mapping.fc0.weight has shape|expected"),
    "a storage of 10 GB, older format": (older_of_10_gb, "damaged|refused"),
    "a config of 2^18 px": (lambda p: a_network_file_of(p, img_resolution=2**18), "don't fit"),
    "a config of 10^6 channels": (lambda p: a_network_file_of(p, channel_base=10**9, channel_max=10**6), "don't fit"),
    "cut short": (lambda p: (saved(p, {"a": torch.zeros(99)}), p.write_bytes(p.read_bytes()[:300])), "damaged|refused"),
    "tensors without numbers": (metas, "no tensor of stored numbers"),
    "a key that is no text": (lambda p: saved(p, {("a",): 1}), "it holds a tuple, which"),
    "other tensors": (lambda p: saved(p, {"a": torch.zeros(3)}), "no networks of a known form"),
    "no tensors": (lambda p: saved(p, {"g_ema": {"a": 1}}), "no tensor"),
    "a list": (lambda p: saved(p, [1]), "no state dict"),
}


@pytest.mark.parametrize("case", TORCH_FILES)
def test_torch_files(case, tmp_path, monkeypatch):
    make, message = TORCH_FILES[case]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "n.pt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message):
        read_networks(tmp_path / "n.pt")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"no networks", b"\x00" * 64], ids=["empty", "text", "zeros"])
def test_other_files(content, tmp_path):
    (tmp_path / "n.bin").write_bytes(content)
    with pytest.raises(InputError):
        read_networks(tmp_path / "n.bin")
    with pytest.raises(InputError, match="no such file"):
        read_networks(tmp_path / "nothing")
    with pytest.raises(InputError, match="no checkpoint"):
        read_networks(tmp_path)


def test_a_storage_as_torch_writes_it():
    tensors.check_storage(storage())
    assert tensors.load_storage(storage(7)).nbytes() == 28
