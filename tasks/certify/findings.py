"""What certificate.json says: the verdict, its evidence, the copies by name, and where they come from."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from tasks.certify.folder import Pictures
from tasks.common.text import enumerated
from tasks.evaluate.memorization.certificate import Certificate
from tasks.evaluate.memorization.copy_test import Verdict

FORMAT = 1
NEAREST = 24  # pairs given although they are not on the list
LISTED_ORIGINALS = 50
REJECTED = 1000  # files named in certificate.json
FEW = 100  # training pictures below which more of them are the first remedy
LIBRARIES = ("contrapposto", "numpy", "torch", "faiss-cpu", "pillow", "scipy")
NO_HELDOUT = (
    "No held-out pictures were given, so the training pictures calibrate the test themselves: each is compared with all "
    "others. This has two costs. There is no split test, the second, independent proof of copying, which needs no model of "
    "distances. And if the samples are of another kind than the training pictures, nothing here notices. Give --heldout a "
    "folder of pictures of the same kind that were not trained on, such as regularisation pictures."
)


@dataclass(frozen=True)
class Findings:
    """What was read, and how training pictures were grouped."""

    train: Pictures
    samples: Pictures
    heldout: Pictures | None
    heldout_dropped: int  # near-duplicates of training pictures
    groups: np.ndarray  # of the training pictures
    near_duplicate: float

    def duplicates(self, row: int) -> list[int]:
        """The training pictures that show the same photo as this one, itself left out."""
        return [int(other) for other in np.flatnonzero(self.groups == self.groups[row]) if other != row]


def report_of(findings: Findings, certificate: Certificate | None, verdict: Verdict, sentence: str) -> dict[str, Any]:
    """The content of certificate.json. `certificate`: None if there was nothing to compare."""
    report: dict[str, Any] = {
        "format": FORMAT,
        "verdict": verdict.value,
        "sentence": sentence,
        "folders": {
            name: _folder(some)
            for name, some in (("train", findings.train), ("samples", findings.samples), ("heldout", findings.heldout))
            if some is not None
        },
        "near_duplicate": findings.near_duplicate,
        "train_groups": len(np.unique(findings.groups)),
        "largest_group": int(np.unique(findings.groups, return_counts=True)[1].max()),
        "heldout_dropped": findings.heldout_dropped,
        "without_heldout": NO_HELDOUT if findings.heldout is None else None,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    if certificate is None:
        return report | {"copies": [], "nearest": [], "originals": [], "checkpoints": [], "remedies": []}
    order = np.argsort(certificate.sample_p, kind="stable")
    pairs = [_pair(findings, certificate, int(i)) for i in order]
    copies = [pair for pair, i in zip(pairs, order, strict=True) if certificate.copies[i]]
    others = [pair for pair, i in zip(pairs, order, strict=True) if not certificate.copies[i]]
    originals = _originals(findings, certificate)
    checkpoints = _checkpoints(findings, certificate)
    low, high = certificate.power.interval()
    return report | {
        "p": certificate.p,
        "p_tail": certificate.tail_p,
        "p_split": certificate.split.p if findings.heldout is not None else None,
        "share_bound": certificate.share_bound,
        "power": {
            "planted": certificate.power.planted,
            "found": certificate.power.found,
            "share": certificate.power.share,
            "low": low,
            "high": high,
            "by_disguise": [
                {"disguise": name, "planted": power.planted, "found": power.found, "share": power.share}
                | dict(zip(("low", "high"), power.interval(), strict=True))
                for name, power in certificate.disguises.items()
            ],
            "missed_because": [asdict(limit) for limit in certificate.limits],
        },
        "metrics": certificate.metrics(),
        "copies": copies,
        "nearest": others[:NEAREST],
        "originals": originals,
        "checkpoints": checkpoints,
        "remedies": remedies(findings, originals, checkpoints) if verdict is Verdict.COPIES else [],
    }


def _folder(some: Pictures) -> dict[str, Any]:
    return {
        "folder": str(some.folder),
        "pictures": len(some),
        "sha256": some.digest,
        "rejected": [asdict(one) for one in some.rejected[:REJECTED]],
        "rejected_count": len(some.rejected),
        "other_files": some.skipped,
    }


def _pair(findings: Findings, certificate: Certificate, i: int) -> dict[str, Any]:
    """A sample and the training picture that it is nearest to."""
    result = certificate.best_bank(i)
    scores = result.samples
    first, second = int(scores.first[i]), int(scores.second[i])
    return {
        "sample": findings.samples.names[i],
        "original": findings.train.names[first],
        "second": findings.train.names[second],
        "p": float(certificate.sample_p[i]),
        "ratio": float(scores.ratio[i]),
        "distance": float(scores.first_distance[i]),
        "second_distance": float(scores.second_distance[i]),
        "bank": result.bank.name,
        "view": result.bank.invariances[scores.invariance[i]].name,
        "rows": [i, first, second],
    }


def _originals(findings: Findings, certificate: Certificate) -> list[dict[str, Any]]:
    """The training pictures that copies come from: most often copied first, then those with most duplicates."""
    counts = Counter(int(certificate.best_bank(int(i)).samples.first[i]) for i in np.flatnonzero(certificate.copies))
    rows = [(count, findings.duplicates(row), row) for row, count in counts.items()]
    rows.sort(key=lambda entry: (-entry[0], -len(entry[1]), findings.train.names[entry[2]]))
    return [
        {
            "original": findings.train.names[row],
            "row": row,
            "copies": count,
            "duplicates": [findings.train.names[other] for other in duplicates],
        }
        for count, duplicates, row in rows[:LISTED_ORIGINALS]
    ]


def _checkpoints(findings: Findings, certificate: Certificate) -> list[dict[str, Any]]:
    """Copies in each sub-folder of samples, in the order of the last number in its name; empty unless all have one."""
    folders = [name.split("/")[0] if "/" in name else "" for name in findings.samples.names]
    numbers = {folder: re.findall(r"\d+", folder) for folder in folders}
    if len(numbers) < 2 or not all(numbers.values()):
        return []
    totals, copied = Counter(folders), Counter(np.array(folders)[certificate.copies].tolist())
    ordered = sorted(numbers, key=lambda folder: (int(numbers[folder][-1]), folder))
    return [{"folder": folder, "samples": totals[folder], "copies": copied[folder]} for folder in ordered]


def remedies(findings: Findings, originals: list[dict[str, Any]], checkpoints: list[dict[str, Any]]) -> list[str]:
    """What helps against the copies, one sentence or two each, the most useful first."""
    advice = []
    repeated = [entry for entry in originals if entry["duplicates"]]
    if repeated:
        names = enumerated([entry["original"] for entry in repeated], most=3)
        advice.append(
            f"Deduplicate: {len(repeated)} of the copied pictures {'is' if len(repeated) == 1 else 'are'} in the training set "
            f"more than once ({names}). "
            "Keep one of each; repeated pictures are copied first."
        )
    total = sum(entry["copies"] for entry in originals)
    most = [entry for entry in originals if entry["copies"] >= max(2, 3 * total / max(1, len(originals)))]
    if most:
        share = sum(entry["copies"] for entry in most) / total
        advice.append(
            f"Cap: {len(most)} {'picture accounts' if len(most) == 1 else 'pictures account'} for {share:.0%} of the copies "
            f"({enumerated([entry['original'] for entry in most], most=3)}). Show such pictures less often "
            "(fewer repeats), or leave them out."
        )
    advice.append(_stop(checkpoints))
    if len(findings.train) < FEW:
        advice.append(
            f"Add pictures: {len(findings.train)} are few. A model that sees each of them hundreds of times "
            "learns them by heart."
        )
    advice.append(
        "Augment: mirror, crop and recolour training pictures at random, so that no two passes show the same picture."
    )
    return advice


def _stop(checkpoints: list[dict[str, Any]]) -> str:
    clean = []
    for entry in checkpoints:
        if entry["copies"]:
            break
        clean.append(entry["folder"])
    if not checkpoints:
        return (
            "Stop earlier: draw samples from several checkpoints into one folder each (step-500, step-1000, ...) and certify "
            "the folder that holds them; this page then says where the copies begin."
        )
    if not clean:
        return f"Stop earlier: there are copies already in {checkpoints[0]['folder']}."
    return f"Stop at {clean[-1]}: the copies begin after it."
