"""The figures of the dataset card: contact sheets, and a map of the poses."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tasks.common.skeleton import normalise
from tasks.common.subset import evenly_spaced
from tasks.dataset import clusters
from tasks.dataset.clusters import Clusters
from tasks.dataset.crop import crop, square
from tasks.dataset.dataset_table import Gate, Gated, Persons
from tasks.dataset.source_pictures import Place, pictures
from tasks.extract.findings import Kind
from tasks.extract.poses_table import Poses, Reject
from tasks.extract.source_files import Refusal
from tasks.plots import colours, drawing, text

T = TypeVar("T")
TILE = 96  # pixels
GREY = 235
_EXAMPLES = 9  # of a cluster, a reason or a group
_GROUPS = 6  # the largest groups
_PAIRS_IN_A_ROW = 5
_COLOURED = 12  # the largest categories, which have a colour each
_DOTS = 4000  # poses on the map
GROUP_REASONS = {Gate.REPEATED_POSE: "repeats a pose", Gate.ABOVE_CAP: "above the cap"}


class Tiles:
    """Rows of the poses table as tiles: the person's crop, or the drawn pose if there is no picture."""

    def __init__(self, file_of: Callable[[str], Path], table: Poses, margin: float) -> None:
        self._file_of, self._table, self._margin = file_of, table, margin
        self._pixels, self._pictured = table.pixels, table.pictured
        self._row = {key: i for i, key in enumerate(table.key)}

    def person(self, key: str) -> np.ndarray:
        """The tile of the row with this key; grey if its picture cannot be read."""
        i = self._row[key]
        table = self._table
        if not self._pictured[i]:
            return drawing.draw_pose(normalise(table.world[i]), TILE)
        whole = self.picture((table.source[i], table.source_kind[i], int(table.frame[i])))
        if whole is None:
            return _blank(GREY)
        x0, y0, side = square(self._pixels[i], self._margin)
        return crop(whole, x0, y0, side, TILE)

    def whole(self, key: str) -> np.ndarray:
        """The whole picture of the row with this key, in a tile; grey if it cannot be read."""
        i = self._row[key]
        picture = self.picture((self._table.source[i], self._table.source_kind[i], int(self._table.frame[i])))
        return _blank(GREY) if picture is None else drawing.fit(picture, TILE)

    def picture(self, place: Place) -> np.ndarray | None:
        """A whole picture or frame; None if it cannot be read."""
        try:
            return next(pictures(self._file_of, [place]))
        except Refusal:
            return None


def _blank(grey: int = 255) -> np.ndarray:
    return np.full((TILE, TILE, 3), grey, np.uint8)


def _examples(rows: Sequence[T]) -> list[T]:
    return [rows[i] for i in evenly_spaced(len(rows), _EXAMPLES)]


def cluster_sheet(persons: Persons, clustering: Clusters, tile: Tiles) -> np.ndarray:
    """A row for each pose cluster: the pose nearest to its centre, drawn, then members from near to far."""
    x = clusters.points(persons.pose, clustering.axis)
    tiles, captions = [], []
    for number, centroid in enumerate(clustering.centroids):
        members = np.flatnonzero(persons.cluster == number)
        members = members[np.argsort(np.linalg.norm(x[members] - centroid, axis=1), kind="stable")]
        tiles.append(drawing.draw_pose(persons.pose[members[0]], TILE))
        captions.append(f"{clusters.name(number)}: {len(members)}")
        examples = _examples(members.tolist())
        tiles += [tile.person(persons.key[i]) for i in examples]
        captions += [persons.category[i] for i in examples]
        blank = _EXAMPLES - len(examples)
        tiles += [_blank()] * blank
        captions += [""] * blank
    return drawing.sheet(tiles, _EXAMPLES + 1, captions)


def gated_sheets(gated: list[Gated], tile: Tiles) -> dict[str, np.ndarray]:
    """For each reason some of the persons that were found and not kept, with the figure that decided.

    Persons who opted out are not shown.
    """
    by_reason: dict[Gate, list[Gated]] = defaultdict(list)
    for row in gated:
        by_reason[row.reason].append(row)
    sheets: dict[str, np.ndarray] = {}
    for reason in Gate:
        rows = _examples(by_reason[reason])
        if rows and reason is not Gate.FORGOTTEN:
            tiles = [tile.person(row.key) for row in rows]
            sheets[str(reason)] = drawing.sheet(tiles, _EXAMPLES, [row.detail.partition(",")[0] for row in rows])
    return sheets


def reject_sheets(rejects: list[Reject], kinds: dict[str, str], tile: Tiles) -> dict[str, np.ndarray]:
    """For each reason some of the files and frames that extraction refused; those that cannot be read are grey."""
    by_reason: dict[str, list[Reject]] = defaultdict(list)
    for row in rejects:
        by_reason[str(row.reason)].append(row)
    sheets = {}
    for reason, all_rows in sorted(by_reason.items()):
        tiles, captions = [], []
        for row in _examples(all_rows):
            kind = kinds.get(row.source, Kind.PICTURE if row.frame is None else Kind.VIDEO)
            whole = None if kind == Kind.MOCAP else tile.picture((row.source, kind, row.frame or 0))
            tiles.append(_blank(GREY) if whole is None else drawing.fit(whole, TILE))
            captions.append(Path(row.source).name)
        sheets[reason] = drawing.sheet(tiles, _EXAMPLES, captions)
    return sheets


def group_sheet(persons: Persons, gated: list[Gated], tile: Tiles) -> np.ndarray | None:
    """The largest groups, a row each, with the members that were left out; None if no group has two members."""
    members: dict[str, list[str]] = defaultdict(list)
    for name, key in zip(persons.group, persons.key, strict=True):
        members[name].append(key)
    left_out = {row.key: GROUP_REASONS[row.reason] for row in gated if row.reason in GROUP_REASONS}
    for row in gated:
        if row.key in left_out:
            members[row.group].append(row.key)
    largest = sorted((name for name in members if len(members[name]) > 1), key=lambda n: (-len(members[n]), n))[
        :_GROUPS
    ]
    tiles, captions = [], []
    for name in largest:
        examples = _examples(members[name])
        blank = _EXAMPLES - len(examples)
        tiles += [tile.person(key) for key in examples] + [_blank()] * blank
        captions += [left_out.get(key, "kept") for key in examples] + [""] * blank
    return drawing.sheet(tiles, _EXAMPLES, captions) if tiles else None


def pair_sheets(pairs: list[dict[str, Any]], cut: float, tile: Tiles) -> dict[str, np.ndarray]:
    """Caption -> the pairs of pictures nearest to the cut, those below and those above it; each with its distance.

    `pairs`: `pairs_near_the_cut` of summary.json. A side without pairs is absent.
    """
    below = [pair for pair in pairs if pair["distance"] <= cut][::-1]
    above = [pair for pair in pairs if pair["distance"] > cut]
    sides = {
        f"The pairs nearest to the cut (curate.near_duplicate: {cut:g}) that are below it. If two of a pair show nothing in "
        "common, lower the cut.": below,
        "The pairs nearest to the cut that are above it. If two of a pair are one photograph or one moment, raise the "
        "cut.": above,
    }
    sheets = {}
    for caption, rows in sides.items():
        tiles, captions = [], []
        for pair in rows:
            tiles += [tile.whole(pair["key"]), tile.whole(pair["other"])]
            captions += [f"{pair['distance']:.3f}", "one group" if pair["one_group"] else "two groups"]
        if tiles:
            sheets[caption] = drawing.sheet(tiles, 2 * _PAIRS_IN_A_ROW, captions)
    return sheets


def pose_map(path: Path, persons: Persons, clustering: Clusters) -> float:
    """Write a PNG of the poses on their two principal axes, coloured by category, with the clusters' central poses.

    Returns the share of the variance that the two axes show.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    text.use_fonts()
    x = clusters.points(persons.pose, clustering.axis)
    centre = x.mean(axis=0)
    variances, vectors = np.linalg.eigh((x - centre).T @ (x - centre))  # ascending
    axes = vectors[:, :-3:-1].T
    axes *= np.sign(axes[[0, 1], np.abs(axes).argmax(axis=1)])[:, None]  # the sign of an axis is arbitrary
    flat = (x - centre) @ axes.T
    figure = Figure(figsize=(11, 6.6), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    counts = Counter(persons.category)
    coloured = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_COLOURED]]
    dots = set(evenly_spaced(len(x), _DOTS))
    markers = "osD^vP"
    handles = {}
    for n, name in enumerate([*coloured, None]):
        rows = [
            i for i in dots if persons.category[i] == name or (name is None and persons.category[i] not in coloured)
        ]
        if rows:
            colour = colours.series(n) if name is not None else colours.OTHERS
            handles[name or "others"] = plot.scatter(
                flat[rows, 0],
                flat[rows, 1],
                s=11,
                color=colour,
                marker=markers[n % len(markers)],
                alpha=0.65,
            )
    for number, centroid in enumerate(clustering.centroids):
        members = np.flatnonzero(persons.cluster == number)
        nearest = members[np.linalg.norm(x[members] - centroid, axis=1).argmin()]
        drawn = OffsetImage(drawing.draw_pose(persons.pose[nearest], 56), zoom=0.75)
        where = (centroid - centre) @ axes.T
        plot.add_artist(AnnotationBbox(drawn, where, pad=0.1, bboxprops={"edgecolor": "0.4", "linewidth": 0.6}))
    plot.set(xlabel="first principal axis, torso lengths", ylabel="second principal axis, torso lengths")
    labels = [text.label(name) for name in handles]
    plot.legend(list(handles.values()), labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    plot.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return float(variances[-2:].sum() / max(variances.sum(), 1e-12))
