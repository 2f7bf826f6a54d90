"""The pictures of the dataset's card: contact sheets, and a map of the poses."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tasks.common.skeleton import normalise
from tasks.common.subset import evenly_spaced
from tasks.dataset import clusters
from tasks.dataset.clusters import Clusters
from tasks.dataset.crop import crop, square
from tasks.dataset.dataset_table import Gate, Gated, Persons
from tasks.dataset.source_pictures import Place, pictures
from tasks.extract.decode import Refusal
from tasks.extract.findings import Kind
from tasks.extract.poses_table import Poses, Reject
from tasks.plots import drawing

TILE = 96  # pixels
_SHOWN = 9  # members of a cluster, examples of a reason
_GROUPS = 6  # the largest groups
_NAMED = 12  # categories with a colour of their own
_DOTS = 4000  # poses on the map
LEFT_OUT = {Gate.REPEATED_POSE: "repeats a pose", Gate.ABOVE_CAP: "above the cap"}


class Shown:
    """Rows of the poses table as tiles: the person's square where there is a picture, the drawn pose where there is none."""

    def __init__(self, file_of: Callable[[str], Path], found: Poses, margin: float) -> None:
        self._file_of, self._found, self._margin = file_of, found, margin
        self._pixels, self._pictured = found.pixels, found.pictured
        self._row = {key: i for i, key in enumerate(found.key)}

    def person(self, key: str) -> np.ndarray:
        """The tile of a row of the poses table."""
        i = self._row[key]
        found = self._found
        if not self._pictured[i]:
            return drawing.draw_pose(normalise(found.world[i]), TILE)
        whole = self.picture((found.source[i], found.source_kind[i], int(found.frame[i])))
        if whole is None:
            return np.full((TILE, TILE, 3), 235, np.uint8)
        x0, y0, side = square(self._pixels[i], self._margin)
        return crop(whole, x0, y0, side, TILE)

    def picture(self, place: Place) -> np.ndarray | None:
        """A whole picture or frame; None where no decoder opens it."""
        try:
            return next(pictures(self._file_of, [place]))
        except Refusal:
            return None


def cluster_sheet(persons: Persons, clustering: Clusters, shown: Shown) -> np.ndarray:
    """A row for each pose cluster: the pose nearest to its centre drawn, then members from near to far."""
    x = clusters.points(persons.pose, clustering.axis)
    tiles, captions = [], []
    for number, centroid in enumerate(clustering.centroids):
        members = np.flatnonzero(persons.cluster == number)
        members = members[np.argsort(np.linalg.norm(x[members] - centroid, axis=1), kind="stable")]
        tiles.append(drawing.draw_pose(persons.pose[members[0]], TILE))
        captions.append(f"{clusters.name(number)}: {len(members)}")
        some = [members[at] for at in evenly_spaced(len(members), _SHOWN)]
        tiles += [shown.person(persons.key[i]) for i in some]
        captions += [persons.category[i] for i in some]
        blank = _SHOWN - len(some)
        tiles += [np.full((TILE, TILE, 3), 255, np.uint8)] * blank
        captions += [""] * blank
    return drawing.sheet(tiles, _SHOWN + 1, captions)


def gated_sheets(gated: list[Gated], shown: Shown) -> dict[str, np.ndarray]:
    """For each reason some of the persons that were found and not kept, with the figure that decided."""
    by_reason: dict[Gate, list[Gated]] = defaultdict(list)
    for row in gated:
        by_reason[row.reason].append(row)
    sheets: dict[str, np.ndarray] = {}
    for reason in Gate:
        rows = [by_reason[reason][at] for at in evenly_spaced(len(by_reason[reason]), _SHOWN)]
        if rows and reason is not Gate.FORGOTTEN:  # nobody shows who asked not to be shown
            tiles = [shown.person(row.key) for row in rows]
            sheets[str(reason)] = drawing.sheet(tiles, _SHOWN, [row.detail.partition(",")[0] for row in rows])
    return sheets


def reject_sheets(rejects: list[Reject], kinds: dict[str, str], shown: Shown) -> dict[str, np.ndarray]:
    """For each reason some of the files and frames in which nobody was found or that could not be read."""
    by_reason: dict[str, list[Reject]] = defaultdict(list)
    for row in rejects:
        by_reason[str(row.reason)].append(row)
    sheets = {}
    for reason, all_rows in sorted(by_reason.items()):
        tiles, captions = [], []
        for row in [all_rows[at] for at in evenly_spaced(len(all_rows), _SHOWN)]:
            kind = kinds.get(row.source, Kind.PICTURE if row.frame is None else Kind.VIDEO)
            whole = None if kind == Kind.MOCAP else shown.picture((row.source, kind, row.frame or 0))
            tiles.append(np.full((TILE, TILE, 3), 235, np.uint8) if whole is None else drawing.fit(whole, TILE))
            captions.append(Path(row.source).name)
        sheets[reason] = drawing.sheet(tiles, _SHOWN, captions)
    return sheets


def group_sheet(persons: Persons, gated: list[Gated], shown: Shown) -> np.ndarray | None:
    """The largest groups, a row each, with the members that were left out; None if everybody stands alone."""
    members: dict[str, list[str]] = defaultdict(list)
    for name, key in zip(persons.group, persons.key, strict=True):
        members[name].append(key)
    left_out = {row.key: LEFT_OUT[row.reason] for row in gated if row.reason in LEFT_OUT}
    for row in gated:
        if row.key in left_out:
            members[row.group].append(row.key)
    largest = sorted((name for name in members if len(members[name]) > 1), key=lambda n: (-len(members[n]), n))[
        :_GROUPS
    ]
    tiles, captions = [], []
    for name in largest:
        some = [members[name][at] for at in evenly_spaced(len(members[name]), _SHOWN)]
        blank = _SHOWN - len(some)
        tiles += [shown.person(key) for key in some] + [np.full((TILE, TILE, 3), 255, np.uint8)] * blank
        captions += [left_out.get(key, "kept") for key in some] + [""] * blank
    return drawing.sheet(tiles, _SHOWN, captions) if tiles else None


def pose_map(path: Path, persons: Persons, clustering: Clusters) -> float:
    """The poses on their two principal axes as PNG, coloured by category, with the clusters' central poses drawn; returns
    the share of the variance that the two axes show."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    x = clusters.points(persons.pose, clustering.axis)
    centre = x.mean(axis=0)
    variances, vectors = np.linalg.eigh((x - centre).T @ (x - centre))  # ascending
    axes = vectors[:, :-3:-1].T
    axes *= np.sign(axes[[0, 1], np.abs(axes).argmax(axis=1)])[:, None]  # an axis has no direction of its own
    flat = (x - centre) @ axes.T
    figure = Figure(figsize=(11, 6.6), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    counts = Counter(persons.category)
    named = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_NAMED]]
    some = set(evenly_spaced(len(x), _DOTS))
    marks = "osD^vP"
    for n, name in enumerate([*named, None]):
        rows = [i for i in some if persons.category[i] == name or (name is None and persons.category[i] not in named)]
        if rows:
            colour = f"C{n % 10}" if name is not None else "0.7"
            plot.scatter(
                flat[rows, 0],
                flat[rows, 1],
                s=11,
                color=colour,
                marker=marks[n % len(marks)],
                alpha=0.65,
                label=name or "others",
            )
    for number, centroid in enumerate(clustering.centroids):
        members = np.flatnonzero(persons.cluster == number)
        nearest = members[np.linalg.norm(x[members] - centroid, axis=1).argmin()]
        drawn = OffsetImage(drawing.draw_pose(persons.pose[nearest], 56), zoom=0.75)
        where = (centroid - centre) @ axes.T
        plot.add_artist(AnnotationBbox(drawn, where, pad=0.1, bboxprops={"edgecolor": "0.4", "linewidth": 0.6}))
    plot.set(xlabel="first principal axis, torso lengths", ylabel="second principal axis, torso lengths")
    plot.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    plot.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return float(variances[-2:].sum() / max(variances.sum(), 1e-12))
