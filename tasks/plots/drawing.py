"""Pictures for people: skeletons, contact sheets, curves. All return or write RGB, uint8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tasks.common import files
from tasks.common.images import encode_png
from tasks.common.skeleton import BONES, INDEX, LANDMARKS
from tasks.plots import text
from tasks.plots.colours import DOT, INK, LEFT, MIDDLE, PAPER, RIGHT

SUPERSAMPLE = 4


def _colour(a: int, b: int) -> tuple[int, int, int]:
    names = LANDMARKS[a], LANDMARKS[b]
    if all("left" in name for name in names):
        return LEFT
    if all("right" in name for name in names):
        return RIGHT
    return MIDDLE


def _draw_bones(draw: ImageDraw.ImageDraw, points: np.ndarray, depth: np.ndarray, width: float) -> None:
    """Draw the bones, far ones first so that near ones cover them; the head is a circle."""
    for a, b in sorted(BONES, key=lambda bone: -(depth[bone[0]] + depth[bone[1]])):
        if max(a, b) <= INDEX["mouth_right"]:
            continue
        thick = width * (0.5 if a >= INDEX["left_wrist"] and b <= INDEX["right_thumb"] else 1.0)
        draw.line([tuple(points[a]), tuple(points[b])], fill=_colour(a, b), width=max(1, round(thick)))
    ears = (points[INDEX["left_ear"]] + points[INDEX["right_ear"]]) / 2
    shoulders = (points[INDEX["left_shoulder"]] + points[INDEX["right_shoulder"]]) / 2
    radius = 0.55 * float(np.linalg.norm(ears - shoulders))
    draw.ellipse([*(ears - radius), *(ears + radius)], outline=MIDDLE, width=max(1, round(width * 0.6)))
    for name in ("nose", "left_eye", "right_eye"):
        point = points[INDEX[name]]
        fill = LEFT if "left" in name else RIGHT if "right" in name else INK
        draw.ellipse([*(point - width * 0.6), *(point + width * 0.6)], fill=fill)


def draw_pose(pose: np.ndarray, size: int = 96, extent: float = 2.3) -> np.ndarray:
    """One normalised pose `[33, 3]` (torso = 1) seen from the front, uint8 `[size, size, 3]`.

    The picture spans -extent..extent torso lengths around the hips, so sizes are comparable between pictures.
    """
    return draw_joints((pose[:, :2] / extent + 1) / 2, pose[:, 2], size)


def draw_landmarks(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The picture with a skeleton at image landmarks `[33, 3]` (pixels, and depth in any unit)."""
    height, width = picture.shape[:2]
    canvas = Image.fromarray(picture).resize((width * 2, height * 2), Image.Resampling.BICUBIC)
    _draw_bones(ImageDraw.Draw(canvas), landmarks[:, :2] * 2, landmarks[:, 2], width=max(height, width) / 60)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX))


def draw_joints(points: np.ndarray, depth: np.ndarray, size: int, dots: np.ndarray | None = None) -> np.ndarray:
    """A skeleton with its joints at `points` `[33, 2]`, as fractions of the picture, uint8 `[size, size, 3]`.

    `dots` `[n, 2]` are drawn behind it, such as marks on the floor.
    """
    side = size * SUPERSAMPLE
    canvas = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(canvas)
    for point in [] if dots is None else dots * side:
        draw.ellipse([*(point - side / 160), *(point + side / 160)], fill=DOT)
    _draw_bones(draw, points * side, depth, width=side / 48)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX))


def fit(picture: np.ndarray, size: int) -> np.ndarray:
    """The whole picture inside a white square of `size` pixels, with its proportions."""
    image = Image.fromarray(picture)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), PAPER)
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(square)


def enlarge(picture: np.ndarray, size: int) -> np.ndarray:
    """A small square picture, enlarged without smoothing."""
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.NEAREST))


def smooth(picture: np.ndarray, size: int) -> np.ndarray:
    """A square picture resized smoothly to `size` pixels."""
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def sheet(
    pictures: Sequence[np.ndarray], columns: int, captions: Sequence[str] | None = None, caption_size: int = 10
) -> np.ndarray:
    """A contact sheet of pictures of one size, row by row, each with its caption underneath (`caption_size` pixels high)."""
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    height, width = pictures[0].shape[:2]
    gap, line = 4, caption_size + 4 if captions else 0
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    canvas = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, picture in enumerate(pictures):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + line + gap)
        canvas.paste(Image.fromarray(picture), (x, y))
        if captions:
            text.draw_centred(draw, x + width / 2, y + height + 1, captions[i], width, caption_size, INK)
    return np.asarray(canvas)


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture; its folder is made."""
    files.write_bytes(path, encode_png(picture))


def curves(
    path: Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    log: str = "",
) -> None:
    """Write a line plot of name -> (x, y) as PNG; `log` names the axes with a logarithmic scale, such as "xy"."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    text.use_fonts()
    figure = Figure(figsize=(6.4, 3.6), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for x, y in series.values():
        axes.plot(x, y, linewidth=1.5)
    axes.set(xlabel=text.label(xlabel), ylabel=text.label(ylabel))
    if "x" in log:
        axes.set_xscale("log")
    if "y" in log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend(axes.lines, [text.label(name) for name in series], frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
