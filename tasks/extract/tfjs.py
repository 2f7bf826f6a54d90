"""Graph models of TensorFlow.js, computed by torch.

Such a model is a JSON file with the nodes of a TensorFlow graph and a manifest of its constants, and a file with the bytes of
the constants. Tensors have TensorFlow's order of dimensions, `[batch, height, width, channels]`. The operations are those of
MoveNet; a graph with another one is refused.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_TYPES = {"DT_FLOAT": torch.float32, "DT_INT32": torch.int32, "DT_INT64": torch.int64, "DT_BOOL": torch.bool}
_STORED = {"float32": "<f4", "float16": "<f2", "int32": "<i4"}
_CONVOLUTIONS = ("Conv2D", "_FusedConv2D")
_DEPTHWISE = ("DepthwiseConv2dNative", "FusedDepthwiseConv2dNative")


@dataclass(frozen=True)
class _Node:
    """A node: what it computes of which tensors (name of a node, number of its output)."""

    op: str
    inputs: list[tuple[str, int]]
    attributes: dict[str, Any]


class GraphModel:
    """A graph model, from the contents of its two files.

    Raises ValueError if they are not those of a graph model that can be computed here.
    """

    def __init__(self, graph: bytes, weights: bytes) -> None:
        try:
            content = json.loads(graph)
            self._inputs = [_reference(entry["name"])[0] for entry in content["signature"]["inputs"].values()]
            self._outputs = [_reference(entry["name"]) for entry in content["signature"]["outputs"].values()]
            nodes = {entry["name"]: _node(entry) for entry in content["modelTopology"]["node"]}
            constants = _constants(content["weightsManifest"], weights)
            self._steps = [(name, nodes[name]) for name in _order(nodes, self._outputs)]
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"not a graph model ({type(error).__name__}: {error})") from error
        known = {*self._inputs, *constants}
        unknown = {node.op for name, node in self._steps if name not in known and node.op not in _OPERATIONS}
        if unknown:
            raise ValueError(f"a graph with operations that are not known here: {', '.join(sorted(unknown))}")
        self._values = constants | _kernels(self._steps, constants)

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs for these inputs, both in the order of the model's signature."""
        values: dict[str, Sequence[Tensor]] = {name: [value] for name, value in self._values.items()}
        values |= {name: [value] for name, value in zip(self._inputs, inputs, strict=True)}
        for name, node in self._steps:
            if name not in values:
                result = _OPERATIONS[node.op](node.attributes, *(values[source][i] for source, i in node.inputs))
                values[name] = [result] if isinstance(result, Tensor) else result
        return [values[name][i] for name, i in self._outputs]


def _reference(name: str) -> tuple[str, int]:
    node, _, number = name.partition(":")
    return node, int(number or 0)


def _node(entry: Mapping[str, Any]) -> _Node:
    inputs = [_reference(name) for name in entry.get("input", []) if not name.startswith("^")]
    return _Node(entry["op"], inputs, {key: _attribute(value) for key, value in entry.get("attr", {}).items()})


def _attribute(value: Mapping[str, Any]) -> Any:
    """An attribute as a Python value: a number, a string, a type, or a list of them."""
    ((kind, content),) = value.items()
    match kind:
        case "s":
            return base64.b64decode(content).decode()
        case "i":
            return int(content)
        case "type":
            return _TYPES.get(content)
        case "list":
            return [_attribute({key: item}) for key, items in content.items() for item in items]
    return content


def _constants(manifest: Sequence[Mapping[str, Any]], weights: bytes) -> dict[str, Tensor]:
    """The constants by name; halves become floats. Raises ValueError for too few bytes, another type or an impossible shape."""
    constants, start = {}, 0
    for entry in (entry for group in manifest for entry in group["weights"]):
        stored = entry.get("quantization", {}).get("dtype", entry["dtype"])
        if stored not in _STORED:
            raise ValueError(f"a constant of type {stored}")
        if any(length < 0 for length in entry["shape"]):
            raise ValueError(f"a constant of shape {entry['shape']}")
        values = np.frombuffer(weights, _STORED[stored], math.prod(entry["shape"]), start).reshape(entry["shape"])
        start += values.nbytes
        constants[entry["name"]] = torch.from_numpy(values.astype(np.float32 if stored != "int32" else np.int32))
    return constants


def _order(nodes: Mapping[str, _Node], outputs: Sequence[tuple[str, int]]) -> list[str]:
    """The names of the nodes that the outputs need, each after its inputs. Raises ValueError if a node needs itself."""
    order: dict[str, None] = {}
    waiting = [(name, False) for name, _ in outputs]
    seen = set()
    while waiting:
        name, ready = waiting.pop()
        if ready:
            order[name] = None
        elif name not in seen:
            seen.add(name)
            waiting.append((name, True))
            waiting += [(source, False) for source, _ in nodes[name].inputs]
        elif name not in order:
            raise ValueError(f"the node {name} needs its own output")
    return list(order)


def _kernels(steps: Sequence[tuple[str, _Node]], constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kernels of the convolutions in torch's order of dimensions, `[out, in, height, width]`."""
    kernels = {}
    for _, node in steps:
        if node.op in _CONVOLUTIONS + _DEPTHWISE:
            name = node.inputs[1][0]
            if name not in constants:
                raise ValueError(f"the kernel {name} is not a constant")
            kernel = constants[name]
            if node.op in _DEPTHWISE:
                kernel = kernel.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1)
            else:
                kernel = kernel.permute(3, 2, 0, 1)
            kernels[name] = kernel.contiguous(memory_format=torch.channels_last)
    return kernels


def _same(x: Tensor, size: Sequence[int], stride: Sequence[int], value: float = 0.0) -> Tensor:
    """TensorFlow's padding SAME of `[batch, channels, height, width]`: an odd pixel goes to the bottom or right."""
    pads: list[int] = []
    for length, k, s in zip(reversed(x.shape[2:]), reversed(size), reversed(stride), strict=True):
        total = max((-(-length // s) - 1) * s + k - length, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads, value=value) if any(pads) else x


def _convolution(attributes: dict[str, Any], x: Tensor, kernel: Tensor, *bias: Tensor) -> Tensor:
    """A convolution with TensorFlow's padding, and what is fused with it: a bias and an activation."""
    stride, fused = attributes["strides"][1:3], attributes.get("fused_ops", [])
    x = x.permute(0, 3, 1, 2)
    if attributes["padding"] == "SAME":
        x = _same(x, kernel.shape[2:], stride)
    y = functional.conv2d(
        x, kernel, bias[0] if "BiasAdd" in fused else None, stride, groups=x.shape[1] // kernel.shape[1]
    )
    if "Relu6" in fused:
        y = y.clamp_(0, 6)
    elif "Relu" in fused:
        y = y.relu_()
    return y.permute(0, 2, 3, 1)


def _max_pool(attributes: dict[str, Any], x: Tensor) -> Tensor:
    size, stride = attributes["ksize"][1:3], attributes["strides"][1:3]
    x = x.permute(0, 3, 1, 2)
    if attributes["padding"] == "SAME":
        x = _same(x, size, stride, -math.inf)
    return functional.max_pool2d(x, size, stride).permute(0, 2, 3, 1)


def _resize(attributes: dict[str, Any], x: Tensor, size: Tensor) -> Tensor:
    """Bilinear, with the centres of pixels or, as TensorFlow once did, with their corners at the same places."""
    height, width = size.tolist()
    x = x.permute(0, 3, 1, 2).float()
    if attributes.get("align_corners") or attributes.get("half_pixel_centers"):
        aligned = bool(attributes.get("align_corners"))
        return functional.interpolate(x, (height, width), mode="bilinear", align_corners=aligned).permute(0, 2, 3, 1)
    for dim, length in ((2, height), (3, width)):
        place = torch.arange(length) * (x.shape[dim] / length)
        low = place.long()
        high = (low + 1).clamp(max=x.shape[dim] - 1)
        share = (place - low).view(-1, 1) if dim == 2 else place - low
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, high), share)
    return x.permute(0, 2, 3, 1)


def _strided_slice(attributes: dict[str, Any], x: Tensor, begin: Tensor, end: Tensor, step: Tensor) -> Tensor:
    masks = [attributes.get(f"{name}_mask", 0) for name in ("begin", "end", "shrink_axis", "new_axis", "ellipsis")]
    index: list[Any] = []
    for i, (low, high, by) in enumerate(zip(begin.tolist(), end.tolist(), step.tolist(), strict=True)):
        no_begin, no_end, shrink, new, ellipsis = (mask >> i & 1 for mask in masks)
        if ellipsis:
            index.append(...)
        elif new:
            index.append(None)
        elif shrink:
            index.append(low)
        else:
            index.append(slice(None if no_begin else low, None if no_end else high, by))
    return x[tuple(index)]


def _squeeze(attributes: dict[str, Any], x: Tensor) -> Tensor:
    dims = attributes.get("squeeze_dims") or [i for i, length in enumerate(x.shape) if length == 1]
    return x.squeeze(tuple(dims))


def _top_k(_: dict[str, Any], x: Tensor, k: Tensor) -> list[Tensor]:
    values, indices = x.topk(int(k))
    return [values, indices.int()]


def _reduced(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def computed(attributes: dict[str, Any], x: Tensor, dims: Tensor) -> Tensor:
        return reduce(x, dims.flatten().tolist(), keepdim=bool(attributes.get("keep_dims")))

    return computed


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operation without attributes."""
    return lambda _, *tensors: function(*tensors)


def _int(value: int | Sequence[int]) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


_OPERATIONS: dict[str, Callable[..., Tensor | Sequence[Tensor]]] = {
    **dict.fromkeys(_CONVOLUTIONS + _DEPTHWISE, _convolution),
    "MaxPool": _max_pool,
    "ResizeBilinear": _resize,
    "StridedSlice": _strided_slice,
    "Squeeze": _squeeze,
    "TopKV2": _top_k,
    "Sum": _reduced(torch.sum),
    "Max": _reduced(torch.amax),
    "Identity": _plain(lambda x: x),
    "Abs": _plain(torch.abs),
    "Exp": _plain(torch.exp),
    "Reciprocal": _plain(torch.reciprocal),
    "Sigmoid": _plain(torch.sigmoid),
    "AddV2": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "RealDiv": _plain(torch.div),
    "FloorDiv": _plain(lambda x, y: torch.div(x, y, rounding_mode="floor")),
    "SquaredDifference": _plain(lambda x, y: (x - y).square()),
    "Maximum": _plain(torch.maximum),
    "Minimum": _plain(torch.minimum),
    "Less": _plain(torch.lt),
    "Greater": _plain(torch.gt),
    "GreaterEqual": _plain(torch.ge),
    "Equal": _plain(torch.eq),
    "LogicalAnd": _plain(torch.logical_and),
    "Select": _plain(torch.where),
    "AddN": _plain(lambda *tensors: torch.stack(tensors).sum(0)),
    "Shape": _plain(lambda x: _int(x.shape)),
    "Size": _plain(lambda x: _int(x.numel())),
    "Range": _plain(lambda start, end, step: torch.arange(int(start), int(end), int(step), dtype=start.dtype)),
    "Fill": _plain(lambda shape, value: torch.full(shape.tolist(), value.item(), dtype=value.dtype)),
    "Tile": _plain(lambda x, counts: x.repeat(counts.tolist())),
    "Reshape": _plain(lambda x, shape: x.reshape(shape.tolist())),
    "ExpandDims": _plain(lambda x, dim: x.unsqueeze(int(dim))),
    "ConcatV2": _plain(lambda *tensors: torch.cat(tensors[:-1], int(tensors[-1]))),
    "GatherNd": _plain(lambda x, index: x[index.long().unbind(-1)]),
    "Cast": lambda attributes, x: x.to(attributes["DstT"]),
    "Pack": lambda attributes, *tensors: torch.stack(tensors, attributes.get("axis", 0)),
    "Unpack": lambda attributes, x: x.unbind(attributes.get("axis", 0)),
    "Split": lambda attributes, dim, x: x.chunk(attributes["num_split"], int(dim)),
    "ArgMax": lambda attributes, x, dim: x.argmax(int(dim)).to(attributes.get("output_type") or torch.int64),
}
