"""Frames to files: GIF, WebP, MP4 through ffmpeg, or a folder of PNGs; whole or not at all, frame by frame."""

import contextlib
import itertools
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from gankern.data.parallel import ordered_map
from gankern.errors import InputError
from gankern.files import replacing
from gankern.training.pictures import to_image

MAX_FPS = {
    ".gif": 50,
    ".webp": 1000,
}  # delays are whole hundredths and thousandths of a second; GIF viewers slow down 1
MAX_SIDE = {".gif": 65535, ".webp": 16383}  # of a frame, in pixels
DEFAULT_FPS = 30
_MAX_RIFF = 2**32 - 10

Frames = Iterator[np.ndarray]
"""uint8 [H, W, C] of one size, with 1 or 3 channels."""


def check_animation(out: Path, fps: int | None, height: int, width: int) -> None:
    """Raises InputError for a speed (None: the default) or frames that the format doesn't have, and where `out` is or
    has what mustn't be replaced, or can't be written on this machine."""
    kind = _kind(out)
    if fps is not None and not kind:
        raise InputError(f"--fps {fps}: goes with FILE.gif, FILE.webp or FILE.mp4, not with a folder of PNGs")
    if kind in MAX_FPS and (fps or DEFAULT_FPS) > MAX_FPS[kind]:
        raise InputError(f"--fps {fps}: expected at most {MAX_FPS[kind]} in a {kind} file")
    if kind in MAX_SIDE and max(height, width) > MAX_SIDE[kind]:
        most = f"expected at most {MAX_SIDE[kind]} px a side in a {kind} file"
        raise InputError(f"--grid: frames of {width}x{height} px, {most}, or a folder of PNGs")
    if kind and out.is_dir():
        raise InputError(f"--out {out}: is a folder, expected a file or a folder without {kind} in its name")
    if kind == ".mp4" and shutil.which("ffmpeg") is None:
        raise InputError(f"--out {out}: needs ffmpeg on PATH; without it, FILE.gif, FILE.webp or a folder of PNGs")
    if not kind and out.exists():
        if not out.is_dir():
            raise InputError(f"--out {out}: is a file, expected FILE.gif, FILE.webp, FILE.mp4 or a folder")
        if other := next((p.name for p in out.iterdir() if not re.fullmatch(r"frame\d+\.png", p.name)), None):
            raise InputError(f"--out {out}: holds {other}, expected a new folder or one of frames, which is replaced")


def save_animation(out: Path, frames: Frames, count: int, fps: int, repeated: bool) -> None:
    """Writes so many frames in the format that the name ends in, else a folder of frame00000.png and so on.

    `repeated`: GIF and WebP play for ever, else once. WebP is lossless. Of GIFs Pillow keeps the frames, a byte a
    pixel, until they are written; else memory doesn't grow with their number.
    """
    out = out.resolve()  # whose name isn't ".", which nothing can stand beside
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        {"": _save_folder, ".gif": _save_gif, ".webp": _save_webp, ".mp4": _save_mp4}[_kind(out)](
            temporary, frames, count, fps, repeated
        )


def _kind(out: Path) -> str:
    return out.suffix.lower() if out.suffix.lower() in (".gif", ".webp", ".mp4") else ""


def _durations(count: int, fps: int, unit: int) -> list[int]:
    """In 1/unit of a second, whole, without drift."""
    return [round((i + 1) * unit / fps) - round(i * unit / fps) for i in range(count)]


def _save_folder(folder: Path, frames: Frames, *_) -> None:
    folder.mkdir()

    def write(item: tuple[int, np.ndarray]) -> None:
        to_image(item[1]).save(folder / f"frame{item[0]:05d}.png")

    for _ in ordered_map(write, enumerate(frames)):
        pass


def _save_gif(path: Path, frames: Frames, count: int, fps: int, repeated: bool) -> None:
    images = (to_image(frame) for frame in frames)
    durations = [10 * hundredths for hundredths in _durations(count, fps, 100)]
    forever = {"loop": 0} if repeated else {}
    next(images).save(path, format="GIF", save_all=True, append_images=images, duration=durations, **forever)


def _save_webp(path: Path, frames: Frames, count: int, fps: int, repeated: bool) -> None:
    """The container of developers.google.com/speed/webp/docs/riff_container; Pillow, which encodes the frames, would
    keep them all."""
    first = next(frames)
    size = b"".join(_uint24(side - 1) for side in (first.shape[1], first.shape[0]))
    animated, no_blending = 0x02, 0x02
    with path.open("wb") as file:
        file.write(bytes(12))
        file.write(_chunk(b"VP8X", bytes([animated, 0, 0, 0]) + size))
        file.write(_chunk(b"ANIM", struct.pack("<IH", 0xFF000000, 0 if repeated else 1)))
        streams = ordered_map(_vp8l, itertools.chain([first], frames))
        for stream, duration in zip(streams, _durations(count, fps, 1000), strict=True):
            header = bytes(6) + size + _uint24(duration) + bytes([no_blending])
            file.write(_chunk(b"ANMF", header + _chunk(b"VP8L", stream)))
            if file.tell() > _MAX_RIFF:
                raise InputError("--out: more than 4 GiB, the most that a WebP can be; expected FILE.mp4 or a folder")
        length = file.tell() - 8
        file.seek(0)
        file.write(b"RIFF" + struct.pack("<I", length) + b"WEBP")


def _vp8l(frame: np.ndarray) -> bytes:
    """The lossless bit stream within Pillow's file of one picture."""
    buffer = BytesIO()
    to_image(frame).save(buffer, format="WEBP", lossless=True)
    data = buffer.getvalue()
    at = data.index(b"VP8L", 12) + 8
    return data[at : at + int.from_bytes(data[at - 4 : at], "little")]


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def _uint24(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _save_mp4(path: Path, frames: Frames, count: int, fps: int, _) -> None:
    first = next(frames)
    height, width, channels = first.shape
    command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "gray" if channels == 1 else "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0", "-pix_fmt", "yuv420p"]
    command += ["-movflags", "+faststart", "-f", "mp4", str(path)]
    with tempfile.TemporaryFile() as said:  # its own session: Ctrl-C is ours to answer
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said, stdout=said, start_new_session=True)
        try:
            for frame in itertools.chain([first], frames):
                process.stdin.write(frame.tobytes())
            process.stdin.close()
        except BrokenPipeError:  # it has ended, and says why
            pass
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            code = process.wait()
        if code:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise InputError(f"--out: ffmpeg ended with code {code}: {lines[-1] if lines else 'silently'}")
