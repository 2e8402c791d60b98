"""One image file -> upright 8-bit RGB, and what its header alone tells. Knows nothing of folders and datasets."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
DECODE_VERSION = 1  # raise it when the same file begins to decode to other pixels: caches are keyed by it

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """An image that can't be used; the message is the reason, the caller knows the file."""


@dataclass(frozen=True)
class Header:
    """Size in pixels as it will be seen (after EXIF rotation), and the conversions that decoding makes."""

    width: int
    height: int
    conversions: tuple[str, ...]


def read_header(file: BinaryIO) -> Header:
    """Reads no pixels. Raises BadImage for what is no image, or an animation."""
    with _pillow_errors(), Image.open(file, formats=FORMATS) as image:
        _refuse_animation(image)
        orientation = _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        return Header(width, height, tuple(_conversions(image, orientation)))


def decode(data: bytes) -> Image.Image:
    """An upright RGB image: 16 bits scaled to 8, transparency laid on white. Raises BadImage."""
    with _pillow_errors(), Image.open(BytesIO(data), formats=FORMATS) as image:
        _refuse_animation(image)
        image.load()
        orientation = _orientation(image)
        rgb = _to_rgb(image)
        return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def looks_whole(tail: bytes, name: str) -> bool:
    """Whether a PNG or JPEG file ends as it should; True for other formats, whose headers tell."""
    name = name.lower()
    if name.endswith(".png"):
        return b"IEND" in tail
    if name.endswith((".jpg", ".jpeg", ".jfif")):
        return b"\xff\xd9" in tail
    return True


@contextmanager
def _pillow_errors() -> Iterator[None]:
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImage("not a PNG, JPEG, WebP or GIF image") from None
    except Exception as error:  # on corrupt data Pillow raises almost anything: SyntaxError, struct.error, KeyError ...
        raise BadImage(str(error).partition("\n")[0] or type(error).__name__) from error


def _refuse_animation(image: Image.Image) -> None:
    # MPO is a still JPEG with a preview or a second eye's view behind it.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise BadImage("animated")


def _orientation(image: Image.Image) -> int:
    if not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return 1  # asking a PNG without EXIF for it would decode the pixels
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):
        return 1  # a broken EXIF block doesn't make the picture bad


def _is_16_bit(image: Image.Image) -> bool:
    # 16-bit RGB and RGBA are opened by Pillow as their high bytes; only the tile's raw mode shows it.
    return image.mode.startswith("I") or (bool(image.tile) and "16" in str(image.tile[0][3]))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _conversions(image: Image.Image, orientation: int) -> Iterator[str]:
    if _is_16_bit(image):
        yield "16-bit"
    if image.mode[0] in "1LI":
        yield "grey"
    if image.mode[0] == "P":
        yield "palette"
    if image.mode == "CMYK":
        yield "CMYK"
    if _has_alpha(image):
        yield "transparent"
    if orientation in _UPRIGHT:
        yield "rotated"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey 16-bit; Pillow's own conversion would clip at 255
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if _has_alpha(image):
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
