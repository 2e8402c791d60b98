"""`gankern data prepare`: what it writes, and that it writes all or nothing."""

import argparse
import errno
import gzip
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from gankern.cli import data as cli
from gankern.data import open_dataset, prepare
from gankern.data.writer import dataset_writer, encode_png
from gankern.errors import InputError


def test_layout_and_labels(folder, tmp_path):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    (folder / "dataset.json").write_text(json.dumps({"labels": [[name, i % 3] for i, name in enumerate(names)]}))
    report = prepare(folder, tmp_path / "out.zip", resolution=16)
    assert (report.written, report.label_dim, report.skipped) == (12, 3, [])
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == [f"00000/img{i:08d}.png" for i in range(12)] + ["dataset.json"]
        assert json.loads(archive.read("dataset.json"))["labels"][4] == ["00000/img00000004.png", 1]
    before, after = open_dataset(folder), open_dataset(tmp_path / "out.zip", use_labels=True)
    assert all(np.array_equal(before.image(i), after.image(i)) for i in range(12))
    prepare(folder, tmp_path / "out", resolution=16)
    assert open_dataset(tmp_path / "out").names == after.names


def test_same_input_same_bytes(folder, tmp_path):
    for name in ("a.zip", "b.zip"):
        prepare(folder, tmp_path / name, resolution=8)
        time.sleep(2.1 if name == "a.zip" else 0)  # zip times have steps of two seconds
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_thousand_images_a_folder(tmp_path):
    png = encode_png(Image.new("RGB", (4, 4)))
    with dataset_writer(tmp_path / "out.zip") as writer:
        for _ in range(1001):
            writer.add(png)
    assert open_dataset(tmp_path / "out.zip").names[-2:] == ["00000/img00000999.png", "00001/img00001000.png"]


def test_center_crop_takes_the_middle(tmp_path):
    (tmp_path / "in").mkdir()
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 200
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    with pytest.raises(InputError, match=r"a\.png is 48x16.*--transform center-crop"):
        prepare(tmp_path / "in", tmp_path / "out.zip", resolution=8)
    prepare(tmp_path / "in", tmp_path / "out.zip", resolution=8, transform="center-crop")
    assert (open_dataset(tmp_path / "out.zip").image(0) == 200).all()


@pytest.mark.parametrize("size", [(64, 36), (128, 36), (64, 64)])
def test_center_crop_wide_lays_16_to_9_on_black(size, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "in" / "a.png")
    prepare(tmp_path / "in", tmp_path / "out.zip", resolution=32, transform="center-crop-wide")
    image = open_dataset(tmp_path / "out.zip").image(0)
    assert (image[:, 7:25] == np.array([200, 100, 50])[:, None, None]).all()
    assert not image[:, :7].any()
    assert not image[:, 25:].any()


def test_labels_from_folders(folder, tmp_path, picture):
    assert prepare(folder, tmp_path / "out.zip", resolution=16, labels_from_folders=True).label_dim == 2
    assert open_dataset(tmp_path / "out.zip", use_labels=True).labels[:, 1].tolist() == [0] * 6 + [1] * 6
    picture(0).save(folder / "loose.png")
    with pytest.raises(InputError, match=r"loose\.png lies in no folder"):
        prepare(folder, tmp_path / "more.zip", resolution=16, labels_from_folders=True)


def test_bad_images_are_listed_or_skipped(folder, tmp_path):
    path = folder / "00001" / "img00000007.png"
    data = bytearray(path.read_bytes())
    middle = data.index(b"IDAT") + 20
    data[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(data)
    (folder / "a.gif").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.gif"):
        prepare(folder, tmp_path / "out.zip", resolution=8)
    assert not list(tmp_path.glob("out*"))
    report = prepare(folder, tmp_path / "out.zip", resolution=8, skip_bad=True)
    assert {name for name, _ in report.skipped} == {"a.gif", "00001/img00000007.png"}
    assert report.written == len(open_dataset(tmp_path / "out.zip")) == 11
    assert "skipped 2 bad" in report.summary()


def test_damaged_pixels_alone_leave_nothing(folder, tmp_path):
    path = folder / "00001" / "img00000007.png"
    data = path.read_bytes()
    path.write_bytes(data[:45] + b"\xff" * 8 + data[53:])
    with pytest.raises(InputError, match=r"1 of 12 images.*img00000007\.png"):
        prepare(folder, tmp_path / "out", resolution=8)
    assert not list(tmp_path.glob("out*"))


def test_wrong_options(folder, tmp_path):
    with pytest.raises(InputError, match="--resolution 12"):
        prepare(folder, tmp_path / "out.zip", resolution=12)
    with pytest.raises(InputError, match="--transform stretch"):
        prepare(folder, tmp_path / "out.zip", resolution=8, transform="stretch")
    with pytest.raises(InputError, match="within the source"):
        prepare(folder, folder / "out", resolution=8)
    with pytest.raises(InputError, match="--max-images"):
        prepare(folder, tmp_path / "out.zip", resolution=8, max_images=-1)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_existing_output_is_not_touched(name, folder, tmp_path):
    prepare(folder, tmp_path / name, resolution=8)
    before = open_dataset(tmp_path / name).identity
    with pytest.raises(InputError, match=f"{name}: "):
        prepare(folder, tmp_path / name, resolution=16)
    assert open_dataset(tmp_path / name).identity == before
    (tmp_path / "empty").mkdir()
    prepare(folder, tmp_path / "empty", resolution=8)


# --- all or nothing


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_full_disk_leaves_nothing(name, folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="disk is full"):
        prepare(folder, tmp_path / name, resolution=8)
    assert not list(tmp_path.glob("out*"))


WRITE_SLOWLY = """
import sys, time
from PIL import Image
from gankern.data.writer import dataset_writer, encode_png
with dataset_writer(sys.argv[1]) as writer:
    for _ in range(5):
        writer.add(encode_png(Image.new("RGB", (4, 4))))
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_kill_leaves_no_output_and_no_lock(name, folder, tmp_path):
    out = tmp_path / name
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_SLOWLY, str(out)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == b"ready\n"
    with pytest.raises(InputError, match="another process is writing"):
        prepare(folder, out, resolution=8)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    prepare(folder, out, resolution=8)
    assert len(open_dataset(out)) == 12
    assert not list(tmp_path.glob("*.partial"))


# --- CIFAR-10 and MNIST


class Payload:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def make_cifar(path, extra=None, count=3, batches=5):
    random = np.random.RandomState(0)
    everything = []
    with tarfile.open(path, "w:gz") as archive:
        for number in range(1, batches + 1):
            data = random.randint(0, 256, (count, 3072)).astype(np.uint8)
            everything.append(data)
            batch = {b"data": data, b"labels": random.randint(0, 10, count).tolist(), **(extra or {})}
            content = pickle.dumps(batch, protocol=4)
            info = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{number}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return np.concatenate(everything).reshape(-1, 3, 32, 32)


def test_cifar(tmp_path):
    source = tmp_path / "cifar-10-python.tar.gz"
    images = make_cifar(source)
    assert prepare(source, tmp_path / "out.zip", resolution=32).written == 15
    dataset = open_dataset(tmp_path / "out.zip", use_labels=True)
    assert all(np.array_equal(dataset.image(i), images[i]) for i in range(15))
    assert dataset.labels.sum(1).tolist() == [1] * 15


def test_cifar_pickle_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "cifar-10-python.tar.gz"
    make_cifar(source, {b"more": Payload()})
    with pytest.raises(InputError, match=r"refused to load posix\.system"):
        prepare(source, tmp_path / "out.zip", resolution=32)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("extra", [{b"data": b"x"}, {b"labels": [11, 0, 0]}, {b"labels": [0]}])
def test_cifar_with_other_content(extra, tmp_path):
    source = tmp_path / "cifar-10-python.tar.gz"
    make_cifar(source, extra)
    with pytest.raises(InputError, match="damaged, or not what its name says"):
        prepare(source, tmp_path / "out.zip", resolution=32)
    source.write_bytes(source.read_bytes()[:200])
    with pytest.raises(InputError, match="damaged"):
        prepare(source, tmp_path / "out.zip", resolution=32)


def make_mnist(folder, count=7, labels=7):
    pixels = np.random.RandomState(0).randint(0, 256, (count, 28, 28)).astype(np.uint8)
    header = np.array([0x803, count, 28, 28], ">u4").tobytes()
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(header + pixels.tobytes())
    with gzip.open(folder / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(np.array([0x801, labels], ">u4").tobytes() + bytes(range(labels)))
    return folder / "train-images-idx3-ubyte.gz", pixels


def test_mnist(tmp_path):
    source, pixels = make_mnist(tmp_path)
    prepare(source, tmp_path / "out.zip", resolution=32)
    dataset = open_dataset(tmp_path / "out.zip", use_labels=True)
    assert dataset.labels.argmax(1).tolist() == list(range(7))
    assert np.array_equal(dataset.image(4), np.repeat(np.pad(pixels[4], 2)[None], 3, 0))
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert prepare(source, tmp_path / "plain.zip", resolution=32).label_dim == 0


def test_mnist_that_does_not_match(tmp_path):
    source, _ = make_mnist(tmp_path, labels=6)
    with pytest.raises(InputError, match="6 labels for 7 images"):
        prepare(source, tmp_path / "out.zip", resolution=32)
    with gzip.open(source, "wb") as file:
        file.write(np.array([0x803, 9, 28, 28], ">u4").tobytes() + bytes(28 * 28))
    with pytest.raises(InputError, match="holds 784 bytes, expected 7056"):
        prepare(source, tmp_path / "out.zip", resolution=32)
    source.write_bytes(b"no gzip")
    with pytest.raises(InputError, match="damaged"):
        prepare(source, tmp_path / "out.zip", resolution=32)


# --- the command


def test_command_line(folder, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers())
    command = f"data prepare --source {folder} --out {tmp_path}/out.zip --resolution 8 --max-images 5"
    args = parser.parse_args(command.split())
    assert args.func(args) == 0
    assert "5 images at 8x8; no labels" in capsys.readouterr().out
