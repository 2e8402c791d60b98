"""Animations as other programs read them: frames, timing, and nothing left where writing fails."""

import itertools
import os
import sys

import numpy as np
import pytest
from PIL import Image

from gankern.errors import InputError
from gankern.training.animation import check_animation, save_animation


@pytest.fixture
def frames():
    """frames(count, channels=3, size=(8, 16)) -> smooth frames, each different."""

    def make(count: int, channels: int = 3, size: tuple[int, int] = (8, 16)) -> list[np.ndarray]:
        y, x = np.mgrid[: size[0], : size[1]]
        base = np.stack([8 * x, 16 * y, 4 * (x + y)], 2)[:, :, :channels]
        return [((base + 40 * k) % 256).astype(np.uint8) for k in range(count)]

    return make


def read(path) -> tuple[list[np.ndarray], list[int], int | None]:
    """Frames, their durations in ms, and how often it plays."""
    with Image.open(path) as image:
        found, durations = [], []
        for k in range(image.n_frames):
            image.seek(k)
            found.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
        return found, durations, image.info.get("loop")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 7])
def test_webp_is_lossless(count, channels, frames, tmp_path):
    made = frames(count, channels)
    save_animation(tmp_path / "a.webp", iter(made), count, 30, True)
    found, _, loop = read(tmp_path / "a.webp")
    assert len(found) == count
    assert loop == 0
    for a, b in zip(found, made, strict=True):
        assert np.array_equal(a, np.broadcast_to(b, a.shape))


def test_odd_sizes_in_webp(tmp_path):
    """Chunks of an odd length are padded."""
    made = [np.random.RandomState(k).randint(0, 256, (5 + 2 * k, 9, 3)).astype(np.uint8) for k in range(6)]
    for k, frame in enumerate(made):
        save_animation(tmp_path / f"{k}.webp", iter([frame, frame[::-1], frame]), 3, 10, False)
        found, _, loop = read(tmp_path / f"{k}.webp")
        assert np.array_equal(found[0], frame)
        assert np.array_equal(found[1], frame[::-1])
        assert loop == 1
        data = (tmp_path / f"{k}.webp").read_bytes()
        assert int.from_bytes(data[4:8], "little") == len(data) - 8


def test_gif(frames, tmp_path):
    """Each frame has up to 256 colours of its own; these have 128, so none is lost. Of 4096 the nearest stay."""
    made = frames(5)
    save_animation(tmp_path / "a.gif", iter(made), 5, 20, True)
    found, durations, loop = read(tmp_path / "a.gif")
    assert (len(found), durations, loop) == (5, [50] * 5, 0)
    for a, b in zip(found, made, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 2
    save_animation(tmp_path / "a.gif", iter(made), 5, 20, False)
    assert read(tmp_path / "a.gif")[2] is None
    y, x = np.mgrid[:64, :64]
    many = [np.stack([4 * x, 4 * y, (2 * x + 2 * y + 9 * k) % 256], 2).astype(np.uint8) for k in range(3)]
    save_animation(tmp_path / "a.gif", iter(many), 3, 20, True)
    for a, b in zip(read(tmp_path / "a.gif")[0], many, strict=True):
        assert np.abs(a.astype(int) - b).mean() < 5


@pytest.mark.parametrize(("name", "unit"), [("a.gif", 10), ("a.webp", 1)])
def test_no_drift(name, unit, frames, tmp_path):
    """31 frames at 30 a second last 1033 ms to the unit, though no single one lasts 33.3."""
    save_animation(tmp_path / name, iter(frames(31)), 31, 30, True)
    _, durations, _ = read(tmp_path / name)
    assert len(set(durations)) == 2
    assert sum(durations) == pytest.approx(31000 / 30, abs=unit)


def test_folder(frames, tmp_path):
    """Bit for bit, and another animation's frames don't stay behind."""
    out = tmp_path / "new" / "out"
    for count in (5, 3):
        made = frames(count)
        check_animation(out, None, 8, 16)
        save_animation(out, iter(made), count, 30, True)
        assert [p.name for p in sorted(out.iterdir())] == [f"frame{k:05d}.png" for k in range(count)]
        for k, frame in enumerate(made):
            assert np.array_equal(np.asarray(Image.open(out / f"frame{k:05d}.png")), frame)
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_folder_of_here(frames, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    check_animation(type(tmp_path)("."), None, 8, 16)
    save_animation(type(tmp_path)("."), iter(frames(2)), 2, 30, True)
    assert len(list((tmp_path / "here").iterdir())) == 2


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.mp4", "frames"])
def test_whole_or_not_at_all(name, frames, tmp_path, ffmpeg):
    """Ctrl-C in the middle: what was there stays, and nothing else."""
    save_animation(tmp_path / name, iter(frames(2)), 2, 30, True)

    def content():
        return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    before = content()

    def cut():
        yield from frames(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_animation(tmp_path / name, cut(), 9, 30, True)
    assert content() == before


@pytest.mark.parametrize("name", ["a.webp", "a.mp4", "frames"])
def test_frames_stream(name, frames, tmp_path, ffmpeg):
    """Of 300 frames never more are alive than wait for the encoders."""
    alive = most = 0

    class Frame(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= self.base is not None

    def made():
        nonlocal alive, most
        for frame in itertools.islice(itertools.cycle(frames(7)), 300):
            alive += 1
            most = max(most, alive)
            yield frame.view(Frame)

    save_animation(tmp_path / name, made(), 300, 30, True)
    assert most <= 4 * len(os.sched_getaffinity(0)) + 3


FFMPEG = f"""#!{sys.executable}
import sys
data = sys.stdin.buffer.read({{limit}})
if {{fails}}:
    sys.stderr.write("first line\\nUnknown encoder\\n")
    sys.exit(3)
open(sys.argv[-1], "wb").write(" ".join(sys.argv[1:-1]).encode() + b"|" + data)
"""


@pytest.fixture
def ffmpeg(tmp_path_factory, monkeypatch):
    """A stand-in on PATH that writes down its arguments and its input; ffmpeg(fails=True, limit=10) makes it stop."""
    folder = tmp_path_factory.mktemp("bin")

    def make(fails: bool = False, limit: int = -1) -> None:
        (folder / "ffmpeg").write_text(FFMPEG.format(fails=fails, limit=limit))
        (folder / "ffmpeg").chmod(0o755)

    make()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return make


@pytest.mark.parametrize(("channels", "format_"), [(1, "gray"), (3, "rgb24")])
def test_mp4_through_ffmpeg(channels, format_, frames, tmp_path, ffmpeg):
    made = frames(4, channels)
    save_animation(tmp_path / "a.mp4", iter(made), 4, 25, True)
    arguments, _, data = (tmp_path / "a.mp4").read_bytes().partition(b"|")
    for given in (f"-f rawvideo -pix_fmt {format_} -s 16x8 -r 25 -i pipe:0", "-pix_fmt yuv420p", "-f mp4"):
        assert given in arguments.decode()
    assert data == b"".join(frame.tobytes() for frame in made)


def test_ffmpeg_fails(frames, tmp_path, ffmpeg):
    """At once, with more to write than a pipe holds, and at the end."""
    for limit in (10, -1):
        ffmpeg(fails=True, limit=limit)
        with pytest.raises(InputError, match="ffmpeg ended with code 3: Unknown encoder"):
            save_animation(tmp_path / "a.mp4", iter(frames(40, size=(64, 64))), 40, 25, True)
        assert not list(tmp_path.iterdir())


def test_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"needs ffmpeg on PATH; without it, FILE.gif"):
        check_animation(tmp_path / "a.mp4", 30, 8, 16)
    with pytest.raises(InputError, match="--fps 51: expected at most 50"):
        check_animation(tmp_path / "a.GIF", 51, 8, 16)
    with pytest.raises(InputError, match="--fps 30: goes with FILE"):
        check_animation(tmp_path / "new", 30, 8, 16)
    (tmp_path / "b.gif").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        check_animation(tmp_path / "b.gif", 30, 8, 16)
    (tmp_path / "b.gif" / "frame00000.png").touch()
    (tmp_path / "b.gif" / "diary.txt").touch()
    with pytest.raises(InputError, match="is a folder"):
        check_animation(tmp_path / "b.gif", 30, 8, 16)
    (tmp_path / "b.gif").rename(tmp_path / "b")
    with pytest.raises(InputError, match=r"holds diary.txt"):
        check_animation(tmp_path / "b", None, 8, 16)
    with pytest.raises(InputError, match="is a file"):
        check_animation(tmp_path / "b" / "diary.txt", None, 8, 16)


@pytest.mark.parametrize(("name", "most"), [("a.gif", 65535), ("a.webp", 16383)])
def test_largest_frame(name, most, tmp_path):
    """It can be written and read; a pixel more is refused beforehand, and couldn't be."""
    check_animation(tmp_path / name, None, 1, most)
    frame = np.zeros((1, most, 3), np.uint8)
    save_animation(tmp_path / name, iter([frame, frame + 255]), 2, 30, True)
    assert read(tmp_path / name)[0][1].shape == (1, most, 3)
    for size in ((1, most + 1), (most + 1, 1)):
        with pytest.raises(InputError, match=f"--grid: frames of {size[1]}x{size[0]} px, expected at most {most} px a"):
            check_animation(tmp_path / name, None, *size)
    larger = np.zeros((1, most + 1, 3), np.uint8)
    with pytest.raises((OverflowError, ValueError)):
        save_animation(tmp_path / name, iter([larger, larger]), 2, 30, True)
    check_animation(tmp_path / "folder", None, 1, most + 1)
