"""From what a user names, a URL or a file, to a target."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import msgspec

from hasten.errors import UsageError
from hasten.measure.targets.http import HttpClient, HttpOptions
from hasten.measure.targets.replies import read, refusal
from hasten.measure.targets.target import Target, TargetError

__all__ = ["TargetSettings", "find_target", "names_target", "open_target"]

KEY_VARIABLE = "HASTEN_API_KEY"
KINDS = "openai, ollama, kserve, tfserving"
FORMS = (
    "[openai+|ollama+|kserve+|tfserving+]http[s]://HOST:PORT, "
    "kserve+grpc[s]://HOST:PORT, tfserving+grpc[s]://HOST:PORT, FILE.onnx"
)
PROBE_SECONDS = 30.0
"""For a server to tell what it is."""

T = TypeVar("T")

_SPEC = re.compile(r"(?:([a-z]+)\+)?((https?|grpcs?)://.+)")


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """What a user says of a target; each kind reads what concerns it.

    Attributes:
        model: As the server calls it; None for the one that it has.
        version: Of the model (KServe, TensorFlow Serving).
        api: "chat" or "completions" (OpenAI); None for what fits a prompt.
        ignore_eos: Ask for the whole length (OpenAI).
        extra: Fields of a request to add or replace (OpenAI, Ollama).
        binary: Tensors travel as bytes rather than JSON (KServe over HTTP).
        form: How they travel (TensorFlow Serving over HTTP).
        signature_name: Which of a model's signatures is asked (TensorFlow Serving).
        threads: That one request uses; 0 for as many as ONNX Runtime chooses (ONNX).
        concurrency: Requests that run at once (ONNX).
        http: How requests are made. Without a key there, that of HASTEN_API_KEY is sent.
    """

    model: str | None = None
    version: str | None = None
    api: Literal["chat", "completions"] | None = None
    ignore_eos: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    binary: bool = True
    form: Literal["rows", "columns"] = "rows"
    signature_name: str = "serving_default"
    threads: int = 0
    concurrency: int = 1
    http: HttpOptions = field(default_factory=HttpOptions)


def names_target(spec: str) -> bool:
    """Whether it is written as a URL or an ONNX file, rather than a model of an engine here."""
    return "://" in spec or spec.endswith(".onnx")


def open_target(spec: str, settings: TargetSettings | None = None) -> Target:
    """The target that a user names; `find_target` does the same where an event loop runs.

    Args:
        spec: A URL whose scheme may begin with a kind, as in "ollama+http://HOST:PORT", or the path
            of an ONNX file. Without a kind the server is asked what it is.
        settings: What else the user says.

    Raises:
        UsageError: What is named is no target, or leaves open which model is meant.
        TargetError: The server does not answer, or not as any of the kinds.
    """
    return asyncio.run(find_target(spec, settings))


async def find_target(spec: str, settings: TargetSettings | None = None) -> Target:
    """See `open_target`."""
    chosen = settings or TargetSettings()
    if chosen.http.key is None:
        key = os.environ.get(KEY_VARIABLE)
        chosen = replace(chosen, http=replace(chosen.http, key=key))
    if "://" not in spec and spec.endswith(".onnx"):
        from hasten.measure.targets.onnx import OnnxTarget

        return OnnxTarget(Path(spec), threads=chosen.threads, concurrency=chosen.concurrency)
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UsageError(f"{spec!r} names no target", allowed=FORMS)
    kind, url, scheme = match.groups()
    if scheme.startswith("grpc"):
        return _grpc_target(kind, url, chosen)
    if kind not in (None, *_MAKERS):
        raise UsageError(f"{kind!r} is no kind of server", allowed=KINDS)
    url = url.rstrip("/").removesuffix("/v1")
    probes = replace(chosen.http, total_seconds=PROBE_SECONDS)
    client = HttpClient(url, probes)
    try:
        kind = kind or await _find_kind(client, chosen.model)
        model = chosen.model or await _find_model(client, kind)
    finally:
        await client.close()
    return _MAKERS[kind](url, model, chosen)


class _Model(msgspec.Struct):
    """One of a list; Ollama and KServe call it by its name, OpenAI by its id."""

    name: str | None = None
    id: str | None = None


class _OpenAiModels(msgspec.Struct):
    data: list[_Model]


class _OllamaVersion(msgspec.Struct):
    version: str


class _OllamaModels(msgspec.Struct):
    models: list[_Model]


class _KServe(msgspec.Struct):
    name: str
    extensions: list[str] = []


class _TfModel(msgspec.Struct):
    model_version_status: list[Any]


_OPENAI_MODELS = msgspec.json.Decoder(_OpenAiModels)
_OLLAMA_MODELS = msgspec.json.Decoder(_OllamaModels)
_KSERVE_MODELS = msgspec.json.Decoder(list[_Model])


async def _find_kind(client: HttpClient, model: str | None) -> str:
    """Asks a server what it speaks."""
    probes: list[tuple[str, str, msgspec.json.Decoder[Any]]] = [
        ("openai", "/v1/models", _OPENAI_MODELS),
        ("ollama", "/api/version", msgspec.json.Decoder(_OllamaVersion)),
        ("kserve", "/v2", msgspec.json.Decoder(_KServe)),
    ]
    if model is not None:
        path = f"/v1/models/{quote(model, safe='')}"
        probes.append(("tfserving", path, msgspec.json.Decoder(_TfModel)))
    found = []
    for kind, path, decoder in probes:
        reply = await client.request("GET", path)
        if reply.status in (401, 403):
            raise TargetError(
                str(refusal(reply.status, reply.body)), do=f"give a key, or set {KEY_VARIABLE}"
            )
        if reply.status == 200:
            try:
                read(reply.body, decoder, path)
            except TargetError:
                found.append(f"{path} answered something else")
            else:
                return kind
        else:
            found.append(f"{path} answered {reply.status}")
    name = "" if model else ", or the model's name for TensorFlow Serving"
    raise TargetError(
        f"{client.url} speaks no protocol that is known: {', '.join(found)}",
        allowed=KINDS,
        do=f"name its kind, as in openai+{client.url}{name}",
    )


async def _find_model(client: HttpClient, kind: str) -> str:
    """The name of the only model that a server has."""
    if kind == "openai":
        listed = await _ask(client, "GET", "/v1/models", _OPENAI_MODELS)
        names = [one.id for one in listed.data]
    elif kind == "ollama":
        tags = await _ask(client, "GET", "/api/tags", _OLLAMA_MODELS)
        names = [one.name for one in tags.models]
    elif kind == "kserve":
        names = [
            one.name for one in await _ask(client, "POST", "/v2/repository/index", _KSERVE_MODELS)
        ]
    else:
        raise UsageError("TensorFlow Serving does not list its models", do="name the model")
    known = sorted({name for name in names if name})
    if len(known) != 1:
        raise UsageError(
            f"{client.url} serves {len(known)} models",
            allowed=", ".join(known) or None,
            do="name the model",
        )
    return known[0]


async def _ask(client: HttpClient, method: str, path: str, decoder: msgspec.json.Decoder[T]) -> T:
    reply = await client.request(method, path, b"{}" if method == "POST" else b"")
    if reply.status != 200:
        error = refusal(reply.status, reply.body)
        raise TargetError(f"{path}: {error}", do="name the model")
    return read(reply.body, decoder, f"the answer of {path}")


def _openai(url: str, model: str, chosen: TargetSettings) -> Target:
    from hasten.measure.targets.openai import OpenAiTarget

    return OpenAiTarget(
        url,
        model,
        api=chosen.api,
        ignore_eos=chosen.ignore_eos,
        extra=chosen.extra,
        options=chosen.http,
    )


def _ollama(url: str, model: str, chosen: TargetSettings) -> Target:
    from hasten.measure.targets.ollama import OllamaTarget

    return OllamaTarget(url, model, extra=chosen.extra, options=chosen.http)


def _kserve(url: str, model: str, chosen: TargetSettings) -> Target:
    from hasten.measure.targets.kserve import KServeTarget

    return KServeTarget(
        url, model, version=chosen.version, binary=chosen.binary, options=chosen.http
    )


def _tfserving(url: str, model: str, chosen: TargetSettings) -> Target:
    from hasten.measure.targets.tfserving import TfServingTarget

    return TfServingTarget(
        url,
        model,
        version=chosen.version,
        signature_name=chosen.signature_name,
        form=chosen.form,
        options=chosen.http,
    )


_MAKERS = {"openai": _openai, "ollama": _ollama, "kserve": _kserve, "tfserving": _tfserving}


def _grpc_target(kind: str | None, url: str, chosen: TargetSettings) -> Target:
    if kind not in ("kserve", "tfserving"):
        raise UsageError(
            f"{url} does not say which service it has",
            allowed=f"kserve+{url}, tfserving+{url}",
        )
    if chosen.model is None:
        raise UsageError("over gRPC a model is asked for by its name", do="name the model")
    if kind == "kserve":
        from hasten.measure.targets.kserve_grpc import KServeGrpcTarget

        return KServeGrpcTarget(url, chosen.model, version=chosen.version, options=chosen.http)
    from hasten.measure.targets.tfserving_grpc import TfServingGrpcTarget

    if chosen.version is not None and not chosen.version.isdecimal():
        raise UsageError(f"the version {chosen.version!r} is no number")
    return TfServingGrpcTarget(
        url,
        chosen.model,
        version=None if chosen.version is None else int(chosen.version),
        signature_name=chosen.signature_name,
        options=chosen.http,
    )
