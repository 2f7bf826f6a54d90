"""Graph models: TensorFlow's operations, of which padding, resizing and slicing differ from torch's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tasks.extract.tfjs import GraphModel
from tests.support.graph_models import graph_model


def computed(
    op: str, x: np.ndarray, constants: Mapping[str, np.ndarray], attributes: Mapping[str, Any], number: int = 0
) -> np.ndarray:
    """One operation on x and constants, in this order."""
    model = GraphModel(*graph_model({"y": (op, ["x", *constants], attributes)}, constants, f"y:{number}"))
    return model(torch.from_numpy(x))[0].numpy()


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's definition for padding SAME, place by place: `[h, w, in]`, `[k, k, in, out]`."""
    k, (height, width) = len(kernel), x.shape[:2]
    rows, columns = -(-height // stride), -(-width // stride)
    before = [max((n - 1) * stride + k - length, 0) // 2 for n, length in ((rows, height), (columns, width))]
    y = np.zeros((rows, columns, kernel.shape[3]))
    for i, j, a, b in np.ndindex(rows, columns, k, k):
        r, c = i * stride + a - before[0], j * stride + b - before[1]
        if 0 <= r < height and 0 <= c < width:
            y[i, j] += x[r, c] @ kernel[a, b]
    return y


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [3, 2, 5])
def test_convolutions_pad_as_tensorflow_does(side: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(6, 9, 2)).astype(np.float32), rng.normal(size=(side, side, 2, 4)).astype(np.float32)
    wanted = convolved(x, kernel, stride)
    attributes = {"strides": [1, stride, stride, 1], "padding": "SAME"}
    np.testing.assert_allclose(computed("Conv2D", x[None], {"k": kernel}, attributes)[0], wanted, atol=1e-4)
    alone = np.zeros((side, side, 2, 2), np.float32)  # each channel by itself
    alone[:, :, [0, 1], [0, 1]] = kernel[..., 0]
    wanted = (convolved(x, alone, stride) + np.array([0.5, -0.5])).clip(0, 6)
    fused = attributes | {"fused_ops": ["BiasAdd", "Relu6"]}
    constants = {"k": kernel[..., :1].copy(), "b": np.array([0.5, -0.5], np.float32)}
    y = computed("FusedDepthwiseConv2dNative", x[None], constants, fused)
    np.testing.assert_allclose(y[0], wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({}, [0, 0.5, 1, 1]),
        ({"half_pixel_centers": True}, [0, 0.25, 0.75, 1]),
        ({"align_corners": True}, [0, 1 / 3, 2 / 3, 1]),
    ],
)
def test_the_three_ways_to_resize(attributes: dict[str, bool], wanted: list[float]) -> None:
    row = np.array([0.0, 1.0], np.float32)
    size = {"size": np.array([4, 1], np.int32)}
    np.testing.assert_allclose(computed("ResizeBilinear", row.reshape(1, 2, 1, 1), size, attributes).ravel(), wanted)
    size = {"size": np.array([1, 4], np.int32)}
    np.testing.assert_allclose(computed("ResizeBilinear", row.reshape(1, 1, 2, 1), size, attributes).ravel(), wanted)


def test_slices_follow_their_masks() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    bounds = {name: np.array(v, np.int32) for name, v in (("b", [1, 1, 0]), ("e", [2, 0, 3]), ("s", [1, 1, 2]))}
    y = computed("StridedSlice", x, bounds, {"shrink_axis_mask": 1, "end_mask": 2})
    np.testing.assert_array_equal(y, x[1, 1:, 0:3:2])


def test_nodes_are_computed_after_their_inputs_and_outputs_are_numbered() -> None:
    nodes = {
        "z": ("Mul", ["y:1", "half"], {}),
        "y": ("Unpack", ["x"], {"axis": 1}),
    }
    model = GraphModel(*graph_model(nodes, {"half": np.array(0.5, np.float16)}, "z:0"))
    np.testing.assert_allclose(model(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))[0], [1, 2])


def test_what_is_no_graph_model_is_refused() -> None:
    graph, weights = graph_model({"y": ("AddV2", ["x", "c"], {})}, {"c": np.ones(3, np.float32)}, "y:0")
    assert GraphModel(graph, weights)(torch.zeros(3))[0].tolist() == [1, 1, 1]
    unknown = graph_model({"y": ("Lambda", ["x"], {})}, {}, "y:0")
    for broken in ((graph, weights[:-1]), (b"no json", weights), (b"{}", weights), (b"[]", weights), unknown):
        with pytest.raises(ValueError):
            GraphModel(*broken)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("modelTopology", "node", 0, "attr", "axis"), {}),
        (("modelTopology", "node", 0, "attr", "axis"), {"i": None}),
        (("modelTopology", "node", 0, "attr", "axis"), {"s": "a"}),
        (("modelTopology", "node", 0, "attr", "axis"), {"list": 3}),
        (("modelTopology", "node", 0, "input"), ["x", "gone"]),
        (("modelTopology", "node", 0, "input"), ["x", "y"]),
        (("modelTopology", "node", 0, "input"), [0]),
        (("modelTopology", "node", 0, "input"), ["x:first"]),
        (("weightsManifest", 0, "weights", 0, "shape"), [-3]),
        (("weightsManifest", 0, "weights", 0, "shape"), [10**9, 10**9, 10**9]),
        (("weightsManifest", 0, "weights", 0, "shape"), ["3"]),
        (("weightsManifest", 0, "weights", 0, "quantization"), []),
        (("weightsManifest", 0, "weights", 0, "dtype"), []),
        (("signature", "inputs"), {}),
        (("signature", "outputs"), []),
    ],
)
def test_a_graph_with_a_wrong_part_is_refused(place: tuple[str | int, ...], value: Any) -> None:
    graph, weights = graph_model({"y": ("AddV2", ["x", "c"], {"axis": 0})}, {"c": np.ones(3, np.float32)}, "y:0")
    content = json.loads(graph)
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(ValueError):
        GraphModel(json.dumps(content).encode(), weights)


def test_a_graph_of_deeply_nested_json_is_refused() -> None:
    with pytest.raises(ValueError):
        GraphModel(b"[" * 100_000, b"")
