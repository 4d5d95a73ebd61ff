"""Servers that speak TensorFlow Serving's protocol over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote

import msgspec
import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.measure.records import Answer
from hasten.measure.targets.http import HttpOptions, HttpTarget
from hasten.measure.targets.replies import NOTHING, expect_success, read
from hasten.measure.targets.target import TargetError
from hasten.measure.targets.tensors import TensorSpec, bytes_of, datatype_of, tensors_of
from hasten.measure.workload import Item, Tensors

__all__ = ["DATATYPES", "TfServingTarget"]

DATATYPES = {
    "DT_FLOAT": ("FP32", 1),
    "DT_DOUBLE": ("FP64", 2),
    "DT_INT32": ("INT32", 3),
    "DT_UINT8": ("UINT8", 4),
    "DT_INT16": ("INT16", 5),
    "DT_INT8": ("INT8", 6),
    "DT_STRING": ("BYTES", 7),
    "DT_INT64": ("INT64", 9),
    "DT_BOOL": ("BOOL", 10),
    "DT_UINT16": ("UINT16", 17),
    "DT_HALF": ("FP16", 19),
    "DT_UINT32": ("UINT32", 22),
    "DT_UINT64": ("UINT64", 23),
}
"""TensorFlow's datatypes: KServe's names and the numbers of TensorFlow's types.proto."""


class TfServingTarget(HttpTarget):
    """Asks for predictions.

    Args:
        url: Of the server.
        model: As the server calls it.
        version: Of the model; None for the latest.
        signature_name: Which of the model's signatures is asked.
        form: "rows" sends the instances of a batch one after another, "columns" whole tensors.
        options: How requests are made.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: str | None = None,
        signature_name: str = "serving_default",
        form: Literal["rows", "columns"] = "rows",
        options: HttpOptions | None = None,
    ) -> None:
        super().__init__(url, options)
        self._model, self._version = model, version
        self._signature = signature_name
        self._form = form
        self._path = f"/v1/models/{quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{quote(version, safe='')}"

    def describe(self) -> Mapping[str, object]:
        """The server, the model, and how tensors travel."""
        return {
            "kind": "tfserving",
            "url": self.client.url,
            "model": self._model,
            "version": self._version,
            "signature": self._signature,
            "tensors": self._form,
        }

    async def signature(self) -> tuple[TensorSpec, ...]:
        """The inputs, as the model's metadata has them."""
        reply = await self.client.request("GET", f"{self._path}/metadata")
        expect_success(reply)
        metadata = read(reply.body, _METADATA, "the model's metadata").metadata
        definitions = metadata.signature_def.signature_def
        if self._signature not in definitions:
            raise TargetError(
                f"the model has no signature {self._signature!r}", allowed=", ".join(definitions)
            )
        inputs = definitions[self._signature].inputs
        return tuple(_spec(name, info) for name, info in inputs.items())

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """Asks for a prediction and looks whether there is one of each row."""
        inputs = tensors_of(work)
        rows = _rows(inputs) if self._form == "rows" else None
        asked: dict[str, Any] = {"signature_name": self._signature}
        if rows is not None:
            asked["instances"] = rows
        else:
            asked["inputs"] = {name: _values(array) for name, array in inputs.items()}
        reply = await self.client.request(
            "POST", f"{self._path}:predict", msgspec.json.encode(asked), clock=answer.clock
        )
        expect_success(reply)
        prediction = read(reply.body, _PREDICTION, "the prediction")
        if rows is None:
            if prediction.outputs == NOTHING:
                raise TargetError("the prediction has no outputs")
        elif prediction.predictions is None or len(prediction.predictions) != len(rows):
            got = len(prediction.predictions or ())
            raise TargetError(f"there are {got} predictions of {len(rows)} instances")
        answer.arrive(at=reply.at)


class _Dimension(msgspec.Struct):
    size: int | str = -1


class _Shape(msgspec.Struct):
    dim: list[_Dimension] = []
    unknown_rank: bool = False


class _Info(msgspec.Struct):
    dtype: str
    tensor_shape: _Shape = msgspec.field(default_factory=_Shape)


class _Definition(msgspec.Struct):
    inputs: dict[str, _Info] = {}


class _Definitions(msgspec.Struct):
    signature_def: dict[str, _Definition] = {}


class _Fields(msgspec.Struct):
    signature_def: _Definitions


class _Metadata(msgspec.Struct):
    metadata: _Fields


class _Prediction(msgspec.Struct):
    predictions: list[msgspec.Raw] | None = None
    outputs: msgspec.Raw = NOTHING


_METADATA = msgspec.json.Decoder(_Metadata)
_PREDICTION = msgspec.json.Decoder(_Prediction)


def _spec(name: str, info: _Info) -> TensorSpec:
    datatype = DATATYPES.get(info.dtype, (info.dtype, 0))[0]
    if info.tensor_shape.unknown_rank:
        raise TargetError(f"the model does not say the shape of its input {name!r}")
    try:
        shape = tuple(int(dimension.size) for dimension in info.tensor_shape.dim)
    except ValueError as error:
        raise TargetError(f"the shape of the input {name!r} is malformed: {error}") from error
    return TensorSpec(name, datatype, shape)


def _rows(inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Instances: bare values for one input, else objects with a value by name."""
    sizes = {array.shape[:1] for array in inputs.values()}
    if len(sizes) != 1 or () in sizes:
        raise UsageError(
            "inputs that are sent as rows have one first dimension for all", do="use columns"
        )
    columns = {name: _values(array) for name, array in inputs.items()}
    if len(columns) == 1:
        return list(next(iter(columns.values())))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(array: NDArray[Any]) -> list[Any]:
    """Nested lists; bytes as TensorFlow Serving has them in JSON."""
    if datatype_of(array) != "BYTES":
        values: list[Any] = array.tolist()
        return values
    encoded = [
        {"b64": base64.b64encode(bytes_of(value)).decode()} for value in array.ravel().tolist()
    ]
    boxed = np.empty(len(encoded), object)
    boxed[:] = encoded
    nested: list[Any] = boxed.reshape(array.shape).tolist()
    return nested
