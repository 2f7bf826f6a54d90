"""The card states the contents, loads nothing, and compares with the version before."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tasks.common import files
from tasks.common.skeleton import embed, mirror
from tasks.config.params import load
from tasks.dataset import curate, dataset_table, shard
from tasks.dataset.coverage import distances, population_stability
from tasks.extract.findings import Reason
from tasks.extract.poses_table import Reject
from tasks.registry import forget
from tasks.report import dataset_card, dataset_history
from tests.support.curation_workspace import PART, motion, part_of, person, write
from tests.support.workspaces import write_params


def make(root, persons, rejects=(), **changes) -> str:
    write(root, persons, rejects)
    params = load(write_params(root, **changes))
    curate.run(params, root)
    shard.run(params, root)
    dataset_card.run(params, root)
    return (root / "reports/dataset.html").read_text()


def test_the_card_holds_its_pictures_and_shows_every_kind_of_row(tmp_path):
    source = tmp_path / "data/raw" / PART / "SOURCE.txt"
    source.parent.mkdir(parents=True)
    source.write_text("By nobody, <b>CC0</b>")
    rejects = [Reject("calm/gone.png", None, "calm", Reason.UNREADABLE, "gone")]
    rows = [*(person(i) for i in range(30)), person(40, sharpness=1.0), *(motion(i) for i in range(5))]
    page = make(tmp_path, rows, rejects, card__licence="as agreed")
    assert "http://" not in page and "https://" not in page and 'src="/' not in page
    assert page.count("data:image/png;base64,") >= 4
    assert "By nobody, &lt;b&gt;CC0&lt;/b&gt;" in page and "as agreed" in page
    text = re.sub(r"<[^>]+>|\s+", " ", page)
    for words in (
        "blurred: 1",
        "unreadable: 1 files or frames",
        "mocap 1 5 5",
        "picture 31 31 30",
        "5 poses without one",
    ):
        assert words in re.sub(" +", " ", text), words
    assert "first version in this workspace" in page


def test_near_duplicates_are_shown_beside_each_other(tmp_path):
    page = make(tmp_path, [*(person(i) for i in range(12)), part_of(7, 0, 8, 88)])
    assert "nearest to the cut (curate.near_duplicate: 0.17) that are below it" in page
    assert "by near-duplicates" in page and "at\nthe same moment: 1." in page
    alone = make(tmp_path, [person(i) for i in range(12)])
    assert "that are below it" not in alone


ODD = ("new\nline", "Ba$$in", "$_$", "_misc", "日本語", "ไทย", "<b>bold</b>", "{{ summary }}", "&amp;", "%s", "x" * 120)


def test_any_category_and_file_name_is_drawn_and_escaped(tmp_path):
    rows = [
        person(i, category=ODD[i % len(ODD)], source=f"{ODD[i % len(ODD)]}/{i} {ODD[i % 4]}.png")
        for i in range(3 * len(ODD))
    ]
    rejects = [Reject(f"{name}/{name}.png", None, name, Reason.UNREADABLE, name) for name in ODD]
    page = make(tmp_path, [*rows, person(99, category="<i>", source="<i>/dark.png", exposure=0.0)], rejects)
    assert "<b>bold" not in page and "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<td>{{ summary }}</td>" in page and "<td>&amp;amp;</td>" in page and "<td>日本語</td>" in page
    assert "unreadable: 11 files or frames" in page and "too dark: 1" in page


def test_a_single_person_has_a_card(tmp_path):
    page = make(tmp_path, [person(0)])
    assert "The split val is empty" in page and "Too few training persons" in page


def test_motion_capture_alone_has_a_card(tmp_path):
    page = make(tmp_path, [motion(i, source) for source in ("a.bvh", "b.bvh", "c.bvh") for i in range(4)])
    assert "12 poses without one" in page


def test_an_opted_out_person_is_not_shown(tmp_path):
    make(tmp_path, [person(i) for i in range(12)])
    forget.run(load(tmp_path / "params.yaml"), tmp_path, person(3).key)
    page = make(tmp_path, [person(i) for i in range(12)])
    assert person(3).key not in page and "forgotten: 1" not in page


def test_drift_is_measured_against_the_previous_version_and_repeats(tmp_path):
    rows = [person(i) for i in range(60)]
    make(tmp_path, rows)
    first = dataset_history.digest(tmp_path)
    grown = make(tmp_path, [*rows, *(person(2 * i) for i in range(30, 75))])
    assert f"since version {first}" in grown
    assert make(tmp_path, [*rows, *(person(2 * i) for i in range(30, 75))]) == grown
    statistics = files.read_json(tmp_path / "data/dataset/clusters.json")
    before = dataset_history.previous(tmp_path, statistics)
    assert before is not None and before["digest"] == first
    persons = dataset_table.read(tmp_path / "data/dataset")
    drift = dataset_history.drift(before, statistics, persons)
    assert drift.categories.stability_index == pytest.approx(population_stability([30, 30], [75, 30]))
    assert sum(drift.clusters.now) == len(persons)


def test_population_stability_in_closed_form():
    assert population_stability([10, 20, 30], [10, 20, 30]) == 0
    p, q = np.array([100.5, 300.5]) / 401, np.array([300.5, 100.5]) / 401
    assert population_stability([100, 300], [300, 100]) == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert population_stability([1, 3], [3, 1]) == pytest.approx(population_stability([3, 1], [1, 3]))
    assert np.isfinite(population_stability([10, 0], [0, 10]))


def test_distances_are_those_of_all_pairs_compared(tmp_path):
    make(tmp_path, [*(person(i) for i in range(50)), person(70, source="calm/0000.png", key=f"{0:016x}-1")])
    persons = dataset_table.read(tmp_path / "data/dataset")
    points, reflected = embed(persons.pose).astype(float), embed(mirror(persons.pose)).astype(float)
    apart = np.minimum(*(np.linalg.norm(side[:, None] - points, axis=2) for side in (points, reflected)))
    apart[np.array(persons.group)[:, None] == np.array(persons.group)] = np.inf
    train = persons.of("train")
    nearest = apart[:, train].min(axis=1)
    held_out = [i for i in range(len(persons)) if i not in train]
    for name, rows in (("train", train), ("held_out", held_out)):
        assert distances(persons)[name]["median"] == pytest.approx(np.median(nearest[rows]), abs=1e-4)
