"""params.yaml: what is impossible is refused in one sentence that names the key."""

import re
from pathlib import Path

import pytest

from tasks.common.errors import UserError
from tasks.config.optimisation import KeptAverage
from tasks.config.params import load, parse, set_value
from tests.support.project import PROJECT

FILE = PROJECT / "params.yaml"
TEXT = FILE.read_text()


@pytest.mark.parametrize(
    ("old", "new", "key", "allowed"),
    [
        ("  count: 1200", "  count: 0", "mannequin.count", "greater than or equal to 1"),
        ("  count: 1200", "  cuont: 1200", "mannequin.cuont", "not a known key"),
        ("  count: 1200", "  count: 1200.5", "mannequin.count", "integer"),
        ("  count: 1200", "  count: '1200'", "mannequin.count", "integer"),
        ("learning_rate: 1.0e-3", "learning_rate: fast", "poses.learning_rate", "number"),
        ("learning_rate: 1.0e-3", "learning_rate: .nan", "poses.learning_rate", "finite"),
        ("  val: 0.2", "  val: 0.85", "curate", "val + test must be below 0.9"),
        ("  patch: 1 #", "  patch: 3 #", "pictures", "multiple of patch (3)"),
        ("  heads: 4", "  heads: 5", "poses", "multiple of 2 * heads (10)"),
        ("  ranks: auto # processes", "  ranks: 3 # processes", "poses", "multiple of ranks"),
        (
            "  size: 128 #",
            "  size: 16 #",
            "params.yaml: pictures.size",
            "pictures.size must be at most shard.size (16)",
        ),
        ("inception: null", "inception: {source: w.pth}", "fidelity.inception.sha256", "missing"),
        ("clip: null", "clip: {source: w.pth, sha256: abc}", "fidelity.clip.sha256", "match"),
        ("shard:\n", "shards:\n", "shard", "missing"),
        ("mannequin: data/raw/mannequin", "a/b: data/raw", "raw.parts.a/b", "match pattern"),
        ("mannequin: data/raw/mannequin", "{}", "raw.parts", "at least 1 item"),
        ("mannequin: data/raw/mannequin", "{a: pictures, b: pictures/b}", "raw", "or lies in it"),
        ("adapt: {}", "adapt: {lora: {}}", "params.yaml: adapt", "needs base"),
        ("second_opinion: null", "second_opinion: {source: a.zip}", "extract.second_opinion.sha256", ""),
        ("adapt: {}", "adapt: {lora: {template: 'a {thing}'}}", "adapt.lora", "{category}"),
    ],
)
def test_impossible_values_are_named(old: str, new: str, key: str, allowed: str) -> None:
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    if "ranks" in allowed:
        text = text.replace("  ranks: 1", "  ranks: 2", 1)
    with pytest.raises(UserError) as caught:
        parse(text)
    sentence = str(caught.value)
    assert key in sentence and allowed in sentence
    assert "\n" not in sentence and sentence.endswith(".")
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("value", "key", "allowed"),
    [
        ("best", "poses.keep", "'distance' or 'last'"),
        ("0.05", "poses.keep", "'distance' or 'last'"),
        ("{ema: 0}", "poses.keep.ema", "greater than 0"),
        ("{ema: 0.3}", "poses.keep.ema", "less than 0.288"),
        ("{ema: wide}", "poses.keep.ema", "number"),
        ("{ema: .nan}", "poses.keep.ema", "finite"),
        ("{}", "poses.keep.ema", "missing"),
        ("{width: 0.1}", "poses.keep.ema", "missing"),
        ("{ema: 0.1, power: 2}", "poses.keep.power", "not a known key"),
        ("{ema: 0.01}", "poses", "from 16 snapshots of averages of the widths 0.05, 0.1"),
        ("{ema: 0.04}\n  snapshot_images: 32000", "poses", "from 2 snapshots"),
        ("{ema: 0.07}\n  snapshot_images: 1", "poses", "snapshot_images must be at least 64"),
        ("{ema: 0.07}\n  power_averages: [0.2]", "poses", "of the widths 0.2"),
    ],
)
def test_an_average_that_cannot_be_kept_is_named(value: str, key: str, allowed: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(TEXT.replace("keep: validation_loss", f"keep: {value}", 1))
    sentence = str(caught.value)
    assert f": {key} " in sentence or f": {key}: " in sentence
    assert allowed in sentence and "\n" not in sentence


def test_averages_that_can_be_computed_are_accepted() -> None:
    for value in ("{ema: 0.05}", "{ema: 0.03}", "{ema: 0.2}", "{ema: 0.01}\n  power_averages: [0.01]"):
        kept = parse(TEXT.replace("keep: validation_loss", f"keep: {value}", 1)).poses.keep
        assert isinstance(kept, KeptAverage)
    with pytest.raises(UserError, match=r"codec\.keep .*'validation_loss' or 'last'"):
        parse(TEXT.replace("codec: # what", "codec:\n  keep: {ema: 0.1}\n  # what", 1))


def test_alternatives_of_a_value_are_not_named_as_keys() -> None:
    for changed, key in (
        (TEXT.replace("guidance: {scale: 6.0", "guidance: {scale: -1", 1), "sample.pictures.guidance.scale"),
        (TEXT.replace("guidance: {scale: 6.0, rescale: 0.7}", "guidance: -1", 1), "sample.pictures.guidance"),
        (TEXT.replace("poses: # the pose", "poses:\n  microbatch: 0\n  # ", 1), "poses.microbatch"),
    ):
        with pytest.raises(UserError, match=rf"^params\.yaml: {re.escape(key)} should be"):
            parse(changed)


@pytest.mark.parametrize(
    "address",
    [
        "example.org",
        "ftp://a",
        "http://",
        "http://my host/x",
        "http://[::1",
        "http://a:port/",
        "http://a:99999/",
        "http://a/\\n",
    ],
)
def test_a_webhook_that_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"notify\.webhook: .* is no address such as"):
        parse(TEXT.replace("webhook: null", f'webhook: "{address}"', 1))


def test_the_services_have_different_ports() -> None:
    with pytest.raises(UserError, match="services: prefect_port and mlflow_port must differ, both are 5000"):
        parse(TEXT.replace("prefect_port: 4200", "prefect_port: 5000", 1))


@pytest.mark.parametrize("text", [r"a\0b.db", r"\ud800.db"])
@pytest.mark.parametrize(
    ("old", "key"),
    [
        ("store: mlflow.db", "tracking.store"),
        ("licence: null", "card.licence"),
        ("conditions: [category, pose_map]", "pictures.conditions"),
    ],
)
def test_characters_that_no_file_can_hold_are_refused(old: str, key: str, text: str) -> None:
    new = f'"{text}"' if "[" not in old else f'["{text}"]'
    with pytest.raises(UserError, match=rf"^params\.yaml: {re.escape(key)} has characters"):
        parse(TEXT.replace(old, f"{old.split(':')[0]}: {new}", 1))


def test_a_file_nested_too_deeply_is_one_sentence() -> None:
    with pytest.raises(UserError, match="nested too deeply"):
        parse("a: " + "[" * 5000 + "]" * 5000)


def test_if_the_file_is_a_link_the_file_behind_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(TEXT)
    link = tmp_path / "params.yaml"
    link.symlink_to("shared.yaml")
    set_value(link, "mannequin.count", 7)
    assert link.is_symlink() and load(tmp_path / "shared.yaml").mannequin.count == 7


def test_exponents_are_numbers_as_dvc_reads_them() -> None:
    assert parse(TEXT.replace("1.0e-3", "1e-3")).poses.learning_rate == 1e-3


def test_not_yaml_and_not_a_mapping() -> None:
    with pytest.raises(UserError, match="not valid YAML"):
        parse("raw: [")
    with pytest.raises(UserError, match="must be a mapping"):
        parse("- 1")
    with pytest.raises(UserError, match="does not exist"):
        load(Path("nowhere.yaml"))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32", "cp932"])
def test_another_encoding_is_one_sentence(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    licence = {"cp932": "日本", "latin-1": "Fotos: Jürgen"}.get(encoding, "ours")
    path.write_bytes(TEXT.replace("licence: null", f"licence: '{licence}'").encode(encoding))
    for use in (load, lambda path: set_value(path, "mannequin.count", 3)):
        with pytest.raises(UserError, match=r"^params.yaml is not UTF-8 text.*\.$"):
            use(path)


def test_utf_8_is_read_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes(TEXT.replace("licence: null", "licence: 'Fotos: Jürgen'").encode(encoding))
        assert load(path).card.licence == "Fotos: Jürgen"


@pytest.mark.parametrize(
    "text", ["", "null", "- 1", "a: \x01", "raw: [", "!!python/object:os.system {}", "a: 1\na: 2", "&a *a"]
)
def test_a_damaged_file_is_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    for use in (load, lambda path: set_value(path, "mannequin.count", 3)):
        with pytest.raises(UserError) as caught:
            use(path)
        assert "\n" not in str(caught.value)
    assert path.read_text() == text


def test_setting_a_value_in_what_is_no_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    with pytest.raises(UserError, match=r"mannequin\.count "):
        set_value(path, "mannequin.count.more", 0)
    set_value(path, "fidelity.clip", None)
    with pytest.raises(UserError, match=r"fidelity\.clip\.sha256 is missing"):
        set_value(path, "fidelity.clip.source", "clip.safetensors")


def test_setting_a_value_keeps_comments_and_refuses_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    set_value(path, "raw.folder", "/some/where")
    assert load(path).raw.folder == "/some/where"
    before, after = TEXT.splitlines(), path.read_text().splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert [b.split("#")[0].strip() for _, b in changed] == ["folder: /some/where"]
    assert "# every folder in it is a part" in changed[0][1]
    path.write_text(TEXT)
    set_value(path, "raw.parts", {"mannequin": "data/raw/mannequin", "mine": "/some/where"})
    assert list(load(path).raw.parts) == ["mannequin", "mine"]
    set_value(path, "raw.parts", {"mannequin": "data/raw/mannequin"})
    assert path.read_text() == TEXT
    with pytest.raises(UserError, match=r"mannequin\.count"):
        set_value(path, "mannequin.count", 0)
    assert load(path).mannequin.count == 1200
