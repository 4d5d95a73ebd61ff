"""Servers that speak KServe's protocol, version 2, over gRPC."""

from __future__ import annotations

from collections.abc import Mapping

from hasten.measure.records import Answer
from hasten.measure.targets.grpc import GrpcTarget
from hasten.measure.targets.http import HttpOptions
from hasten.measure.targets.target import TargetError
from hasten.measure.targets.tensors import (
    TensorSpec,
    check_size,
    datatype_of,
    tensors_of,
    to_bytes,
)
from hasten.measure.workload import Item, Tensors

__all__ = ["KServeGrpcTarget"]

SERVICE = "inference.GRPCInferenceService"
MESSAGES = """
message ModelMetadataRequest { string name = 1; string version = 2; }
message TensorMetadata { string name = 1; string datatype = 2; repeated int64 shape = 3; }
message ModelMetadataResponse { repeated TensorMetadata inputs = 4; }
message InferTensor { string name = 1; string datatype = 2; repeated int64 shape = 3; }
message ModelInferRequest {
    string model_name = 1; string model_version = 2;
    repeated InferTensor inputs = 5; repeated bytes raw_input_contents = 7;
}
message ModelInferResponse {
    repeated InferTensor outputs = 5; repeated bytes raw_output_contents = 6;
}
"""
"""From https://github.com/kserve/open-inference-protocol, grpc_service.proto."""


class KServeGrpcTarget(GrpcTarget):
    """Asks for inferences, tensors as bytes.

    Args:
        url: Of the server: "grpc://HOST:PORT", or "grpcs://" for TLS.
        model: As the server calls it.
        version: Of the model; None for the one that the server chooses.
        options: How requests are made.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: str | None = None,
        options: HttpOptions | None = None,
    ) -> None:
        super().__init__(url, options, service=SERVICE, messages=MESSAGES)
        self._model, self._version = model, version

    def describe(self) -> Mapping[str, object]:
        """The server and the model."""
        return {
            "kind": "kserve",
            "url": self._url,
            "model": self._model,
            "version": self._version,
            "tensors": "binary",
        }

    async def signature(self) -> tuple[TensorSpec, ...]:
        """The inputs, as the model's metadata has them."""
        request = self._messages["ModelMetadataRequest"](
            name=self._model, version=self._version or ""
        )
        data = await self._call("ModelMetadata", request)
        metadata = self._read("ModelMetadataResponse", data)
        return tuple(TensorSpec(o.name, o.datatype, tuple(o.shape)) for o in metadata.inputs)

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """Asks for an inference and looks whether its outputs are whole."""
        inputs = tensors_of(work)
        tensor = self._messages["InferTensor"]
        request = self._messages["ModelInferRequest"](
            model_name=self._model,
            model_version=self._version or "",
            inputs=[
                tensor(name=name, datatype=datatype_of(array), shape=array.shape)
                for name, array in inputs.items()
            ],
            raw_input_contents=[to_bytes(array) for array in inputs.values()],
        )
        data = await self._call("ModelInfer", request)
        at = answer.clock()
        reply = self._read("ModelInferResponse", data)
        if not reply.outputs:
            raise TargetError("the inference has no outputs")
        raw = reply.raw_output_contents
        if raw and len(raw) != len(reply.outputs):
            raise TargetError(f"the inference has {len(reply.outputs)} outputs, {len(raw)} data")
        for output, values in zip(reply.outputs, raw, strict=False):
            check_size(output.name, output.datatype, output.shape, len(values))
        answer.arrive(at=at)
