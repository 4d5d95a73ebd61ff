"""An ONNX file, run in this process by ONNX Runtime."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hasten.errors import MissingDependencyError, ModelFileError
from hasten.measure.records import Answer
from hasten.measure.targets.onnx_files import check_external_data
from hasten.measure.targets.target import TargetError
from hasten.measure.targets.tensors import TensorSpec, tensors_of
from hasten.measure.workload import Item, Tensors

__all__ = ["OnnxTarget"]

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(double)": "FP64",
    "tensor(float)": "FP32",
    "tensor(float16)": "FP16",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(int8)": "INT8",
    "tensor(string)": "BYTES",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(uint8)": "UINT8",
}


class OnnxTarget:
    """Runs a model in threads of its own; requests beyond them wait, which "queue" tells.

    Args:
        path: Of the model; data outside of its file must be within its folder.
        threads: That one request uses; 0 for as many as ONNX Runtime chooses.
        concurrency: Requests that run at once.
        providers: Of ONNX Runtime, in order; all of them must be there.

    Raises:
        ModelFileError: It is no model that ONNX Runtime loads.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 0,
        concurrency: int = 1,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> None:
        self._path = path
        self._threads, self._concurrency = threads, concurrency
        self._session = _open(path, threads, providers)
        self._pool: ThreadPoolExecutor | None = None

    def describe(self) -> Mapping[str, object]:
        """The file, and how it is run."""
        return {
            "kind": "onnx",
            "model": self._path.stem,
            "path": str(self._path),
            "threads": self._threads,
            "concurrency": self._concurrency,
            "providers": self._session.get_providers(),
        }

    async def signature(self) -> tuple[TensorSpec, ...]:
        """The inputs of the model."""
        return tuple(
            TensorSpec(
                one.name,
                DATATYPES.get(one.type, one.type),
                tuple(size if isinstance(size, int) else -1 for size in one.shape),
            )
            for one in self._session.get_inputs()
        )

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """Runs the model. Being cancelled, a run that has begun still goes on to its end."""
        inputs = tensors_of(work)
        waits = time.perf_counter()

        def run() -> tuple[float, float, float]:
            begun = time.perf_counter()
            self._session.run(None, dict(inputs))
            return begun - waits, time.perf_counter() - begun, answer.clock()

        loop = asyncio.get_running_loop()
        try:
            queued, seconds, at = await loop.run_in_executor(self._pool, run)
        except Exception as error:  # ONNX Runtime's own share no class of their own
            raise TargetError(f"ONNX Runtime: {error}") from error
        answer.parts["queue"] = queued
        answer.arrive(model_seconds=seconds, at=at)

    async def __aenter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._concurrency, "onnx")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _open(path: Path, threads: int, providers: tuple[str, ...]) -> Any:  # noqa: ANN401 - it has no types
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX files need the package onnxruntime", do="pip install 'hasten[onnx]'"
        ) from error
    check_external_data(path)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3  # errors come as exceptions; warnings are its makers'
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=list(providers))
    except Exception as error:  # as above
        raise ModelFileError(f"{path}: ONNX Runtime does not load it: {error}") from error
