"""Builds emoji64.zip: every emoji of one code point in the Noto Color Emoji font, as a 64x64 RGB picture on white.

    python examples/build_emoji.py /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf examples/emoji64.zip

Needs fontTools (`pip install fonttools`) beside gankern, and the font (Debian and Ubuntu: fonts-noto-color-emoji).
"""

import argparse

from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from gankern.data.writer import dataset_writer, encode_png

STRIKE = 109  # the one size, in pixels, that the font has bitmaps for
CANVAS = 200  # a glyph is at most 128 high and 136 wide
RESOLUTION = 64
GLYPH_SIDE = 60  # of the glyph's longer side within the picture

NOT_EMOJI = [
    range(0x00, 0xA9),  # digits, # and *: bases of keycap sequences, drawn as plain text
    range(0x200D, 0x200E),  # joiner
    range(0x20E3, 0x20E4),  # an empty keycap
    range(0x1F1E6, 0x1F200),  # letters that only mean something in pairs, as flags
    range(0x1F3FB, 0x1F400),  # skin-tone swatches
    range(0x1F9B0, 0x1F9B4),  # hair components in dashed frames
    range(0xFE000, 0xFE900),  # private-use
    range(0xE0000, 0xE0080),  # tags, blank
]


def emoji_code_points(font_path: str) -> list[int]:
    """The code points that have a picture of their own."""
    return [
        code for code in sorted(TTFont(font_path).getBestCmap()) if not any(code in skipped for skipped in NOT_EMOJI)
    ]


def render(font: ImageFont.FreeTypeFont, code: int) -> Image.Image | None:
    """The glyph centred on white; None if it is blank."""
    canvas = Image.new("RGBA", (CANVAS, CANVAS))
    ImageDraw.Draw(canvas).text((30, 30), chr(code), font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        return None
    glyph = canvas.crop(box)
    scale = GLYPH_SIDE / max(glyph.size)
    size = tuple(max(1, round(side * scale)) for side in glyph.size)
    glyph = glyph.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")  # premultiplied: clean edges
    picture = Image.new("RGBA", (RESOLUTION, RESOLUTION), "white")
    picture.alpha_composite(glyph, tuple((RESOLUTION - side) // 2 for side in size))
    return picture.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("font", help="NotoColorEmoji.ttf")
    parser.add_argument("out", help="emoji64.zip, or a folder")
    args = parser.parse_args()
    font = ImageFont.truetype(args.font, STRIKE, layout_engine=ImageFont.Layout.BASIC)
    with dataset_writer(args.out) as writer:
        for code in emoji_code_points(args.font):
            picture = render(font, code)
            if picture is not None:
                writer.add(encode_png(picture))
    print(f"{args.out}: {writer.count} images")


if __name__ == "__main__":
    main()
