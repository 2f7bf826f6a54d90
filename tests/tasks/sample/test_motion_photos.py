"""Real videos and motion captures, from files to a trained model of motion and its page."""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import paths
from tasks.common import files
from tasks.config.params import load
from tasks.dataset import clips, curate
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import motion_quality
from tasks.extract import bvh, listing
from tasks.extract import stage as extract
from tasks.report import clips_card, motion_page
from tasks.sample import export_motion
from tasks.sample import motion as sample_motion
from tasks.synthetic import animate
from tasks.train import stage as train
from tests.support import motion_workspace
from tests.support.project import PROJECT

FRAMES, RATE = 16, 12.0


@pytest.mark.slow
@pytest.mark.skipif("CONTRAPPOSTO_PHOTOS" not in os.environ, reason="CONTRAPPOSTO_PHOTOS names no folder of photos")
def test_videos_and_motion_captures_become_a_model_of_motion(tmp_path: Path) -> None:
    photos = Path(os.environ["CONTRAPPOSTO_PHOTOS"])
    params = motion_workspace.params(
        tmp_path,
        raw={"folder": None, "parts": {name: str(photos / name) for name in ("videos", "mocap")}},
        extract__model=str(PROJECT / "models/pose_landmarker_full.task"), extract__video_rate=RATE, extract__workers=0,
        motion__animation__count=0, motion__clips__frames=FRAMES, motion__clips__rate=RATE, motion__clips__stride=FRAMES // 2,
        motion__model__width=32, motion__model__depth=2, motion__model__images=2048, motion__sample__count=24,
        motion__sample__overlap=6,
    )  # fmt: skip
    (tmp_path / "forgotten.json").write_text((PROJECT / "forgotten.json").read_text())
    listing.run(params, tmp_path)
    for part in params.raw.parts:
        extract.run(params, tmp_path, part)
    curate.run(params, tmp_path)
    animate.run(params, tmp_path)  # no clips
    clips.run(params, tmp_path)
    made = ShardDataset(tmp_path / paths.CLIPS, "train", "val", "test")
    made.verify()
    metas = made.metas()
    kinds = Counter(meta["kind"] for meta in metas)
    assert kinds["video"] >= 5 and kinds["mocap"] >= 50
    # Nobody is in these videos.
    assert not any(word in meta["source"] for meta in metas for word in ("car-detection", "bottle-detection"))
    assert all(meta["path"] == (meta["kind"] == "mocap") for meta in metas)
    torsos = np.array([meta["torso"] for meta in metas if meta["kind"] == "video"])
    # Metres. MediaPipe sees people from above as shorter than they are, in one of these videos by far.
    assert (
        (torsos > 0.1).all()
        and (torsos < 0.9).all()
        and 0.4 < np.quantile(torsos, 0.1) < np.quantile(torsos, 0.9) < 0.6
    )
    poses = made.clips()
    assert poses.shape[1:] == (FRAMES, 33, 3) and np.isfinite(poses).all()
    of_source = {(meta["source"], meta["split"]) for meta in metas}
    assert len({source for source, _ in of_source}) == len(of_source)  # a source is in one split

    torch.set_num_threads(1)
    train.run(params, tmp_path, paths.MOTION)
    loss = [value for _, value in files.read_json(paths.model_folder(tmp_path, paths.MOTION) / "training.json")["loss"]]
    assert np.mean(loss[-5:]) < 0.7 * np.mean(loss[:5])
    sample_motion.run(params, tmp_path)
    drawn = ShardDataset(paths.sample_folder(tmp_path, paths.MOTION), "samples")
    assert np.isfinite(drawn.clips()).all()
    motion_quality.run(load(tmp_path / "params.yaml"), tmp_path)
    clips_card.run(params, tmp_path)
    motion_page.run(params, tmp_path)
    assert "mocap" in (tmp_path / paths.CLIPS_CARD).read_text()

    export_motion.run(params, tmp_path, "samples", "2")
    for path in (tmp_path / paths.EXPORTS / paths.MOTION).glob("*.bvh"):
        assert len(bvh.read(io.BytesIO(path.read_bytes())).values) == FRAMES
