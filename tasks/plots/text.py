"""Text in pictures. Categories and file names are the user's: any text must be drawn as it is, or as well as possible.

ASCII is drawn in Pillow's own font, the rest in DejaVu Sans (part of matplotlib) or Noto Sans CJK, character by
character. Characters that no font has are drawn as the replacement character.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

from tasks.common.text import REPLACEMENT, one_line

_LONGEST = 40  # characters of a label
FAMILIES = ("DejaVu Sans", "Noto Sans CJK JP")

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def drawable(text: str) -> str:
    """The text as one line of characters that some font has."""
    return "".join(char if char.isascii() or _family(char) else REPLACEMENT for char in one_line(text))


def label(text: str) -> str:
    """The text as a label for matplotlib, shortened. Without the escape, text between two dollars is a formula.

    Pass labels to `legend` explicitly: it leaves out artists whose own label begins with an underscore.
    """
    line = drawable(text)
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
    return line.replace("$", r"\$")


def use_fonts() -> None:
    """Let matplotlib draw all characters of `drawable` text."""
    from matplotlib import font_manager, rcParams

    if FAMILIES[1] not in font_manager.fontManager.get_font_names():
        font_manager.fontManager.addfont(str(_path(FAMILIES[1])))
    rcParams["font.family"] = list(FAMILIES)


def draw_centred(
    draw: ImageDraw.ImageDraw, x: float, y: float, text: str, width: float, size: int, fill: tuple[int, int, int]
) -> None:
    """Draw one line of text centred at `x` below `y`, shortened to `width` pixels."""
    line = drawable(text)
    fits = bisect_right(range(1, len(line) + 1), width, key=lambda n: _length(draw, _runs(line[:n], size)))
    runs = _runs(line[:fits], size)
    if len(runs) == 1:
        draw.text((x, y), runs[0][0], fill=fill, font=runs[0][1], anchor="ma")
        return
    left = x - _length(draw, runs) / 2
    for part, font in runs:
        draw.text((left, y + size), part, fill=fill, font=font, anchor="ls")  # on a common baseline
        left += draw.textlength(part, font=font)


def _length(draw: ImageDraw.ImageDraw, runs: list[tuple[str, _Font]]) -> float:
    return sum(draw.textlength(part, font=font) for part, font in runs)


def _runs(text: str, size: int) -> list[tuple[str, _Font]]:
    """The text in pieces of one font each."""
    pieces = groupby(text, lambda char: None if char.isascii() else _family(char))
    return [("".join(chars), _font(family, size)) for family, chars in pieces]


@cache
def _font(family: str | None, size: int) -> _Font:
    return ImageFont.load_default(size=size) if family is None else ImageFont.truetype(_path(family), size)


def _family(char: str) -> str | None:
    """The first of FAMILIES that has a character; None if no font has it."""
    return next((family for family in FAMILIES if ord(char) in _characters(family)), None)


@cache
def _characters(family: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_path(family))).get_charmap())


@cache
def _path(family: str) -> Path:
    if family == FAMILIES[1]:
        return Path(str(files("noto_cjk_sans_jp_regular") / "NotoSansCJKjp-Regular.otf"))
    from matplotlib import font_manager

    return Path(font_manager.findfont(family, fallback_to_default=False))
