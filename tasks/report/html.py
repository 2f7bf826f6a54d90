"""Self-contained HTML pages: pictures are embedded, nothing is loaded, and all text is escaped."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from tasks.common.images import encode_png


@dataclass(frozen=True)
class Figure:
    """A picture of a page in base64, its caption, and its format: png or webp."""

    data: str
    caption: str
    kind: str = "png"

    @classmethod
    def of(cls, picture: np.ndarray, caption: str) -> Figure:
        """A picture, uint8 `[height, width, 3]`."""
        return cls(base64.b64encode(encode_png(picture)).decode(), caption)

    @classmethod
    def read(cls, path: Path, caption: str) -> Figure:
        """The picture in a PNG or WebP file."""
        return cls(base64.b64encode(path.read_bytes()).decode(), caption, path.suffix.removeprefix("."))


@dataclass(frozen=True)
class Card:
    """A headline figure; `style` is a CSS class."""

    label: str
    value: str
    note: str
    style: str = ""


def render(template: str, **values: object) -> str:
    """The page made from `templates/<template>`; a name that the template needs and does not get raises an error."""
    environment = Environment(loader=PackageLoader("tasks.report"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(**values)
