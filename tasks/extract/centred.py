"""A pose bundle without a person detector, for pictures of one person whose place is known.

MediaPipe's task reads the landmarks from a square around the person that its detector finds. Here a network of four operations
takes the detector's place. It always reports the same person: hips in the middle of the picture, and a square that is the whole
picture. Whether somebody is there is then for the landmark network alone to say.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tasks.extract.pose_bundle import NETWORKS, stored_zip, with_normalisation

SIDE = 224  # pixels of the detector's input
ANCHORS = 2254  # places for persons in its output, two in each field of a grid of 28 x 28 first
_FIRST = 0.5 / 28  # where the first of them is, as a share of the picture
_SURE = 100.0  # logit of a person
# The task's square has 2.5 times the distance between a person's hips and another point, which is above them.
_ABOVE = 0.5 - 1 / 2.5


def bundle(model: Path) -> bytes:
    """The bundle `model` with the detector replaced."""
    detector, landmarks = NETWORKS
    with zipfile.ZipFile(model) as archive:
        content = archive.read(landmarks.name)
    replaced = with_normalisation(_network(), detector.mean, detector.std)
    return stored_zip([(detector.name, replaced), (landmarks.name, content)])


def _network() -> bytes:
    """A TFLite network with the detector's input and outputs: (mean of the picture) * 0 + constants."""
    import flatbuffers
    from mediapipe.tasks.metadata import schema_py_generated as schema

    boxes, scores = _outputs()
    buffers = [schema.BufferT()]
    tensors: list[Any] = []

    def tensor(name: str, shape: list[int], values: np.ndarray | None = None) -> int:
        if values is not None:
            buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
        kind = schema.TensorType.INT32 if values is not None and values.dtype == np.int32 else schema.TensorType.FLOAT32
        buffer = 0 if values is None else len(buffers) - 1
        tensors.append(schema.TensorT(name=name, shape=shape, type=kind, buffer=buffer))
        return len(tensors) - 1

    picture, mean = tensor("input_1", [1, SIDE, SIDE, 3]), tensor("mean", [1, 1, 1, 1])
    flat, nothing = tensor("flat", [1, 1, 1]), tensor("nothing", [1, 1, 1])
    outputs = [tensor("Identity", list(boxes.shape)), tensor("Identity_1", list(scores.shape))]
    kinds, options = schema.BuiltinOperator, schema.BuiltinOptions
    codes = [kinds.MEAN, kinds.RESHAPE, kinds.MUL, kinds.ADD]

    def operator(code: int, inputs: list[int], output: int, kind: int, values: Any) -> Any:
        return schema.OperatorT(
            opcodeIndex=codes.index(code),
            inputs=inputs,
            outputs=[output],
            builtinOptionsType=kind,
            builtinOptions=values,
        )

    axes, shape = np.array([1, 2, 3], np.int32), np.array([1, 1, 1], np.int32)
    zero = tensor("zero", [1, 1, 1], np.zeros((1, 1, 1), np.float32))
    operators = [
        operator(
            kinds.MEAN,
            [picture, tensor("axes", [3], axes)],
            mean,
            options.ReducerOptions,
            schema.ReducerOptionsT(keepDims=True),
        ),
        operator(
            kinds.RESHAPE,
            [mean, tensor("shape", [3], shape)],
            flat,
            options.ReshapeOptions,
            schema.ReshapeOptionsT(newShape=shape.tolist()),
        ),
        operator(kinds.MUL, [flat, zero], nothing, options.MulOptions, schema.MulOptionsT()),
        *(
            operator(
                kinds.ADD,
                [nothing, tensor(name, list(values.shape), values)],
                output,
                options.AddOptions,
                schema.AddOptionsT(),
            )
            for name, values, output in zip(("boxes", "scores"), (boxes, scores), outputs, strict=True)
        ),
    ]
    graph = schema.SubGraphT(tensors=tensors, inputs=[picture], outputs=outputs, operators=operators, name="main")
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=1) for code in codes],
        subgraphs=[graph],
        buffers=buffers,
        description="one person who fills the picture",
    )
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _outputs() -> tuple[np.ndarray, np.ndarray]:
    """The detector's outputs: boxes and four points `[1, ANCHORS, 12]` in pixels from the anchor, logits `[1, ANCHORS, 1]`."""
    boxes, scores = np.zeros((1, ANCHORS, 12), np.float32), np.full((1, ANCHORS, 1), -_SURE, np.float32)
    hips, above = [0.5 - _FIRST, 0.5 - _FIRST], [0.5 - _FIRST, _ABOVE - _FIRST]
    boxes[0, 0] = np.array([*hips, 1.0, 1.0, *hips, *above, *hips, *above]) * SIDE
    scores[0, 0] = _SURE
    return boxes, scores
