"""How a worker generates: requests in, the outputs of each step out."""

from __future__ import annotations

from dataclasses import replace
from threading import Thread

from hasten.errors import GenerationError, UsageError
from hasten.generation.engine import Engine
from hasten.serve.desk import Desk, Send
from hasten.serve.wire import (
    Cancel,
    Embed,
    Fault,
    LoadAdapter,
    Open,
    Ping,
    Progress,
    Refused,
    Step,
    Submit,
    ToWorker,
    UnloadAdapter,
    WireError,
    decode_request,
)
from hasten.types import EngineStatistics, Output

__all__ = ["GenerationWork"]


class GenerationWork:
    """Runs an engine.

    Args:
        engine: Just opened.
        send: Sends a message to the server.

    Attributes:
        engine: As given.
        steps: How many have run.
    """

    def __init__(self, engine: Engine, send: Send) -> None:
        self.engine = engine
        self.steps = 0
        self._send = send
        self._desk = Desk(send)

    @property
    def working(self) -> bool:
        """Whether there is something to do."""
        return self.engine.has_work

    @property
    def dimensions(self) -> None:
        """None."""

    @property
    def context(self) -> int:
        """Tokens of the longest sequence."""
        return self.engine.context

    @property
    def statistics(self) -> EngineStatistics:
        """Of the engine."""
        return self.engine.statistics()

    def take(self, message: ToWorker) -> None:
        """Submits, cancels, loads and unloads."""
        engine, desk = self.engine, self._desk
        match message:
            case Submit():
                self._submit(message)
            case Cancel(number):
                desk.cancel(number)
                engine.cancel(str(number))
            case LoadAdapter(number, name, path):
                desk.prepare(
                    number,
                    lambda: engine.load_adapter(name, path),
                    lambda: engine.unload_adapter(name),
                )
            case UnloadAdapter(number, name):
                desk.answer(number, lambda: engine.unload_adapter(name))
            case Embed(number):
                error = UsageError(
                    f"{engine.model.name} is loaded to generate text",
                    do="ask an embedding model for vectors",
                )
                self._send(Refused(number, Fault.of(error)))
            case Open() | Ping():
                raise WireError(f"{type(message).__name__} came at the wrong time")

    def run(self) -> None:
        """Runs steps for ever."""
        Thread(target=self.engine.prepare_structures, daemon=True).start()
        while True:
            self.engine.wait()
            outputs = self.engine.step()
            self.steps += 1
            self._tell(outputs)

    def _submit(self, message: Submit) -> None:
        number = message.number
        try:
            request = replace(decode_request(message.request), id=str(number))
        except WireError as error:
            refusal = UsageError(f"the request is malformed: {error}")
            self._send(Refused(number, Fault.of(refusal)))
            return

        def accept() -> None:
            self.engine.submit(request)

        if request.sampling.structure is None:
            self._desk.answer(number, accept)
        else:
            self._desk.prepare(number, accept, lambda: self.engine.cancel(request.id))

    def _tell(self, outputs: list[Output]) -> None:
        try:
            self._send(Step([Progress.of(output) for output in outputs], self.statistics))
        except WireError as error:
            self._tell_apart(outputs, str(error))

    def _tell_apart(self, outputs: list[Output], why: str) -> None:
        """What is too large for one message goes into several; if it cannot, it ends."""
        if len(outputs) > 1:
            middle = len(outputs) // 2
            self._tell(outputs[:middle])
            self._tell(outputs[middle:])
            return
        (output,) = outputs
        self.engine.cancel(output.request_id)
        error = GenerationError(f"an output is too large to leave the engine: {why}")
        self._send(Refused(int(output.request_id), Fault.of(error)))
