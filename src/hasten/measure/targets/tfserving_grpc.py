"""Servers that speak TensorFlow Serving's protocol over gRPC, without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from hasten.measure.records import Answer
from hasten.measure.targets.grpc import GrpcTarget
from hasten.measure.targets.http import HttpOptions
from hasten.measure.targets.messages import Message
from hasten.measure.targets.target import TargetError
from hasten.measure.targets.tensors import (
    TensorSpec,
    bytes_of,
    datatype_of,
    tensors_of,
    to_bytes,
)
from hasten.measure.targets.tfserving import DATATYPES
from hasten.measure.workload import Item, Tensors

__all__ = ["TfServingGrpcTarget"]

SERVICE = "tensorflow.serving.PredictionService"
MESSAGES = """
message Version { int64 value = 1; }
message ModelSpec { string name = 1; Version version = 2; string signature_name = 3; }
message Dim { int64 size = 1; }
message TensorShape { repeated Dim dim = 2; bool unknown_rank = 3; }
message Tensor {
    int32 dtype = 1; TensorShape tensor_shape = 2;
    bytes tensor_content = 4; repeated bytes string_val = 8;
}
message PredictRequest { ModelSpec model_spec = 1; map<string, Tensor> inputs = 2; }
message PredictResponse { map<string, Tensor> outputs = 1; }
message GetModelMetadataRequest { ModelSpec model_spec = 1; repeated string metadata_field = 2; }
message Any { string type_url = 1; bytes value = 2; }
message GetModelMetadataResponse { map<string, Any> metadata = 2; }
message TensorInfo { int32 dtype = 2; TensorShape tensor_shape = 3; }
message SignatureDef { map<string, TensorInfo> inputs = 1; }
message SignatureDefMap { map<string, SignatureDef> signature_def = 1; }
"""
"""From https://github.com/tensorflow/serving, apis/, and TensorFlow's framework/*.proto."""

NUMBERS = dict(DATATYPES.values())
NAMES = {number: name for name, number in DATATYPES.values()}


class TfServingGrpcTarget(GrpcTarget):
    """Asks for predictions.

    Args:
        url: Of the server: "grpc://HOST:PORT", or "grpcs://" for TLS.
        model: As the server calls it.
        version: Of the model; None for the latest.
        signature_name: Which of the model's signatures is asked.
        options: How requests are made.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: int | None = None,
        signature_name: str = "serving_default",
        options: HttpOptions | None = None,
    ) -> None:
        super().__init__(url, options, service=SERVICE, messages=MESSAGES)
        self._model, self._version = model, version
        self._signature = signature_name

    def describe(self) -> Mapping[str, object]:
        """The server, the model and its signature."""
        return {
            "kind": "tfserving",
            "url": self._url,
            "model": self._model,
            "version": self._version,
            "signature": self._signature,
        }

    async def signature(self) -> tuple[TensorSpec, ...]:
        """The inputs, as the model's metadata has them."""
        request = self._messages["GetModelMetadataRequest"](
            model_spec=self._spec(), metadata_field=["signature_def"]
        )
        data = await self._call("GetModelMetadata", request)
        packed = self._read("GetModelMetadataResponse", data).metadata["signature_def"]
        definitions = self._read("SignatureDefMap", packed.value).signature_def
        if self._signature not in definitions:
            raise TargetError(
                f"the model has no signature {self._signature!r}", allowed=", ".join(definitions)
            )
        inputs = definitions[self._signature].inputs
        return tuple(_described(name, inputs[name]) for name in sorted(inputs))

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """Asks for a prediction and looks whether it has outputs."""
        inputs = tensors_of(work)
        request = self._messages["PredictRequest"](
            model_spec=self._spec(),
            inputs={name: self._tensor(array) for name, array in inputs.items()},
        )
        data = await self._call("Predict", request)
        at = answer.clock()
        if not self._read("PredictResponse", data).outputs:
            raise TargetError("the prediction has no outputs")
        answer.arrive(at=at)

    def _spec(self) -> Message:
        spec = self._messages["ModelSpec"](name=self._model, signature_name=self._signature)
        if self._version is not None:
            spec.version.value = self._version
        return spec

    def _tensor(self, array: NDArray[Any]) -> Message:
        tensor = self._messages["Tensor"](dtype=NUMBERS[datatype_of(array)])
        for size in array.shape:
            tensor.tensor_shape.dim.add(size=size)
        if datatype_of(array) == "BYTES":
            tensor.string_val.extend(map(bytes_of, array.ravel().tolist()))
        else:
            tensor.tensor_content = to_bytes(array)
        return tensor


def _described(name: str, info: Message) -> TensorSpec:
    if info.tensor_shape.unknown_rank:
        raise TargetError(f"the model does not say the shape of its input {name!r}")
    shape = tuple(dimension.size for dimension in info.tensor_shape.dim)
    return TensorSpec(name, NAMES.get(info.dtype, f"datatype {info.dtype}"), shape)
