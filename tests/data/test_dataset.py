"""Folders and zips as datasets: what is read, what is converted, and what each bad input gets."""

import json
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from gankern.data import open_dataset
from gankern.errors import InputError


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def write_labels(folder, labels):
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_folder_and_zip_give_the_same_images(folder, tmp_path):
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_bytes(b"")
    from_folder, from_zip = open_dataset(folder), open_dataset(zipped(folder, tmp_path / "images.zip"))
    assert from_folder.names == from_zip.names == [n for n in names(folder) if not n.startswith(".")]
    assert (len(from_folder), from_folder.resolution, from_folder.channels, from_folder.label_dim) == (12, 16, 3, 0)
    for i in range(12):
        with Image.open(folder / from_folder.names[i]) as image:
            expected = np.asarray(image).transpose(2, 0, 1)
        assert np.array_equal(from_folder.image(i), expected)
        assert np.array_equal(from_zip.image(i), expected)


def test_pickled_dataset_reads_on(folder, tmp_path):
    dataset = open_dataset(zipped(folder, tmp_path / "images.zip"))
    dataset.image(0)
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again.image(5), dataset.image(5))


def test_lower_resolution_averages(folder):
    full, half = open_dataset(folder), open_dataset(folder, resolution=8)
    blocks = full.image(3).reshape(3, 8, 2, 8, 2).mean((2, 4))
    assert np.abs(half.image(3) - blocks).max() <= 0.51
    assert half.conversions == {"reduced": 12}


def test_max_images_spreads_over_the_names(folder):
    assert open_dataset(folder, max_images=4).names == [names(folder)[i] for i in (0, 3, 6, 9)]
    with pytest.raises(InputError, match="--max-images"):
        open_dataset(folder, max_images=0)


def test_identity_follows_files_and_options(folder, tmp_path, picture):
    same, archive = open_dataset(folder).identity, zipped(folder, tmp_path / "a.zip")
    assert open_dataset(folder).identity == same
    (tmp_path / "moved").mkdir()
    moved = archive.rename(tmp_path / "moved" / "b.zip")
    assert open_dataset(zipped(folder, tmp_path / "a.zip")).identity == open_dataset(moved).identity
    others = [open_dataset(folder, resolution=8), open_dataset(folder, max_images=6)]
    picture(99).save(folder / "00000" / "img00000000.png")
    others.append(open_dataset(folder))
    assert len({same, *(other.identity for other in others)}) == 4


# --- conversions


def as_16_bit(image):
    grey = np.asarray(image.convert("L")).astype(np.uint16)
    return Image.fromarray(grey * 257)


CONVERSIONS = {
    "grey": (lambda im: im.convert("L"), "png"),
    "palette": (lambda im: im.convert("P"), "png"),
    "CMYK": (lambda im: im.convert("CMYK"), "jpg"),
    "16-bit": (as_16_bit, "png"),
}


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_conversion_is_made_and_counted(kind, folder, picture):
    convert, suffix = CONVERSIONS[kind]
    original = picture(50)
    odd = convert(original)
    odd.save(folder / f"odd.{suffix}", quality=98)
    dataset = open_dataset(folder)
    assert dataset.conversions[kind] == 1
    expected = np.asarray((original.convert("L") if kind == "16-bit" else odd).convert("RGB"))
    error = np.abs(dataset.image(12).transpose(1, 2, 0).astype(int) - expected)
    assert error.max() <= (6 if suffix == "jpg" else 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette"])
def test_transparency_is_laid_on_white(mode, folder):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:8, :, 3] = 255  # black above, nothing below
    image = Image.fromarray(pixels)
    if mode == "palette":
        image = Image.fromarray((pixels[..., 3] > 0).astype(np.uint8)).convert("P")
        image.putpalette([9, 9, 9, 0, 0, 0])
        image.info["transparency"] = 0
    elif mode == "LA":
        image = image.convert("LA")
    image.save(folder / "odd.png")
    dataset = open_dataset(folder)
    assert dataset.conversions["transparent"] == 1
    assert (dataset.image(12)[:, :8] == 0).all()
    assert (dataset.image(12)[:, 8:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_is_applied(orientation, suffix, tmp_path):
    corner = np.zeros((16, 16), np.uint8)
    corner[:4, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    save = {"webp": {"lossless": True}, "jpg": {"quality": 100}}.get(suffix, {})
    Image.fromarray(corner).convert("RGB").save(tmp_path / f"a.{suffix}", exif=exif, **save)
    dataset = open_dataset(tmp_path)
    upright = [None, lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, np.transpose]
    upright += [lambda a: np.rot90(a, -1), lambda a: np.rot90(a, 2).T, np.rot90]
    assert np.array_equal(dataset.image(0)[0] > 127, upright[orientation](corner) > 127)
    assert dataset.conversions == ({} if orientation == 1 else {"rotated": 1})


# --- bad input


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match="no images found"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        open_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../a.png", "a/../../b.png", "/etc/a.png", "..\\a.png", "C:/a.png"])
def test_zip_with_unsafe_name(name, folder, tmp_path):
    path = zipped(folder, tmp_path / "images.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(InputError, match="refused"):
        open_dataset(path)


def test_truncated_zip(folder, tmp_path):
    path = zipped(folder, tmp_path / "images.zip")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"images\.zip: not a readable zip"):
        open_dataset(path)


def test_size_errors_name_the_file(folder, picture):
    picture(0, 24, 16).save(folder / "odd.png")
    with pytest.raises(InputError, match=r"odd\.png is 24x16.*--transform center-crop"):
        open_dataset(folder)
    picture(0, 32, 32).save(folder / "odd.png")
    with pytest.raises(InputError, match=r"odd\.png is 32x32 but 00000/img00000000\.png is 16x16.*data prepare"):
        open_dataset(folder)


def test_resolution_errors(folder, tmp_path, picture):
    with pytest.raises(InputError, match="smaller than resolution 32"):
        open_dataset(folder, resolution=32)
    with pytest.raises(InputError, match="resolution 12: expected a power of two"):
        open_dataset(folder, resolution=12)
    (tmp_path / "twelve").mkdir()
    picture(0, 12, 12).save(tmp_path / "twelve" / "a.png")
    with pytest.raises(InputError, match=r"a\.png is 12x12, expected a power of two"):
        open_dataset(tmp_path / "twelve")


def spoil(folder, picture):
    """One bad image of each kind that the headers or the file's end tell."""
    frames = [picture(i) for i in range(3)]
    for name in ("anim.gif", "anim.webp", "anim.png"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    for name in ("cut.png", "cut.jpg"):
        noisy = Image.fromarray(np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8))
        noisy.save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    return {"anim.gif", "anim.webp", "anim.png", "cut.png", "cut.jpg", "empty.png", "text.jpg"}


def test_bad_images_are_all_listed(folder, picture):
    bad = spoil(folder, picture)
    with pytest.raises(InputError) as caught:
        open_dataset(folder)
    message = str(caught.value)
    assert "7 of 19 images" in message
    assert "--skip-bad" in message
    assert "\n" not in message
    assert all(name in message for name in bad)
    assert message.count("animated") == 3


def test_skip_bad_goes_on_without_them(folder, picture):
    bad = spoil(folder, picture)
    damage_pixels(folder / "00000" / "img00000002.png")
    dataset = open_dataset(folder, skip_bad=True)
    assert {name for name, _ in dataset.skipped} == bad | {"00000/img00000002.png"}
    assert len(dataset) == 11
    assert "skipped 8 bad" in dataset.summary()


def damage_pixels(path):
    data = bytearray(path.read_bytes())
    middle = data.index(b"IDAT") + 20
    data[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(data)


def test_long_lists_are_cut(tmp_path):
    for i in range(25):
        (tmp_path / f"{i:02d}.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"25 of 25 images.*09\.png.*and 15 more"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="every image is bad"):
        open_dataset(tmp_path, skip_bad=True)


def test_damage_found_late_names_the_file(folder):
    damage_pixels(folder / "00000" / "img00000002.png")
    dataset = open_dataset(folder)
    with pytest.raises(InputError, match=r"img00000002\.png"):
        dataset.image(2)
    (folder / "00000" / "img00000003.png").unlink()
    with pytest.raises(InputError, match=r"img00000003\.png.*can't be read"):
        dataset.image(3)


# --- labels


def test_class_labels(folder):
    write_labels(folder, [[name, i % 5] for i, name in enumerate(names(folder))])
    dataset = open_dataset(folder, use_labels=True)
    assert dataset.label_dim == 5
    assert np.array_equal(dataset.labels, np.eye(5, dtype=np.float32)[np.arange(12) % 5])
    assert np.array_equal(dataset.label(7), np.eye(5)[2])
    assert open_dataset(folder, use_labels=True, max_images=2).label_dim == 5
    assert open_dataset(folder).labels is None


def test_vector_labels(folder, tmp_path):
    write_labels(folder, [[name, [i, 0.5]] for i, name in enumerate(names(folder))])
    dataset = open_dataset(zipped(folder, tmp_path / "images.zip"), use_labels=True)
    assert dataset.labels.dtype == np.float32
    assert dataset.labels[3].tolist() == [3, 0.5]


BAD_LABELS = {
    "missing": (lambda n: [[name, 0] for name in n[1:]], "no label for 1 of 12"),
    "unknown": (lambda n: [[name, 0] for name in [*n, "x.png"]], "x.png"),
    "ragged": (lambda n: [[name, [0.0] * (1 + i // 11)] for i, name in enumerate(n)], "first 1 numbers, but .* has 2"),
    "mixed": (lambda n: [[name, [0.0] if i else 1] for i, name in enumerate(n)], "first a class number"),
    "text": (lambda n: [[name, "cat"] for name in n], "'cat'"),
    "fraction": (lambda n: [[name, 1.5] for name in n], "label 1.5"),
    "truth": (lambda n: [[name, True] for name in n], "label True"),
    "negative": (lambda n: [[name, -1] for name in n], "class -1"),
    "no pairs": (lambda n: n, "list of"),
    "null": (lambda n: None, "has no labels"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels(case, folder):
    make, message = BAD_LABELS[case]
    write_labels(folder, make(names(folder)))
    with pytest.raises(InputError, match=message):
        open_dataset(folder, use_labels=True)


@pytest.mark.parametrize("content", ["{", "[1]", '{"labels": 3}'])
def test_labels_file_that_is_something_else(content, folder):
    (folder / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_dataset(folder, use_labels=True)
    assert len(open_dataset(folder)) == 12
