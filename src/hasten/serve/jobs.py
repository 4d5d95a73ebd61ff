"""What flows through the server, whatever the protocol. Each field says who fills it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hasten.types import SamplingParams, TokenLogprobs

__all__ = [
    "MAX_OUTPUT",
    "Answer",
    "CacheState",
    "CallPiece",
    "Client",
    "Conversation",
    "EmbedJob",
    "Embeddings",
    "EndReason",
    "Ended",
    "Event",
    "Job",
    "Piece",
    "Timing",
    "ToolChoice",
    "Usage",
]

MAX_OUTPUT = 1 << 24
"""`SamplingParams.max_tokens` where the client sets none: the context is the limit."""

EndReason = Literal["stop", "length", "tool_calls"]
CacheState = Literal["hit", "joined", "miss", "off"]
"""Where an answer comes from; "off" where no cache was asked."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks; filled by authentication.

    Attributes:
        name: Of the API key, for logs and metrics; "" without keys.
        tenant: Clients of different tenants share neither cached prefixes nor cached answers.
        priority: Lower numbers run first.
        concurrency: Requests at once; None sets no limit.
        requests_per_minute: None sets no limit.
        tokens_per_minute: Of prompts and outputs; None sets no limit.
        models: Names of the models that it may use, as the registry knows them; None allows all.
        admin: May load, unload, pull, create and delete models.
        batch: Nobody waits for the answer: jobs come in as there is room, rather than be refused.
    """

    name: str = ""
    tenant: str = ""
    priority: int = 0
    concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    models: frozenset[str] | None = None
    admin: bool = True
    batch: bool = False

    def may_use(self, model: str) -> bool:
        """Whether the client may use a model, by the name that the registry knows."""
        return self.models is None or model in self.models


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the answer must call a tool; filled by a protocol.

    Attributes:
        mode: "auto" leaves it to the model, "none" hides the tools, "required" demands a call.
        name: With "required", the one tool to call.
        parallel: Whether one answer may hold several calls.
    """

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said so far, as chat templates take it; filled by a protocol.

    Attributes:
        messages: Each with "role" and "content" (a text, or None), and perhaps
            "reasoning_content", "tool_calls" (``{"id", "type": "function", "function": {"name",
            "arguments"}}`` with arguments as a mapping) or "tool_call_id" and "name".
        tools: ``{"type": "function", "function": {"name", "description", "parameters"}}`` each.
        tool_choice: Whether one must be called.
        extra: Further values for the template; names of `ChatTemplate.ALLOWED` only.
        continue_last: The last message is the assistant's and its text is to be continued.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    extra: Mapping[str, Any] = field(default_factory=dict)
    continue_last: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One generation that a client asks for; filled by a protocol.

    Attributes:
        id: Of the HTTP request; several jobs of one request append to it.
        model: As the client names it; from `Service` on as the registry knows it.
        prompt: A conversation for the chat template, a text as it is, or tokens.
        sampling: How to choose the output; `MAX_OUTPUT` tokens where the client sets no limit.
        client: Who asks.
        received: When the request came, in seconds of `time.monotonic`.
        timeout: Seconds after which it ends unfinished; None takes the server's own.
        priority: Added to the client's own; lower numbers run first.
        adapter: Name of a LoRA adapter, where the name of the model is not one already.
        keep_alive: Seconds for which the model stays loaded afterwards (Ollama); None takes the
            server's own, negative numbers mean for ever.
        cache: Whether an answer may come from the response cache.
        split: Whether reasoning and tool calls are taken out of the text; a conversation only.
    """

    id: str
    model: str
    prompt: Conversation | str | tuple[int, ...]
    sampling: SamplingParams
    client: Client
    received: float
    timeout: float | None = None
    priority: int = 0
    adapter: str | None = None
    keep_alive: float | None = None
    cache: bool = True
    split: bool = True


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A part of a tool call.

    Attributes:
        number: Which call of the answer, from 0.
        id: Of the call; every piece carries it.
        name: Of the tool; every piece carries it.
        arguments: The next characters of the arguments' JSON text.
    """

    number: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to one of the outputs; filled by `Generation`.

    Attributes:
        index: Which of the job's `n` outputs, from 0.
        content: Text of the answer.
        reasoning: Text of the reasoning before it.
        calls: Parts of tool calls.
        tokens: Ids of the tokens that came; pieces without text may carry some, and text may come
            later than its tokens.
        logprobs: One entry for each of `tokens`, where the job asked for them.
        prompt_logprobs: With the first piece of index 0, where the job asked for them.
    """

    index: int = 0
    content: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """One of the outputs is complete; filled by `Generation`.

    Attributes:
        index: Which of the job's `n` outputs.
        reason: Why it ended; "tool_calls" where it ended by itself and holds at least one.
        stop: The stop string that ended it, if one did.
    """

    index: int
    reason: EndReason
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went, in seconds; filled by `Generation`.

    Attributes:
        total: From the arrival of the request to its last token.
        load: Waiting for the model to be loaded.
        queue: From then to the first token, less `prompt`.
        prompt: Inside the executor until the first token.
        decode: Inside the executor after it.
        ttft: From the arrival of the request to its first token; None without one.
    """

    total: float
    load: float
    queue: float
    prompt: float
    decode: float
    ttft: float | None


@dataclass(frozen=True, slots=True)
class Usage:
    """The last event of a generation: what it took; filled by `Generation`.

    Attributes:
        prompt_tokens: Length of the prompt.
        cached_tokens: Those of them that the prefix cache held.
        output_tokens: Of all outputs together.
        reasoning_tokens: Those of them that belong to reasoning.
        timing: Where the time went.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    timing: Timing


Event = Piece | Ended | Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole output, for clients that do not stream; filled by `collect`.

    Attributes:
        index: Which of the job's `n` outputs.
        content: Its text.
        reasoning: The reasoning before it.
        calls: Its tool calls, each in one piece.
        tokens: Its tokens.
        logprobs: One entry for each of them, where the job asked for them.
        reason: Why it ended.
        stop: The stop string that ended it, if one did.
        prompt_logprobs: Of the prompt's tokens, where the job asked for them; with the first
            output of the prompt alone.
    """

    index: int
    content: str
    reasoning: str
    calls: tuple[CallPiece, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    reason: EndReason
    stop: str | None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """Texts that a client wants vectors of; filled by a protocol.

    Attributes:
        id: Of the HTTP request.
        model: As the client names it.
        texts: Texts, or texts as tokens, at least one.
        client: Who asks.
        received: When the request came, in seconds of `time.monotonic`.
        dimensions: Keep the first so many; None keeps all.
        truncate: Cut texts that are too long, rather than refuse them.
        timeout: Seconds after which it ends unfinished; None takes the server's own.
        keep_alive: As in `Job`.
    """

    id: str
    model: str
    texts: Sequence[str] | Sequence[Sequence[int]]
    client: Client
    received: float
    dimensions: int | None = None
    truncate: bool = False
    timeout: float | None = None
    keep_alive: float | None = None


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What became of an `EmbedJob`.

    Attributes:
        vectors: One a text; float32 little-endian bytes.
        dimensions: Of each vector.
        prompt_tokens: Of all texts together.
        load: Seconds of waiting for the model to be loaded.
        total: Seconds from the arrival of the request.
    """

    vectors: tuple[bytes, ...]
    dimensions: int
    prompt_tokens: int
    load: float
    total: float
