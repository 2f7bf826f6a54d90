"""The files of a part and their categories."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tasks.common.errors import UserError
from tasks.common.text import one_line
from tasks.extract.captions import CAPTIONS, SUFFIXES
from tasks.extract.labels import LABELS, Labels, read_labels
from tasks.extract.source_files import printable

JOINTS_SUFFIX = ".joints.json"  # the true joints beside a rendered picture
PROVENANCE = "SOURCE.txt"  # in any folder of pictures: where they come from and under which licence
SIDE_FILES = frozenset({PROVENANCE, LABELS, CAPTIONS})

# What operating systems, file managers and network drives leave in folders, in lower case. Hidden names (._x.jpg, .DS_Store,
# .Trash-1000) need no entry.
SYSTEM_NAMES = frozenset({
    "__macosx", "icon\r", "network trash folder", "temporary items",  # macOS
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "autorun.inf", "$recycle.bin", "recycler", "recycled",
    "system volume information",  # Windows
    "lost+found",  # Linux
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@sharebin",  # network drives
})  # fmt: skip

# Folders that divide a public dataset for training and testing; they are no categories.
SPLIT_NAMES = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})

# Only these decide which folders are categories: a dataset may have a README or annotations beside its pictures.
MEDIA_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".heic", ".heif", ".hif", ".gif", ".bmp", ".tif", ".tiff",
    ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".avi", ".mkv", ".webm", ".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".vob", ".wmv",
    ".asf", ".flv", ".ogv", ".mxf", ".bvh",
})  # fmt: skip

_MAX_NAMED = 12  # categories that a message names


class EntryKind(StrEnum):
    """What an entry of a folder is; links are not followed."""

    FILE = "file"
    LINK = "link"
    FOLDER = "unreadable folder"
    OTHER = "special file"  # a pipe, a socket, a device


@dataclass(frozen=True)
class Entry:
    """A file below a folder, or a folder that cannot be listed: its path relative to that folder, and its state.

    `status` is None if the entry disappeared or cannot be examined.
    """

    path: str
    kind: EntryKind
    status: os.stat_result | None


@dataclass(frozen=True)
class Source:
    """One file of a part: its path relative to the part's folder, and its category.

    `path` opens the file; if it is not valid UTF-8 it contains surrogates. `name` is its printable form.
    """

    path: str
    category: str

    @property
    def name(self) -> str:
        """The path as valid Unicode; invalid bytes are written as \\xNN."""
        return printable(self.path)


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is hidden or belongs to an operating system or a network drive."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is not a source: it belongs to the system or is a known side file."""
    return is_system(name) or name in SIDE_FILES or name.endswith(JOINTS_SUFFIX)


def walk(folder: Path) -> Iterator[Entry]:
    """Everything below a folder but listable folders and system files, in no particular order.

    Never follows links, opens a file or fails: what cannot be listed is an entry. The folder itself has the path "".
    """
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            with os.scandir(folder / prefix) as listing:
                entries = list(listing)
        except (OSError, ValueError):
            yield Entry(prefix, EntryKind.FOLDER, None)
            continue
        for entry in entries:
            if is_system(entry.name):
                continue
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                yield Entry(path, EntryKind.OTHER, None)
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            else:
                yield Entry(path, _kind(status.st_mode), status)


def _kind(mode: int) -> EntryKind:
    if stat.S_ISREG(mode):
        return EntryKind.FILE
    return EntryKind.LINK if stat.S_ISLNK(mode) else EntryKind.OTHER


def has_sources(folder: Path) -> bool:
    """Whether a folder holds any source."""
    return any(not is_ignored(entry.path.split("/")[-1]) for entry in walk(folder) if entry.path)


@dataclass(frozen=True)
class Scan:
    """The sources of a part in order of their path, and how their categories were found."""

    sources: list[Source]
    level: (
        str  # the folder, relative to the part's, whose sub-folders are the categories; "" is the part's folder itself
    )
    labels: Labels | None

    def describe(self) -> list[str]:
        """Sentences about the labels, the level of the folders, and the number of files in each category."""
        counts = Counter(source.category for source in self.sources).most_common()
        named = ", ".join(f"{one_line(category)} {count}" for category, count in counts[:_MAX_NAMED])
        more = f" and {len(counts) - _MAX_NAMED} more" if len(counts) > _MAX_NAMED else ""
        place = f"the folders in {printable(self.level)}/" if self.level else "its folders"
        lines = self.labels.describe() if self.labels else []
        origin = f"{LABELS} and {place}" if self.labels and self.labels.matched else place
        return [*lines, f"{len(counts)} {'category' if len(counts) == 1 else 'categories'} ({origin}): {named}{more}"]


def scan(folder: Path, cache: Path | None = None) -> Scan:
    """Find all sources below the folder and their categories.

    System files, known side files and captions (see `captions`) are ignored. Links, special files and folders that cannot be
    listed are sources; opening them gives a refusal. The category comes from `labels.csv` (see `labels`) or else from the
    folders: it is the sub-folder of the deepest folder that contains all pictures, or this folder's own name. Folders called
    train, test and the like are skipped. `cache` is the folder of links that DVC made (see `source_files.dvc_cache`). Raises
    UserError if the folder is missing, cannot be listed or has no sources, or if its labels cannot be read.
    """
    if not os.path.isdir(folder):
        raise UserError(f"The folder of pictures {folder} does not exist.")
    entries = [entry.path for entry in walk(folder)]
    if "" in entries:
        raise UserError(f"The folder of pictures {folder} cannot be listed; check its permissions.")
    paths = sorted(_without_captions([path for path in entries if not is_ignored(path.split("/")[-1])]))
    if not paths:
        raise UserError(f"The folder of pictures {folder} holds no file.")
    labels = read_labels(folder, [printable(path) for path in paths], cache)
    level, skipped = _category_level(paths)
    own_name = printable(folder.resolve().name)
    return Scan(
        [
            Source(
                path,
                (labels.categories.get(printable(path)) if labels else None)
                or _category(path, level, skipped, own_name),
            )
            for path in paths
        ],
        "/".join(level),
        labels,
    )


def _without_captions(paths: Sequence[str]) -> Iterator[str]:
    """The files but the texts beside a picture of the same name, which are captions."""
    media = {stem for stem, suffix in map(os.path.splitext, paths) if suffix.lower() in MEDIA_SUFFIXES}
    for path in paths:
        stem, suffix = os.path.splitext(path)
        if suffix not in SUFFIXES or stem not in media:
            yield path


def _category_level(paths: Sequence[str]) -> tuple[list[str], int]:
    """The deepest folder that contains all pictures, and how many levels of folders below it are skipped."""
    media = [path for path in paths if os.path.splitext(path)[1].lower() in MEDIA_SUFFIXES] or paths
    folders = [path.split("/")[:-1] for path in media]
    level = []
    for names in zip(*folders, strict=False):
        if len(set(names)) > 1:
            break
        level.append(names[0])
    below = [folder[len(level) :] for folder in folders]
    skipped = int(all(len(rest) > 1 and rest[0].casefold() in SPLIT_NAMES for rest in below))
    return level, skipped


def _category(path: str, level: list[str], skipped: int, own_name: str) -> str:
    folders = path.split("/")[:-1]
    if folders[: len(level)] != level:  # no picture
        name = printable(folders[0]) if folders else own_name
    else:
        below = folders[len(level) + skipped :]
        name = printable(below[0]) if below else printable(level[-1]) if level else own_name
    # macOS writes an accent as a character of its own: names that look the same are the same category.
    return unicodedata.normalize("NFC", name)
