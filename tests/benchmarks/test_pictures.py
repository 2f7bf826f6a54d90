"""The comparison of picture models: what is done is not done again, and goals are judged by intervals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import pictures


def results(found: list[float], within: list[float]) -> list[dict[str, Any]]:
    return [
        {"found": a, "within": b, "edge_kid": 0.001, "parameters": {"pictures": 10}, "images": {"pictures": 5}}
        for a, b in zip(found, within, strict=True)
    ]


def test_a_goal_is_reached_beyond_the_interval_only() -> None:
    rows = {
        "ours": results([1.0, 1.0, 1.0], [0.60, 0.61, 0.59]),
        "diffusers": results([0.1, 0.2, 0.1], [0.3, 0.31, 0.29]),
        "denoising-diffusion-pytorch": results([1.0, 1.0, 1.0], [0.2, 0.9, 0.5]),
    }
    figures, goals = pictures.compared(rows)

    def above(key: str, name: str) -> bool:
        return goals[f"{key}: ours is above {name} beyond the 95 % interval"]

    assert above("found", "diffusers") and above("within", "diffusers")
    assert not above("found", "denoising-diffusion-pytorch")  # the same, without any spread
    assert not above("within", "denoising-diffusion-pytorch")  # higher, but within the interval
    assert figures["found: ours minus denoising-diffusion-pytorch"] == (0.0, 0.0, 0.0)
    assert goals["within: ours is the highest of the table"]
    _, alone = pictures.compared({name: entries[:1] for name, entries in rows.items()})
    assert not any(alone.values())  # one seed has no interval


def test_a_row_with_a_result_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/shards").mkdir(parents=True)
    (tmp_path / "data/shards/index.json").write_text("{}")
    ran: list[tuple[str, int]] = []
    stopped = True

    def run(command: list[str], **options: Any) -> None:
        at = command.index("--one")
        name, seed = command[at + 1], int(command[at + 2])
        if stopped and (name, seed) == ("diffusers", 1):
            raise KeyboardInterrupt
        ran.append((name, seed))
        (entry,) = results([1.0], [0.5])
        path = pictures.result(tmp_path, name, seed)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**entry, "seconds": 3.0, "row": name}))

    monkeypatch.setattr(subprocess, "run", run)
    arguments = ["pictures", "--seconds", "3", "--seeds", "2", "--rows", "ours", "diffusers", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(KeyboardInterrupt):
        pictures.main()
    assert ran == [("ours", 0), ("diffusers", 0), ("ours", 1)]
    stopped = False
    pictures.main()
    assert ran[3:] == [("diffusers", 1)]
    arguments[2] = "4"  # of another length: everything is run again
    pictures.main()
    assert len(ran) == 8


def test_lengths_keep_the_proportions_of_the_default() -> None:
    assert pictures.lengths("pictures", 64000, 0.5) == {
        "images": 64000, "warmup_images": 1600, "cooldown_images": 32000, "ema_halflife_images": 4000,
        "checkpoint_images": 64000,
    }  # fmt: skip
    assert pictures.lengths("codec", 19200, 0.5)["warmup_images"] == 1600


def test_every_row_has_parameters_that_are_possible(tmp_path: Path) -> None:
    for changes, shares in pictures.OURS.values():
        changes = {key: {k: v for k, v in value.items() if k != "cooldown"} for key, value in changes.items()}
        params = pictures.write_params(tmp_path, changes)
        assert sum(shares.values()) == pytest.approx(1)
        assert ("upscaler" in shares) == (params.upscaler.size is not None)
        assert ("codec" in shares) == (params.codec.kind != "none")


@pytest.mark.slow
@pytest.mark.parametrize("build", [pictures.diffusers_peer, pictures.lucidrains_peer])
def test_a_peer_is_trained_with_the_map_and_draws(build: Any) -> None:
    x0, maps = torch.rand(16, 3, 64, 64) * 2 - 1, torch.rand(16, 6, 64, 64)
    draw, parameters, seen = build((x0, maps), 2.0, 0)
    assert 3e6 < parameters < 9e6 and seen >= 16
    assert draw(maps[:2]).shape == (2, 3, 64, 64)
