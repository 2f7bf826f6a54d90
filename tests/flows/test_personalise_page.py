"""Every command, section and line of Python of docs/personalise.md in its order, with a tiny model and small numbers."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel
from ruamel.yaml import YAML

pytest.importorskip("diffusers")
pytest.importorskip("peft")

import diffusers
import peft

from flows import cli
from tasks import paths
from tasks.config import adapt as sections
from tasks.config.params import load
from tasks.foreign import folder
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tests.support import tiny_pipelines
from tests.support.project import PROJECT
from tests.support.workspaces import write_awake, write_params, write_shards

pytestmark = pytest.mark.slow
PAGE = PROJECT / "docs/personalise.md"
YAML_SAFE = YAML(typ="safe", pure=True)
# What is smaller here than on the page.
NUMBERS = {"images": 16, "count": 2, "rank": 2}
OPTIONS = {"--count": "2", "--size": "64", "--steps": "3"}
WORDS = {"handstand": "wild", 'torch.device("cuda")': 'torch.device("cpu")', "torch.bfloat16": "torch.float32"}
SMALL = {"batch": 2, "checkpoint_images": 16}
METHODS: dict[str, type[BaseModel]] = {"lora": sections.Lora, "pictures_adapted": sections.OwnChange}


class Part(NamedTuple):
    """Something on the page that can be run."""

    kind: str  # command, section, key (of a section), python
    text: str


def parts(page: str) -> Iterator[Part]:
    """What can be run, in order: blocks of code, and code within sentences."""
    for paragraph in re.split(r"\n(?=\n)|(?<=\n)(?=\d\. )", page):
        lines = paragraph.strip("\n").splitlines()
        if lines and all(line.startswith("    ") or not line for line in lines):
            text = textwrap.dedent("\n".join(lines))
            if text.startswith("contrapposto "):
                yield from (Part("command", line) for line in text.splitlines())
            elif not text.startswith(("pip ", "base:")):
                yield Part("section" if re.match(r"\w+:", text) else "python", text)
        elif not paragraph.lstrip().startswith("|"):
            for code in re.findall(r"`([^`]+)`", paragraph):
                if re.match(r"contrapposto [\w-]+ \S", code):
                    yield Part("command", code)
                elif re.match(r"(pipeline|\w+Model)\.\w+\(.*\)$", code):
                    yield Part("python", code)
                elif re.match(r"(sample|stop|keep|certificate): ", code):
                    yield Part("key", code)


def smaller(section: Any) -> Any:
    """A section of the page with small numbers."""
    if isinstance(section, dict):
        return {key: NUMBERS.get(key, smaller(value)) for key, value in section.items()}
    if isinstance(section, list):
        return [smaller(value) for value in section]
    return section


def merged(node: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested sections with changes."""
    return node | {
        key: merged(node.get(key) or {}, value) if isinstance(value, dict) else value for key, value in changes.items()
    }


def write(path: Path, changes: dict[str, Any]) -> None:
    """Put sections into params.yaml, as a user does."""
    document = merged(YAML_SAFE.load(path.read_text()), changes)
    with path.open("w") as file:
        YAML_SAFE.dump(json.loads(json.dumps(document)), file)
    load(path)


def prepared(root: Path, home: Path) -> None:
    """What the page takes for granted: a model, photos, prompts, shards, a champion."""
    tiny_pipelines.stored(home / "models/stable-diffusion-v1-5", "sd")
    # The first chapter sets the base once more; so the others can be read alone.
    base = folder.digest(home / "models/stable-diffusion-v1-5")
    write_params(root, base={"source": str(home / "models/stable-diffusion-v1-5"), "sha256": base})
    (root / "stable-diffusion-v1-5").symlink_to(home / "models/stable-diffusion-v1-5")
    write_shards(root)
    write_awake(root, "pictures", ["calm"])
    random = np.random.default_rng(0)
    for name, count in (("photos/red_cat", 30), ("my_training_pictures", 4)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture = Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8))
            picture.resize((64, 70), Image.Resampling.BICUBIC).save(root / name / f"{i}.png")
    (root / "prompts.txt").write_text("a dog\na cat\n")
    params = load(root / "params.yaml")
    store = Store(params.tracking, root)
    pictures = paths.model_folder(root, "pictures")
    number = store.register("pictures", pictures, paths.sha256(pictures), "")
    model_registry.make_champions(store, {"pictures": number}, ("pictures",))


def run(command: str) -> int:
    """The exit code of a command of the page."""
    words = shlex.split(command)[1:]
    for option, value in OPTIONS.items():
        if option in words:
            words[words.index(option) + 1] = value
    return cli.main([str(Path(word).expanduser()) for word in words])


def chapters() -> dict[str, str]:
    """The texts of the page by their headings."""
    texts = re.split(r"^## (.+)\n", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(texts[1::2], texts[2::2], strict=True))


class Reader(NamedTuple):
    """A workspace in which the page is followed, and what Python knows there."""

    root: Path
    home: Path
    names: dict[str, Any]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    place = tmp_path_factory.mktemp("page")
    root, home = place / "workspace", place / "home"
    prepared(root, home)
    published = home / "models/stable-diffusion-v1-5"
    names = {
        "pipeline": diffusers.StableDiffusionPipeline.from_pretrained(published, local_files_only=True),
        "unet": diffusers.UNet2DConditionModel.from_pretrained(published / "unet"), "PeftModel": peft.PeftModel,
        "ControlNetModel": diffusers.ControlNetModel,
    }  # fmt: skip
    return Reader(root, home, names)


@pytest.mark.parametrize("heading", [heading for heading, text in chapters().items() if any(parts(text))])
def test_what_the_page_says_runs(heading: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chapter on the certificate needs the one on LoRA."""
    torch.set_num_threads(1)
    monkeypatch.chdir(reader.root)
    monkeypatch.setenv("HOME", str(reader.home))
    for kind, text in parts(chapters()[heading]):
        for word, instead in WORDS.items():
            text = text.replace(word, instead)
        if kind == "section":
            changes = smaller(YAML_SAFE.load(text))
            for method, section in changes["adapt"].items():
                section |= SMALL
                if method != "pictures_adapted":
                    section["certificate"] = {"samples": 50, "steps": 1}
            write(reader.root / "params.yaml", changes)
        elif kind == "key" and text.startswith("sample"):
            write(reader.root / "params.yaml", YAML_SAFE.load(text))
        elif kind == "key":
            sections.Lora.model_validate(YAML_SAFE.load(text))
        elif kind == "python":
            exec(text, reader.names)
        else:
            # A few pictures are not enough for a verdict, and some may be called copies.
            assert run(text) in ((0, 3, 11) if text.startswith("contrapposto certify") else (0,)), text
            written = re.search(r"--out (\S+)", text)
            assert written is None or any((reader.root / written[1]).iterdir()), text
            trained = re.match(r"contrapposto stage adapt (\S+)", text)
            if trained is not None:
                out = reader.root / "artifacts" / trained[1]
                assert (out / "model.safetensors").is_file() and (out / "certificate.json").is_file()


def test_every_method_has_a_command_on_the_page() -> None:
    commands = {text for _, text in parts(PAGE.read_text())}
    for name in sections.Adapt.model_fields:
        assert name == "poses_adapted" or f"contrapposto stage adapt {name}" in commands, name


def test_tables_of_the_page_have_the_defaults_of_the_parameters() -> None:
    for name, section in METHODS.items():
        table = PAGE.read_text().split(f"| key of `adapt.{name}` | default | |")[1].split("\n\n")[0]
        for row in table.splitlines()[2:]:
            keys, default, _ = (cell.strip() for cell in row.strip("|").split(" | "))
            given = re.sub(r"`", "", default)
            values = [YAML_SAFE.load(given)] if given.startswith("{") else [value.strip() for value in given.split(",")]
            for key, value in zip((key.strip(" `") for key in keys.split(",")), values, strict=False):
                if key == "...":
                    continue
                wanted = section.model_fields[key].get_default(call_default_factory=True)
                if isinstance(value, dict):
                    assert wanted.model_dump() == value, (name, key)
                elif value != "rank":  # null: that of another key
                    assert wanted == (YAML_SAFE.load(value) if key != "template" else value), (name, key)
