"""Captions from the poses of a part to the shards, with the embeddings of a text encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.common import files
from tasks.config.params import load
from tasks.config.text import TextEncoder
from tasks.dataset import curate, shard
from tasks.dataset.shards import ShardDataset
from tests.support import curation_workspace
from tests.support.workspaces import write_params

ENCODER = {"source": "encoder", "sha256": "0" * 64, "length": 4, "template": "one who is {category}"}


def test_captions_reach_the_shards_and_are_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [curation_workspace.person(i) for i in range(12)]
    curation_workspace.write(tmp_path, people)
    captions = {people[3].source: "the third", "gone.png": "nobody"}
    files.write_json(tmp_path / "data/poses/mannequin/captions.json", captions)
    asked: list[str] = []

    def embeddings(root: Path, config: TextEncoder, texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.arange(len(texts), dtype=np.float32)[:, None, None].repeat(4, 1).repeat(6, 2)

    monkeypatch.setattr(shard, "embeddings", embeddings)
    params = load(write_params(tmp_path, shard__text=ENCODER, curate__near_duplicate=0.0))
    curate.run(params, tmp_path)
    shard.run(params, tmp_path)
    assert asked == ["one who is calm", "one who is wild", "the third"]
    every = ShardDataset(tmp_path / "data/shards", "train", "val", "test")
    found = dict(zip(every.keys, every.captions(ENCODER["template"]), strict=True))
    assert found[people[3].key] == "the third" and found[people[4].key] == "one who is calm"
    row = every.keys.index(people[3].key)
    assert "caption" in every.meta(row) and (every.texts()[row] == 2).all()
    assert sum("caption" in meta for meta in every.metas()) == 1
