"""Assigns groups of rows to splits by a hash of the group's name, and by its rank if a split would be empty."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence


def assign(groups: Sequence[str], seed: int, val: float, test: float) -> tuple[dict[str, str], list[str]]:
    """The split of each group, `train`, `val` or `test`, and the groups that the hash alone puts elsewhere.

    `groups` names the group of every row. u = hash(seed, group) is uniform in 0..1: a group goes to val if u < val, to
    test if u < val + test, else to train. No other group matters, so a group stays in its split when the data grow.
    Three exceptions keep small data usable; they depend only on the groups' u and sizes:

    1. a group with more than half of all rows (one long video) is in train;
    2. if train is empty, the split with the most groups gives it the one with the largest u;
    3. if val (then test) is empty, the split with the most groups, if it has more than one, gives it the one with the
       smallest u; train never gives its largest group.

    With n groups the split with fraction f is empty, and a group may move later, with probability (1 - f)^n: for a tenth
    and 50 groups 0.5 %.
    """
    sizes = Counter(groups)
    u = {name: (_uniform(seed, name), name) for name in sizes}
    hashed = {name: "val" if x < val else "test" if x < val + test else "train" for name, (x, _) in u.items()}
    split = dict(hashed)
    split |= {name: "train" for name, size in sizes.items() if 2 * size > len(groups)}
    for wanted, fraction in (("train", 1.0), ("val", val), ("test", test)):
        if fraction > 0 and wanted not in split.values():
            counts = Counter(split.values())
            giver = max(counts, key=lambda name: (counts[name], name))
            members = sorted((name for name in split if split[name] == giver), key=u.__getitem__)
            if wanted == "train":
                split[members[-1]] = wanted
            elif len(members) > 1:
                if giver == "train":
                    members.remove(max(members, key=lambda name: (sizes[name], u[name])))
                split[members[0]] = wanted
    return split, sorted(name for name in split if split[name] != hashed[name])


def _uniform(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
