"""Names that users gave to folders and files, made safe to print."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def one_line(text: str) -> str:
    """The text without characters that break lines or terminals.

    White space of any kind becomes a space; other control and format characters and surrogates (the bytes of a file name
    that is not UTF-8) become the replacement character.
    """
    return "".join(" " if char.isspace() else REPLACEMENT if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs")


def enumerated(names: Sequence[str], most: int = 10) -> str:
    """Names in a sentence: "a, b, c", and "a, b, ... and 490 more" if there are more than `most`."""
    shown = ", ".join(one_line(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... and {len(names) - most} more"
