"""Small graph models of TensorFlow.js, made of a few nodes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def attribute(value: Any) -> dict[str, Any]:
    """A Python value in the form in which a graph has it."""
    match value:
        case bool():
            return {"b": value}
        case int():
            return {"i": str(value)}
        case str() if value.startswith("DT_"):
            return {"type": value}
        case str():
            return {"s": base64.b64encode(value.encode()).decode()}
        case [str(), *_]:
            return {"list": {"s": [base64.b64encode(text.encode()).decode() for text in value]}}
    return {"list": {"i": [str(item) for item in value]}}


def graph_model(
    nodes: Mapping[str, tuple[str, Sequence[str], Mapping[str, Any]]], constants: Mapping[str, np.ndarray], output: str
) -> tuple[bytes, bytes]:
    """The two files of a model with the input `x`. A node: name -> (operation, inputs, attributes). float16 is quantised."""
    entries: list[dict[str, Any]] = [
        {"name": name, "op": op, "input": list(inputs), "attr": {key: attribute(v) for key, v in attributes.items()}}
        for name, (op, inputs, attributes) in nodes.items()
    ]
    entries += [{"name": name, "op": "Const"} for name in constants] + [{"name": "x", "op": "Placeholder"}]
    manifest = []
    for name, values in constants.items():
        entry: dict[str, Any] = {"name": name, "shape": list(values.shape), "dtype": values.dtype.name}
        if values.dtype == np.float16:
            entry |= {"dtype": "float32", "quantization": {"dtype": "float16", "original_dtype": "float32"}}
        manifest.append(entry)
    content = {
        "modelTopology": {"node": entries},
        "weightsManifest": [{"paths": ["weights.bin"], "weights": manifest}],
        "signature": {"inputs": {"x": {"name": "x:0"}}, "outputs": {"y": {"name": output}}},
    }
    return json.dumps(content).encode(), b"".join(values.tobytes() for values in constants.values())
