"""`contrapposto promote-adapter METHOD`: register a trained adapter of a published model in MLflow.

It becomes `challenger`, and `champion` unless its certificate forbids that; `contrapposto draw --adapter METHOD@champion` then
draws with it, in any workspace with the same store. The adapter belongs to the MLflow run that trained it, and its file has the
sha256 of its base.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import checkpoint, files
from tasks.common.errors import UserError
from tasks.config.params import Params
from tasks.registry import model_registry
from tasks.registry.tracking import Store

CERTIFICATE = "certificate.json"
ALIASES = (model_registry.CHAMPION, model_registry.CHALLENGER, model_registry.PREVIOUS)

log = logging.getLogger(__name__)


def objection(certificate: dict[str, Any] | None, largest_share: float) -> str | None:
    """One sentence that says why an adapter may not become champion; None if it may.

    `largest_share`: of copies that a certificate without copies may leave possible.
    """
    if certificate is None:
        return "It has no certificate: train it with adapt.METHOD.certificate."
    verdict, bound = certificate["verdict"], certificate.get("share_bound", 1.0)
    if verdict == "CLEAN" or (verdict == "LOW-POWER" and bound <= largest_share):
        return None
    left = f" Up to {bound:.1%} of its pictures may be copies." if verdict == "LOW-POWER" else ""
    return f"Its certificate says {verdict}.{left}"


def run(params: Params, root: Path, method: str, accept: str | None = None) -> None:
    """Register `artifacts/METHOD/`. `accept`: the verdict, such as TOO-FEW, with which it becomes champion nevertheless.

    COPIES cannot be accepted. Raises UserError if there is no adapter, or if `accept` is not the certificate's verdict.
    """
    folder = paths.model_folder(root, method)
    if not (folder / paths.MODEL_FILE).is_file():
        raise UserError(f"There is no adapter in {folder}: run `contrapposto stage adapt {method}` first.")
    found = folder / CERTIFICATE
    certificate = files.read_json(found) if found.is_file() else None
    reason = objection(certificate, params.memorization.largest_share)
    if accept is not None:
        verdict = certificate["verdict"] if certificate is not None else "none"
        if accept != verdict or accept == "COPIES":
            raise UserError(f"The certificate of {method} says {verdict}; {accept} cannot be accepted.")
        reason = None
    about = checkpoint.about(folder / paths.MODEL_FILE)
    rows = {
        "kind": about.get("kind", method),
        "base": about.get("base", "unknown"),
        "weights": f"{paths.MODEL_FILE}, sha256 {paths.sha256(folder)}",
        "certificate": f"{certificate['verdict']}. {certificate['sentence']}" if certificate is not None else "none",
        "promoted": "yes" if reason is None else f"no. {reason}",
    }
    card = "\n".join(
        [f"# {method}", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    )
    store = Store(params.tracking, root)
    number = store.register(method, folder, paths.sha256(folder), card)
    if reason is None:
        model_registry.make_champions(store, {method: number}, (method,))
    log.info(f"{method}: version {number} is {'champion' if reason is None else 'challenger'}. {reason or ''}".strip())


def located(params: Params | None, root: Path, adapter: str) -> Path:
    """The folder of an adapter: a path, or METHOD@ALIAS of the registered ones. Raises UserError if there is none."""
    method, at, alias = adapter.partition("@")
    if Path(adapter).exists() or not at:
        return Path(adapter)
    if alias not in ALIASES or params is None:
        raise UserError(f"{adapter} is no folder, and no METHOD@ALIAS with an alias of {', '.join(ALIASES)}.")
    store = Store(params.tracking, root)
    if model_registry.version(store, method, alias) is None:
        raise UserError(f"There is no {alias} of {method}: run `contrapposto promote-adapter {method}`.")
    return model_registry.fetch(store, root, method, alias)
