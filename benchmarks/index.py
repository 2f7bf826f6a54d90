"""The index of the shards at 10 or 100 million samples: time to open, random access, memory, beside one JSON of the samples.

    python -m benchmarks.index [--samples 10000000] [--json 1000000] [--reads 100000] [--folder DIR]

The samples are made up: 1,000 a shard, each with a picture, a pose and its JSON. Their index is written to a temporary folder
(about 110 bytes a sample, deleted at the end); the shards are empty files of the right length. Every row of the table is
measured in a process of its own:

    open      until samples can be found
    find      to find a random sample (key, shard, offset, size)
    read      to read a member of a random sample; its tar is rarely among those that are open
    order     to compute which 256 examples a training step shows
    memory    the most that the process took beyond what it took after its imports

Times are processor time, in which other work on the machine does not count; the files are in the page cache.
`one JSON` is a single file with the same rows, read as a whole: what the index was until format 1. The last row writes with
`SplitWriter` and looks for repeated keys, and shows what these cost and that they need no memory.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.report import finish, table
from diffusion_core.training import data_order
from tasks.dataset import shard_index
from tasks.dataset.shard_index import SplitWriter, UniqueKeys
from tasks.dataset.shards import ShardDataset

PER_SHARD = 1000
SAMPLE_BYTES = 20_480
SHARD_BYTES = PER_SHARD * SAMPLE_BYTES
CHUNK = 100 * PER_SHARD  # samples written at once
OPEN_GOAL, MEMORY_GOAL = 1.0, 300.0  # seconds, MB
LINE = '["0123456789abcdef",{"json":[         ,  118],"png":[         ,12345],"pose.npy":[         ,  524]}]\n'
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
FIRST = {"json": 512, "png": 1536, "pose.npy": 15360}  # offset of each member within a sample
BATCH = 256


def _keys(rows: np.ndarray) -> np.ndarray:
    """16 hexadecimal digits for each number, uint8 `[n, 16]`; different numbers have different keys (SplitMix64)."""
    z = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    digits: np.ndarray = HEX[(z[:, None] >> np.arange(60, -4, -4, dtype=np.uint64)) & np.uint64(15)]
    return digits


def _shard() -> np.ndarray:
    """The lines of any shard as bytes, but for the keys: uint8 `[1000, length]`, of one length, with spaces before numbers."""
    text = ""
    for sample in range(PER_SHARD):
        line = LINE
        for name, first in FIRST.items():
            line = line.replace(f'"{name}":[         ', f'"{name}":[{sample * SAMPLE_BYTES + first:9}')
        text += line
    return np.frombuffer(text.encode(), np.uint8).reshape(PER_SHARD, len(LINE))


def lines(start: int, count: int) -> np.ndarray:
    """Lines `start` ... of the index as bytes, uint8 `[count, length]`; both numbers are multiples of 1,000."""
    text = np.tile(_shard(), (count // PER_SHARD, 1))
    text[:, 2:18] = _keys(np.arange(start, start + count))
    return text


def make(folder: Path, samples: int) -> None:
    """A shard folder with so many made-up samples in the split `train`; the tars are holes."""
    folder.mkdir()
    shards = []
    for number in range(samples // PER_SHARD):
        name = f"train-{number:06d}.tar"
        with (folder / name).open("wb") as file:
            file.truncate(SHARD_BYTES)
        shards.append(
            {"name": name, "split": "train", "samples": PER_SHARD, "bytes": SHARD_BYTES, "sha256": f"{number:064x}"}
        )
    with (folder / "train.jsonl").open("wb") as rows, (folder / "train.offsets").open("wb") as offsets:
        for start in range(0, samples, CHUNK):
            count = min(CHUNK, samples - start)
            lines(start, count).tofile(rows)
            (np.arange(start, start + count, dtype=shard_index.OFFSET) * len(LINE)).tofile(offsets)
        offsets.write((samples * len(LINE)).to_bytes(8, "little"))
    split = {"samples": samples, "members": dict.fromkeys(FIRST, samples), "sha256": "0" * 64}
    index = {"format": shard_index.FORMAT, "about": {}, "shards": shards, "splits": {"train": split}}
    (folder / shard_index.FILE).write_text(json.dumps(index))


def make_json(path: Path, samples: int) -> None:
    """One JSON file with the same rows, `[[key, members], ...]`."""
    with path.open("wb") as file:
        for start in range(0, samples, CHUNK):
            text = lines(start, min(CHUNK, samples - start))
            text[:, -1] = ord(",")
            file.write(b"[" if start == 0 else b"")
            data = text.tobytes()
            file.write(data[:-1] + b"]" if start + len(text) == samples else data)


def _memory() -> float:
    """MB that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _microseconds(read: Callable[[int], object], rows: list[int]) -> float:
    start = time.process_time()
    for row in rows:
        read(row)
    return (time.process_time() - start) / len(rows) * 1e6


def measure(what: str, path: Path, reads: int) -> dict[str, float]:
    """One row of the table, measured in this process."""
    before = _memory()
    out: dict[str, float] = {}
    if what == "json":
        start = time.process_time()
        rows = json.loads(path.read_bytes())
        out["open"] = time.process_time() - start
        out["find"] = _microseconds(rows.__getitem__, random.Random(0).choices(range(len(rows)), k=reads))
    elif what == "write":
        start = time.process_time()
        with SplitWriter(path, "train") as writer:
            unique = UniqueKeys(path)
            for row in range(reads):
                key = f"{row:016x}"
                writer.add(key, {name: (first, 524) for name, first in FIRST.items()})
                unique.add(key)
        assert unique.repeated(iter(())) is None
        unique.close()
        out["write"] = (time.process_time() - start) / reads * 1e6
    else:
        start = time.process_time()
        dataset = ShardDataset(path, "train")
        out["open"] = time.process_time() - start
        chosen = random.Random(0).choices(range(len(dataset)), k=reads)
        expected = _keys(np.array(chosen[:100])).tobytes().decode()
        assert "".join(map(dataset.key, chosen[:100])) == expected
        out["find"] = _microseconds(dataset.key, chosen)
        out["read"] = _microseconds(lambda row: dataset.read(row, "pose.npy"), chosen[: reads // 10])
        start = time.process_time()
        data_order.indices(0, len(dataset) // 2, BATCH, len(dataset))
        out["order"] = time.process_time() - start
    return out | {"memory": _memory() - before}


def _measured(what: str, path: Path, reads: int) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.index",
        "--measure",
        what,
        "--folder",
        str(path),
        "--reads",
        str(reads),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    out: dict[str, float] = json.loads(done.stdout)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=10_000_000, help="a multiple of 1,000")
    parser.add_argument("--json", type=int, default=1_000_000, help="samples in one JSON, 0.8 kB of memory each")
    parser.add_argument("--reads", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the files are written for the time of the measurement")
    parser.add_argument("--measure", choices=["index", "json", "write"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder, options.reads)))
        return 0
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        make_json(root / "one.json", options.json)
        results[f"one JSON, {options.json:,} samples"] = _measured("json", root / "one.json", options.reads)
        for samples in sorted({options.json, options.samples}):
            make(root / str(samples), samples)
            results[f"index, {samples:,} samples"] = _measured("index", root / str(samples), options.reads)
        (root / "written").mkdir()
        results[f"write, {options.reads:,} samples"] = _measured("write", root / "written", options.reads)
    units = {"open": "s", "find": "us", "read": "us", "order": "s", "write": "us", "memory": "MB"}
    rows = [("", *(f"{column} {unit}" for column, unit in units.items()))]
    rows += [(name, *(f"{row[c]:.3f}" if c in row else "" for c in units)) for name, row in results.items()]
    print(table(rows))
    last = results[f"index, {options.samples:,} samples"]
    goals = {
        f"{options.samples:,} samples are opened in less than {OPEN_GOAL:.0f} s": last["open"] < OPEN_GOAL,
        f"at most {MEMORY_GOAL:.0f} MB for them": last["memory"] <= MEMORY_GOAL,
    }
    return finish("index", results, goals)


if __name__ == "__main__":
    sys.exit(main())
