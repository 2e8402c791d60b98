"""The stored pyramid: the same bytes as decoding and reducing gives, and never those of other images."""

import json
import os
import pickle
import shutil
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from gankern.data import BatchStream, open_dataset, prepare
from gankern.data.pyramid import INDEX
from gankern.data.writer import dataset_writer, encode_png
from gankern.errors import InputError

KINDS = ("out", "out.zip")


@pytest.fixture
def noisy(tmp_path):
    """Seven 32x32 images whose block averages round in every way."""
    root = tmp_path / "noisy"
    root.mkdir()
    for seed in range(7):
        pixels = np.random.RandomState(seed).randint(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{seed}.png")
    (root / "dataset.json").write_text(json.dumps({"labels": [[f"{i}.png", i % 3] for i in range(7)]}))
    return root


@pytest.fixture(params=KINDS)
def pair(request, noisy, tmp_path):
    """The same dataset without and with a pyramid."""
    name = request.param
    prepare(noisy, tmp_path / f"plain-{name}", resolution=32)
    prepare(noisy, tmp_path / name, resolution=32, pyramid=True)
    return tmp_path / f"plain-{name}", tmp_path / name


@pytest.fixture
def no_decoding(monkeypatch):
    """no_decoding(): from now on, an image that is decoded is an error."""

    def fail(*_):
        raise AssertionError("decoded an image")

    return lambda: monkeypatch.setattr("gankern.data.dataset.decode", fail)


def images(dataset):
    return np.stack([dataset.image(i) for i in range(len(dataset))])


@pytest.mark.parametrize("resolution", [4, 8, 16])
def test_levels_are_the_bytes_of_reducing(resolution, pair, noisy, no_decoding):
    expected = images(open_dataset(noisy, resolution=resolution))
    assert np.array_equal(images(open_dataset(pair[0], resolution=resolution)), expected)
    no_decoding()
    dataset = open_dataset(pair[1], resolution=resolution, use_labels=True)
    assert np.array_equal(images(dataset), expected)
    assert dataset.labels.argmax(1).tolist() == [0, 1, 2, 0, 1, 2, 0]
    image = dataset.image(2)
    image[:] = 0  # a copy: neither the file nor the next reader sees it
    assert np.array_equal(dataset.image(2), expected[2])


def test_full_resolution_is_as_without(pair):
    plain, stored = (open_dataset(path, use_labels=True) for path in pair)
    assert plain.names == stored.names
    assert plain.resolution == stored.resolution == stored.read_resolution == 32
    assert np.array_equal(plain.labels, stored.labels)
    assert np.array_equal(images(plain), images(stored))
    assert stored.stored_array is None


def test_identity_is_as_without(noisy, tmp_path):
    for name, pyramid in (("a.zip", False), ("b.zip", True)):
        prepare(noisy, tmp_path / name, resolution=32, pyramid=pyramid)
    for resolution in (32, 8):
        a, b = (open_dataset(tmp_path / name, resolution=resolution) for name in ("a.zip", "b.zip"))
        assert a.identity == b.identity
        assert a.conversions == b.conversions


def test_same_input_same_bytes(noisy, tmp_path):
    for name in ("a.zip", "b.zip"):
        prepare(noisy, tmp_path / name, resolution=32, pyramid=True)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        levels = [f"pyramid/{r}.npy" for r in (4, 8, 16)]
        assert archive.namelist()[7:] == ["dataset.json", *levels, INDEX]
        assert archive.testzip() is None


def test_levels_are_npy_files(noisy, tmp_path):
    prepare(noisy, tmp_path / "out", resolution=32, pyramid=True)
    level = np.load(tmp_path / "out" / "pyramid" / "8.npy")
    assert np.array_equal(level, images(open_dataset(noisy, resolution=8)))


def test_a_part_of_the_images(pair, no_decoding):
    expected = open_dataset(pair[0], resolution=8, max_images=3)
    wanted = images(expected)
    no_decoding()
    dataset = open_dataset(pair[1], resolution=8, max_images=3)
    assert dataset.names == expected.names
    assert dataset.stored_array is None
    assert np.array_equal(images(dataset), wanted)


@pytest.mark.parametrize(("cache", "workers"), [("on", 0), ("off", 0), ("off", 2)])
def test_batches_of_a_level(cache, workers, pair, cache_folder):
    """From the mapped file, from this process and from workers; nothing goes to the cache folder."""
    options = {"mirror": True, "seed": 3, "workers": workers}
    with BatchStream(open_dataset(pair[0], resolution=8), 5, cache="off", **{**options, "workers": 0}) as plain:
        expected = [next(plain)[0] for _ in range(4)]
    with BatchStream(open_dataset(pair[1], resolution=8), 5, cache=cache, **options) as stream:
        assert all(bool((next(stream)[0] == batch).all()) for batch in expected)
    assert not cache_folder.exists()


def test_pickle_is_small(pair):
    dataset = open_dataset(pair[1], resolution=16)
    dataset.image(0)
    before = len(pickle.dumps(open_dataset(pair[0], resolution=16)))
    again = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < before + 500
    assert np.array_equal(again.image(3), dataset.image(3))


# --- a pyramid that doesn't belong to the images


def check_not_used(path, caplog, reason):
    dataset = open_dataset(path, resolution=8)
    assert dataset.read_resolution == 32
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]
    return images(dataset)


def test_images_that_changed(noisy, tmp_path, caplog):
    prepare(noisy, tmp_path / "out", resolution=32, pyramid=True)
    victim = tmp_path / "out" / "00000" / "img00000002.png"
    Image.new("RGB", (32, 32), (1, 2, 3)).save(victim)
    shutil.copystat(tmp_path / "out" / "00000" / "img00000003.png", victim)  # old, but of another size
    assert (check_not_used(tmp_path / "out", caplog, "made of other images")[2, 0] == 1).all()
    victim.unlink()
    caplog.clear()
    check_not_used(tmp_path / "out", caplog, "made of 7 images, and there are 6")


def test_an_image_newer_than_the_pyramid(noisy, tmp_path, caplog):
    """Of the same size as before: in a folder only the time tells. A copy that loses the times needs a touch."""
    prepare(noisy, tmp_path / "out", resolution=32, pyramid=True)
    later = time.time() + 5
    os.utime(tmp_path / "out" / "00000" / "img00000004.png", (later, later))
    check_not_used(tmp_path / "out", caplog, "img00000004.png is newer")
    os.utime(tmp_path / "out" / INDEX, (later, later))
    assert open_dataset(tmp_path / "out", resolution=8).read_resolution == 8


def rezip(path, compression, change=lambda name, data: data):
    """The same files in another zip."""
    with zipfile.ZipFile(path) as before:
        content = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(path, "w", compression) as after:
        for name, data in content.items():
            after.writestr(name, change(name, data))


def test_a_zip_with_one_other_image(noisy, tmp_path, caplog):
    prepare(noisy, tmp_path / "out.zip", resolution=32, pyramid=True)
    rezip(tmp_path / "out.zip", zipfile.ZIP_STORED)
    assert open_dataset(tmp_path / "out.zip", resolution=8).read_resolution == 8
    flat = encode_png(Image.new("RGB", (32, 32), (1, 2, 3)))

    def swap(name, data):  # padded: of the same size
        return flat + bytes(len(data) - len(flat)) if name.endswith("img00000002.png") else data

    rezip(tmp_path / "out.zip", zipfile.ZIP_STORED, swap)
    assert (check_not_used(tmp_path / "out.zip", caplog, "made of other images")[2, 0] == 1).all()


def test_compressed_zip_is_decoded(noisy, tmp_path, caplog):
    prepare(noisy, tmp_path / "out.zip", resolution=32, pyramid=True)
    rezip(tmp_path / "out.zip", zipfile.ZIP_DEFLATED)
    check_not_used(tmp_path / "out.zip", caplog, "is compressed in this zip")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"format": 1}', b"\xff", b'{"format": 99, "decode": 1}'])
def test_index_that_is_something_else(content, noisy, tmp_path, caplog):
    prepare(noisy, tmp_path / "out", resolution=32, pyramid=True)
    (tmp_path / "out" / INDEX).write_bytes(content)
    check_not_used(tmp_path / "out", caplog, "isn't what")


def test_damaged_levels(noisy, tmp_path, caplog):
    prepare(noisy, tmp_path / "out", resolution=32, pyramid=True)
    path = tmp_path / "out" / "pyramid" / "8.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    check_not_used(tmp_path / "out", caplog, "cut off")
    caplog.clear()
    np.save(path, np.zeros((7, 8, 8, 3), np.uint8))
    check_not_used(tmp_path / "out", caplog, "isn't an array of [7, 3, 8, 8]")
    path.write_bytes(data)
    dataset = open_dataset(tmp_path / "out", resolution=8)
    path.unlink()
    with pytest.raises(InputError, match=r"img00000001\.png.*can't be read"):
        dataset.image(1)
    caplog.clear()
    assert open_dataset(tmp_path / "out", resolution=8).read_resolution == 32  # that level alone is missing
    assert not caplog.messages


# --- writing


def test_no_lower_level(noisy, tmp_path):
    with pytest.raises(InputError, match="--pyramid: images of 4x4"):
        prepare(noisy, tmp_path / "out.zip", resolution=4, pyramid=True)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", KINDS)
def test_failure_leaves_nothing(name, noisy, tmp_path):
    data = (noisy / "6.png").read_bytes()
    (noisy / "6.png").write_bytes(data[:60] + b"\xff" * 8 + data[68:])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"6\.png"):
        prepare(noisy, tmp_path / name, resolution=32, pyramid=True)
    assert sorted(tmp_path.iterdir()) == before
    report = prepare(noisy, tmp_path / name, resolution=32, pyramid=True, skip_bad=True)
    assert "6 images at 32x32; labels of 3; pyramid of 4 to 16 px" in report.summary()
    assert len(open_dataset(tmp_path / name, resolution=4).stored_array) == 6


def test_levels_for_some_images_only(tmp_path):
    png = encode_png(Image.new("RGB", (8, 8)))

    def write():
        with dataset_writer(tmp_path / "out.zip") as writer:
            writer.add(png, levels={4: np.zeros((3, 4, 4), np.uint8)})
            writer.add(png)

    with pytest.raises(ValueError, match="1 pyramids for 2 images"):
        write()
    assert not list(tmp_path.iterdir())
