"""Which split a group of rows goes to: by a hash of its name, and by the hash's rank where a split would be empty."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence


def assign(groups: Sequence[str], seed: int, val: float, test: float) -> tuple[dict[str, str], list[str]]:
    """The split of each group, `train`, `val` or `test`, and the groups that the hash alone had put elsewhere.

    `groups` names the group of every row. u = hash(seed, group) is uniform in 0..1: a group goes to val if u < val, to
    test if u < val + test, else to train. This looks at no other group, so a group stays where it is when the data grow.
    Three exceptions keep small data usable; each depends only on the groups' u and sizes:

    1. a group with more than half of all rows (one long video) is in train;
    2. if train is empty, the split with the most groups gives it the one with the largest u;
    3. if val (then test) is empty, the split with the most groups, if that is more than one, gives it the one with the
       smallest u, but train never its largest group.

    The chance that a fraction f stays empty with n groups, and with it the chance that a group moves later, is
    (1 - f)^n: 0.5 % at 50 groups for a tenth.
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
            theirs = sorted((name for name in split if split[name] == giver), key=u.__getitem__)
            if wanted == "train":
                split[theirs[-1]] = wanted
            elif len(theirs) > 1:
                if giver == "train":
                    theirs.remove(max(theirs, key=lambda name: (sizes[name], u[name])))
                split[theirs[0]] = wanted
    return split, sorted(name for name in split if split[name] != hashed[name])


def _uniform(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
