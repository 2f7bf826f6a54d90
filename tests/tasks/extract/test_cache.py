"""The cache of findings: exact storage, one digest per entry, concurrent processes."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import paths
from tasks.extract.cache import Store, encoded, findings_digest
from tasks.extract.findings import Finding, Findings, Kind, Opinion, Reason, Refused, Settings

OPINION = Opinion("movenet.zip", "a" * 64, 384, 0.35)
SETTINGS = Settings(0.5, 64, 4, 4.0, 0.15, second_pass=2, second_opinion=OPINION)


def some(seed: int, count: int = 2) -> Findings:
    rng = np.random.default_rng(seed)
    found = [
        Finding(
            frame=3 * i,
            timestamp_s=i / 3,
            person=0,
            track=i,
            width=640,
            height=480,
            landmarks=rng.normal(size=(33, 5)).astype(np.float32),
            world=rng.normal(size=(33, 3)).astype(np.float32),
            sharpness=float(rng.normal()) if i else float("nan"),
            exposure=float(rng.random()),
            fingerprint=rng.integers(-127, 128, 256).astype(np.int8),
            thumbnail=rng.integers(0, 256, (48, 48)).astype(np.uint8),
        )
        for i in range(count)
    ]
    return Findings(Kind.VIDEO, found, [Refused(1, Reason.SAME_POSE, "é\n"), Refused(None, Reason.DAMAGED, "d")])


def same(a: Findings, b: Findings) -> bool:
    def plain(f: Findings) -> list[dict[str, Any]]:
        return [
            {k: v.tolist() if isinstance(v, np.ndarray) else repr(v) for k, v in vars(row).items()} for row in f.persons
        ]

    return a.kind is b.kind and a.refused == b.refused and plain(a) == plain(b)


def test_findings_are_stored_exactly(tmp_path: Path) -> None:
    with Store(tmp_path, "d") as store:
        for i in range(5):
            store.put(str(i), encoded(some(i, count=i)))
    with Store(tmp_path, "d") as store:
        assert all(same(store.get(str(i)), some(i, count=i)) for i in range(5))
        assert "1" in store and "x" not in store
        with pytest.raises(KeyError):
            store.get("x")


def test_findings_belong_to_one_digest_and_are_deleted_under_all(tmp_path: Path) -> None:
    for digest in ("d", "e"):
        with Store(tmp_path, digest) as store:
            assert "0" not in store
            store.put("0", encoded(some(0)))
    with Store(tmp_path, "d") as store:
        store.forget("0")
    with Store(tmp_path, "e") as store:
        assert "0" not in store


def test_deleted_findings_leave_no_bytes_in_the_file(tmp_path: Path) -> None:
    traces = [findings.world.tobytes() for findings in some(0).persons]
    with Store(tmp_path, "d") as store:
        store.put("0", encoded(some(0)))
        store.put("1", encoded(some(1)))
    assert all(trace in (tmp_path / paths.FINDINGS).read_bytes() for trace in traces)
    with Store(tmp_path, "d") as store:
        store.forget("0")
    files = [path.read_bytes() for path in (tmp_path / paths.FINDINGS).parent.iterdir()]
    assert not any(trace in content for trace in traces for content in files)


def test_findings_stored_before_an_error_are_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Store(tmp_path, "d") as store:
        store.put("0", encoded(some(0)))
        raise RuntimeError
    with Store(tmp_path, "d") as store:
        assert same(store.get("0"), some(0))


def fill(root: Path, first: int) -> None:
    with Store(root, "d") as store:
        for i in range(first, first + 50):
            store.put(str(i), encoded(some(i)))
            store.commit()


def test_several_processes_share_one_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    team = [context.Process(target=fill, args=(tmp_path, 50 * n)) for n in range(4)]
    for process in team:
        process.start()
    for process in team:
        process.join()
    assert [process.exitcode for process in team] == [0] * 4
    with Store(tmp_path, "d") as store:
        assert all(str(i) in store for i in range(200))


def test_the_digest_depends_on_every_parameter_and_on_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_bytes(b"a")
    one = findings_digest(SETTINGS, model)
    assert one == findings_digest(SETTINGS, model)
    numbers = {name: value for name, value in vars(SETTINGS).items() if name != "second_opinion"}
    others = {findings_digest(replace(SETTINGS, **{name: value * 2}), model) for name, value in numbers.items()}
    changed = (replace(OPINION, **{name: value * 2}) for name, value in vars(OPINION).items() if name != "path")
    for opinion in (None, *changed):
        others.add(findings_digest(replace(SETTINGS, second_opinion=opinion), model))
    model.write_bytes(b"b")
    others.add(findings_digest(SETTINGS, model))
    assert len(others) == 11 and one not in others


def test_the_digest_does_not_depend_on_the_place_of_the_workspace(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_bytes(b"a")
    elsewhere = replace(SETTINGS, second_opinion=replace(OPINION, path="/elsewhere/movenet.zip"))
    assert findings_digest(elsewhere, model) == findings_digest(SETTINGS, model)


def test_only_a_second_opinion_depends_on_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    model.write_bytes(b"a")
    both = [SETTINGS, replace(SETTINGS, second_opinion=None)]
    before = [findings_digest(settings, model) for settings in both]
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0" if name == "torch" else version(name))
    after = [findings_digest(settings, model) for settings in both]
    assert before[0] != after[0] and before[1] == after[1]
