"""Any text that a user gives to a folder or a file can be drawn, and is drawn as it is."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tasks.plots import drawing, interval_plot, text
from tasks.plots.interval_plot import Row

NAMES = (
    "new\nline", "tab\there", "Ba$$in", "$_$", r"back\slash $x$", "_misc", "日本語のヨガ", "한국어", "Ünïcödé", "ไทย",
    "emoji 🧘", "\x1b[31mred", "bytes \udcff", "\u202eright to left", "", " ", "x" * 300, "{}", "%s", "<b>bold</b>",
)  # fmt: skip


def drawn(words: str, width: int = 400) -> np.ndarray:
    """A line of text on white, bool `[20, width]`: where there is ink."""
    canvas = Image.new("RGB", (width, 20), (255, 255, 255))
    text.draw_centred(ImageDraw.Draw(canvas), width / 2, 2, words, width, 10, (0, 0, 0))
    return np.asarray(canvas).min(axis=2) < 200


def test_all_names_are_drawn_in_sheets_and_plots(tmp_path: Path) -> None:
    tile = np.full((64, 64, 3), 255, np.uint8)
    assert drawing.sheet([tile] * len(NAMES), len(NAMES), NAMES).shape == (64 + 14 + 8, 68 * len(NAMES) + 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of missing glyphs and of labels that it leaves out
        drawing.curves(tmp_path / "curves.png", {name: ([1, 2], [3, 4]) for name in NAMES}, *NAMES[:2])
        rows = [Row(name, 1, 0, 2, i) for i, name in enumerate(NAMES)]
        interval_plot.draw(tmp_path / "rows.png", [("$_$ 日本語\n", rows)], NAMES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("new\nline", "new line"), ("日本語", "日本語"), ("한국어", "한국어"), ("_misc", "_misc"), ("Ünïcödé", "Ünïcödé"),
        ("ไทย", "���"), ("\x1b[31mred", "�[31mred"), ("bytes \udcff", "bytes �"),
    ],
    ids=ascii,
)  # fmt: skip
def test_what_can_be_drawn_stays_and_the_rest_is_replaced(name: str, expected: str) -> None:
    assert text.drawable(name) == expected


def test_every_character_is_drawn_in_a_font_that_has_it() -> None:
    assert not np.array_equal(drawn("日"), drawn("本")) and not np.array_equal(drawn("é"), drawn("è"))
    both, first = drawn("a日b").any(axis=0).sum(), drawn("a").any(axis=0).sum()
    assert both > first + drawn("日").any(axis=0).sum()


def test_a_long_text_is_cut_to_the_width() -> None:
    for words in ("x" * 300, "日本" * 100, "a日" * 100):
        columns = np.flatnonzero(drawn(words, 100).any(axis=0))
        assert len(columns) > 60 and columns.min() >= 0 and columns.max() < 100


def legend(path: Path, name: str) -> np.ndarray:
    drawing.curves(path, {name: ([1, 2], [3, 4]), "other": ([1, 2], [4, 3])}, "x", "y")
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def test_dollars_and_underscores_are_shown_in_a_legend(tmp_path: Path) -> None:
    assert text.label("Ba$$in") == r"Ba\$\$in"
    shown = [legend(tmp_path / "a.png", name) for name in ("misc", "_misc", "$misc$", "mi$$sc")]
    assert all(not np.array_equal(shown[0], other) for other in shown[1:])
    # They have more ink, and are no formula in italics.
    assert all((other < 100).sum() > (shown[0] < 100).sum() for other in shown[1:])
