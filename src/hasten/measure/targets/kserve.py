"""Servers that speak KServe's protocol, version 2, over HTTP: Triton, MLServer and others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.measure.records import Answer
from hasten.measure.targets.http import HttpOptions, HttpTarget, Reply
from hasten.measure.targets.replies import NOTHING, Count, expect_success, read
from hasten.measure.targets.target import TargetError
from hasten.measure.targets.tensors import (
    TensorSpec,
    bytes_of,
    check_size,
    datatype_of,
    tensors_of,
    to_bytes,
)
from hasten.measure.workload import Item, Tensors

__all__ = ["KServeTarget"]

HEADER_LENGTH = "inference-header-content-length"


class KServeTarget(HttpTarget):
    """Asks for inferences.

    Args:
        url: Of the server.
        model: As the server calls it.
        version: Of the model; None for the one that the server chooses.
        binary: Tensors go and come as bytes, an extension of the protocol; else as JSON.
        options: How requests are made.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: str | None = None,
        binary: bool = True,
        options: HttpOptions | None = None,
    ) -> None:
        super().__init__(url, options)
        self._model, self._version = model, version
        self._binary = binary
        self._path = f"/v2/models/{quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{quote(version, safe='')}"

    def describe(self) -> Mapping[str, object]:
        """The server, the model, and how tensors travel."""
        return {
            "kind": "kserve",
            "url": self.client.url,
            "model": self._model,
            "version": self._version,
            "tensors": "binary" if self._binary else "json",
        }

    async def signature(self) -> tuple[TensorSpec, ...]:
        """The inputs, as the model's metadata has them."""
        reply = await self.client.request("GET", self._path)
        expect_success(reply)
        metadata = read(reply.body, _METADATA, "the model's metadata")
        return tuple(TensorSpec(one.name, one.datatype, one.shape) for one in metadata.inputs)

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """Asks for an inference and looks whether its outputs are whole."""
        body, headers = _request(tensors_of(work), binary=self._binary)
        reply = await self.client.request(
            "POST", f"{self._path}/infer", body, headers=headers, clock=answer.clock
        )
        expect_success(reply)
        _check(reply)
        answer.arrive(at=reply.at)


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]


class _Metadata(msgspec.Struct):
    inputs: list[_Tensor]


class _Parameters(msgspec.Struct):
    binary_data_size: Count | None = None


class _Output(_Tensor):
    parameters: _Parameters | None = None
    data: msgspec.Raw = NOTHING


class _Inference(msgspec.Struct):
    outputs: list[_Output]


_METADATA = msgspec.json.Decoder(_Metadata)
_INFERENCE = msgspec.json.Decoder(_Inference)


def _request(inputs: Mapping[str, NDArray[Any]], *, binary: bool) -> tuple[bytes, dict[str, str]]:
    tensors, blobs = [], []
    for name, array in inputs.items():
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": datatype_of(array),
            "shape": array.shape,
        }
        if binary:
            blobs.append(to_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = _values(array)
        tensors.append(tensor)
    if not binary:
        return msgspec.json.encode({"inputs": tensors}), {"Content-Type": "application/json"}
    head = msgspec.json.encode({"inputs": tensors, "parameters": {"binary_data_output": True}})
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return b"".join((head, *blobs)), headers


def _values(array: NDArray[Any]) -> list[Any]:
    """All values in a row, bytes as the text that they spell."""
    values: list[Any] = array.ravel().tolist()
    if datatype_of(array) != "BYTES":
        return values
    try:
        return [bytes_of(one).decode() for one in values]
    except UnicodeDecodeError as error:
        raise UsageError(
            "bytes that are no text cannot be sent as JSON", do="send tensors as bytes"
        ) from error


def _check(reply: Reply) -> None:
    length = reply.headers.get(HEADER_LENGTH)
    head, blob = reply.body, b""
    if length is not None:
        if not length.isdecimal() or int(length) > len(head):
            raise TargetError(f"the answer's {HEADER_LENGTH} is {length}, its body {len(head)}")
        head, blob = head[: int(length)], head[int(length) :]
    outputs = read(head, _INFERENCE, "the inference").outputs
    if not outputs:
        raise TargetError("the inference has no outputs")
    rest = len(blob)
    for one in outputs:
        size = one.parameters.binary_data_size if one.parameters else None
        if size is not None:
            check_size(one.name, one.datatype, one.shape, size)
            rest -= size
        elif one.data == NOTHING:
            raise TargetError(f"the output {one.name!r} has no data")
    if rest:
        raise TargetError(f"the outputs' sizes differ by {abs(rest)} bytes from what came")
