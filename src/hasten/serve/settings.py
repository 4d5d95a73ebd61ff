"""How a server runs; filled by the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hasten.serve.jobs import Client

__all__ = ["Limits", "ServerSettings"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all together, may take; checked before anything is allocated.

    Attributes:
        body: Bytes of a request's body, decompressed.
        upload: Bytes of an uploaded file.
        files: Files that a tenant may keep.
        file_bytes: Bytes of all files that a tenant may keep; results of batches count, but are
            kept in any case.
        batches: Batches of a tenant that wait, or are remembered.
        headers: Bytes of a request's line and headers.
        header_seconds: From the first byte of a request to the end of its headers.
        body_seconds: From there to the end of its body.
        idle_seconds: A connection without a request is closed after this.
        write_seconds: A client that takes nothing for so long is cut off.
        beat_seconds: A stream that is silent for so long shows that it is alive.
        connections: Open at once; more are refused.
        queue: Sequences for a model beyond those that run; more are refused.
        in_flight: Sequences for all models together; more are refused.
        outputs: Most outputs of one request (`n`, times the prompts of a completion).
        prompts: Most prompts or texts of one request.
        messages: Most messages of a conversation.
        tools: Most tools of a conversation.
        request_seconds: A request's time where it does not set its own, and the most it may set;
            lines of batches may take longer.
    """

    body: int = 16 << 20
    upload: int = 512 << 20
    files: int = 1000
    file_bytes: int = 8 << 30
    batches: int = 100
    headers: int = 32 << 10
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: float = 75.0
    write_seconds: float = 60.0
    beat_seconds: float = 15.0
    connections: int = 1000
    queue: int = 64
    in_flight: int = 1024
    outputs: int = 128
    prompts: int = 2048
    messages: int = 4096
    tools: int = 128
    request_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server runs.

    Attributes:
        host: Address to listen on.
        port: Of TCP; 0 takes a free one.
        keys: Clients by the SHA-256 of their API key, in hexadecimal; empty asks for no key.
        hosts: Names that a Host header may carry besides the address itself and, on loopback,
            localhost.
        origins: Origins whose browsers may ask; none by default.
        certificate: PEM file with the certificate chain, for TLS.
        private_key: PEM file with its key.
        limits: Of requests.
        keep_alive: Seconds for which a model without requests stays loaded; None for ever.
        memory: Bytes that all loaded models may take together; None takes the machine's limit.
        response_cache: Bytes of answers to keep in memory, or the URL of a Redis; None keeps none.
        cache_seconds: How long an answer is kept.
        cache_sampled: Keep answers to requests with a temperature and no seed, too.
        data: Directory for uploaded files, batches and pulled models; None for the user's own
            data directory.
        drain_seconds: How long requests in flight may go on after SIGTERM.
        log_level: "debug", "info", "warning" or "error".
        traces: URL of an OpenTelemetry collector (OTLP over HTTP); None sends none.
        record: A new file that keeps the traffic as a workload; None keeps nothing.
        record_content: Keep the prompts' tokens as they are; else others stand for them.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Mapping[str, Client] = field(default_factory=dict)
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    certificate: Path | None = None
    private_key: Path | None = None
    limits: Limits = field(default_factory=Limits)
    keep_alive: float | None = None
    memory: int | None = None
    response_cache: int | str | None = None
    cache_seconds: float = 3600.0
    cache_sampled: bool = False
    data: Path | None = None
    drain_seconds: float = 30.0
    log_level: str = "info"
    traces: str | None = None
    record: Path | None = None
    record_content: bool = False

    @property
    def data_directory(self) -> Path:
        """`data`, or ``hasten`` below `XDG_DATA_HOME` or ``~/.local/share``; it may not exist."""
        if self.data is not None:
            return self.data
        home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
        return Path(home) / "hasten"
