"""Chat templates: a conversation to the text that a model was trained on.

A template is Jinja source that comes with the model. It runs in `chat_sandbox`, on plain data
only, with the names that transformers gives it (`apply_chat_template`), and its output equals
transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hasten.errors import HastenError, ModelFileError, UnsupportedModelError, UsageError
from hasten.models.json_file import read_json_object
from hasten.models.tokenizer_files import read_roles

if TYPE_CHECKING:
    from jinja2 import Template

    from hasten.models.chat_sandbox import ChatEnvironment

__all__ = ["ChatTemplate"]

_MAX_SOURCE = 256 << 10
_MAX_DEPTH = 64
_BASE_UNITS = 8 << 20
_UNITS_PER_CHARACTER = 64
_BASE_OUTPUT = 1 << 20
_SECONDS = 5.0
_SHORT = 16 << 10
_MOMENT = 0.05
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """Renders conversations; safe to use from several threads, one render at a time.

    Bounds of one render, for a conversation of c characters (a value counts for 16 more):
    8 Mi + 64 c characters written or statements run (64 each), 1 Mi + 4 c characters of output,
    5 seconds.

    Args:
        source: The template, in Jinja.
        bos_token: Text of the token that begins a text; empty where there is none.
        eos_token: Text of the token that ends one; empty where there is none.
        special_tokens: Texts of further special tokens, by role ("pad_token", ...).
        tool_source: The template to use instead when tools are given.
        clock: What `strftime_now` takes for the present.

    Raises:
        ModelFileError: The source is too large.
    """

    ALLOWED: ClassVar[frozenset[str]] = frozenset(
        {
            *("builtin_tools", "custom_tools", "date_string", "documents", "enable_thinking"),
            *("reasoning_effort", "thinking", "thinking_budget", "tools_in_user_message"),
        }
    )

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        special_tokens: Mapping[str, str] | None = None,
        tool_source: str | None = None,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        for text in filter(None, (source, tool_source)):
            if len(text) > _MAX_SOURCE:
                raise ModelFileError(
                    f"the chat template has {len(text)} characters", allowed=f"up to {_MAX_SOURCE}"
                )
        tokens = {"bos_token": bos_token, "eos_token": eos_token, **(special_tokens or {})}
        self.source = source
        self.tool_source = tool_source
        self._tokens = {role: text for role, text in tokens.items() if text}
        self._clock = clock
        self._lock = Lock()
        self._environment: ChatEnvironment | None = None
        self._compiled: dict[str, Template] = {}
        self._slowest = 0.0  # seconds of a short conversation

    @property
    def busy(self) -> bool:
        """Whether a short conversation may take longer than a moment now.

        Another thread renders one, nothing was compiled yet, or a short one took long before.
        """
        return self._lock.locked() or not self._compiled or self._slowest > _MOMENT

    @classmethod
    def from_directory(cls, path: Path | str) -> Self | None:
        """Reads the template of a Hugging Face directory, None if it has none.

        `chat_template.jinja` (with `additional_chat_templates/tool_use.jinja`) comes before the
        `chat_template` of `tokenizer_config.json`, which is a text or a list of named ones.

        Raises:
            ModelFileError: A file is not what it should be, or no named template is the default.
        """
        directory = Path(path)
        named = _template_files(directory) or _configured_templates(directory)
        roles = read_roles(directory) if named else {}
        return cls._from_named(named, roles, str(directory))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self | None:
        """Reads the template that a GGUF's metadata hold, None if they hold none.

        Raises:
            ModelFileError: The template is no text, or a special token's id is out of range.
        """
        from hasten.models.gguf_tokenizer import special_ids

        keys = {"default": "tokenizer.chat_template"}
        keys["tool_use"] = "tokenizer.chat_template.tool_use"
        named = {name: metadata[key] for name, key in keys.items() if key in metadata}
        tokens = metadata.get("tokenizer.ggml.tokens", [])
        ids = special_ids(metadata, len(tokens)) if named else {}
        return cls._from_named(named, {role: tokens[i] for role, i in ids.items()}, "the GGUF")

    @classmethod
    def _from_named(
        cls, named: Mapping[str, Any], roles: Mapping[str, str], place: str
    ) -> Self | None:
        if not named:
            return None
        for name, text in named.items():
            if not isinstance(text, str):
                raise ModelFileError(f"{place}: chat template {name!r} is {text!r:.60}, not a text")
        if "default" not in named:
            raise ModelFileError(
                f"{place}: the chat templates are named {', '.join(named)}",
                allowed='one of them named "default"',
            )
        return cls(named["default"], special_tokens=roles, tool_source=named.get("tool_use"))

    def save(self, directory: Path | str) -> None:
        """Writes the template where `from_directory` and transformers look for it."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chat_template.jinja").write_text(self.source, encoding="utf-8", newline="")
        if self.tool_source is not None:
            extra = folder / "additional_chat_templates"
            extra.mkdir(exist_ok=True)
            (extra / "tool_use.jinja").write_text(self.tool_source, encoding="utf-8", newline="")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,  # noqa: ANN401 - plain data of any shape; checked below
    ) -> str:
        """Returns the text of a conversation.

        Args:
            messages: What was said, each with a "role" and mostly a "content"; plain data only.
            add_generation_prompt: End with the words that open the assistant's turn.
            tools: JSON schemas of the functions that the model may call.
            **extra: Values for the template; see `ALLOWED` for the names.

        Raises:
            UsageError: A message or an extra value is not as it should be, or the template
                refuses the conversation.
            ModelFileError: The template is not valid Jinja.
            UnsupportedModelError: The template does what it must not, or more than it may.
        """
        if unknown := sorted(set(extra) - self.ALLOWED):
            raise UsageError(
                f"the chat template cannot be given {', '.join(unknown)}",
                allowed=", ".join(sorted(self.ALLOWED)),
            )
        data = _Plain()
        values = {
            **self._tokens,
            **{name: data.copy(value) for name, value in extra.items()},
            "messages": [_aliased(data.message(m, i)) for i, m in enumerate(messages)],
            "tools": None if tools is None else data.copy(list(tools)),
            "documents": data.copy(extra.get("documents")),
            "add_generation_prompt": add_generation_prompt,
        }
        source = self.source if tools is None or self.tool_source is None else self.tool_source
        with self._lock:
            timed = source in self._compiled and data.weight <= _SHORT
            began = perf_counter()
            try:
                return self._run(source, values, data.weight)
            finally:
                if timed:
                    self._slowest = max(self._slowest, perf_counter() - began)

    def _run(self, source: str, values: Mapping[str, Any], weight: int) -> str:
        from hasten.models.chat_sandbox import ChatEnvironment

        if self._environment is None:
            self._environment = ChatEnvironment(self._clock)
        self._environment.start(_BASE_UNITS + _UNITS_PER_CHARACTER * weight, _SECONDS)
        limit = _BASE_OUTPUT + 4 * weight
        chunks, length = [], 0
        # The template is foreign code: whatever it raises is a fault of it or of its input.
        try:
            if source not in self._compiled:
                self._compiled[source] = self._environment.from_string(source)
            for chunk in self._compiled[source].generate(values):
                length += len(chunk)
                if length > limit:
                    raise UnsupportedModelError(
                        "the chat template writes too much", allowed=f"up to {limit} characters"
                    )
                chunks.append(chunk)
        except HastenError:
            raise
        except Exception as error:
            raise _translated(error) from error
        return "".join(chunks)


def _translated(error: Exception) -> HastenError:
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.exceptions import SecurityError

    from hasten.models.chat_sandbox import BudgetExceededError

    do = "give another template, or a text instead of a conversation"
    match error:
        case TemplateSyntaxError():
            return ModelFileError(
                f"the chat template is not valid Jinja: {error.message}, line {error.lineno}", do=do
            )
        case SecurityError():
            return UnsupportedModelError(
                f"the chat template tries what it must not: {error}", do=do
            )
        case BudgetExceededError():
            return UnsupportedModelError(
                f"the chat template was stopped: it needs too much {error}", do=do
            )
        case MemoryError() | RecursionError():
            return UnsupportedModelError(
                f"the chat template was stopped by a {type(error).__name__}", do=do
            )
        case TemplateError() if type(error) is TemplateError:  # from raise_exception
            return UsageError(f"the chat template refuses the conversation: {error}")
        case _:
            return UsageError(
                f"the chat template fails on this conversation: {type(error).__name__}: {error}"
            )


class _Plain:
    """Copies values that are plain data, so that a template meets no other object.

    Attributes:
        weight: Characters copied, plus 16 for each value.
    """

    def __init__(self) -> None:
        self.weight = 0

    def message(self, value: object, index: int) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
            raise UsageError(
                f"message {index} is {value!r:.60}", allowed='a mapping with a text as "role"'
            )
        copied: dict[str, Any] = self.copy(value)
        return copied

    def copy(self, value: object, depth: int = 0) -> Any:  # noqa: ANN401 - plain data of any shape
        self.weight += 16 + (len(value) if isinstance(value, str) else 0)
        if depth > _MAX_DEPTH:
            raise UsageError(f"a value for the chat template is nested over {_MAX_DEPTH} deep")
        if value is None or type(value) in (str, int, float, bool):
            return value
        if isinstance(value, Mapping):
            items = value.items()
            return {self.copy(k, depth + 1): self.copy(v, depth + 1) for k, v in items}
        if isinstance(value, list | tuple):
            return [self.copy(item, depth + 1) for item in value]
        raise UsageError(
            f"a value for the chat template is a {type(value).__name__}",
            allowed="text, numbers, booleans, None, lists and mappings of them",
        )


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    """Fills the newer and the older name of a message's reasoning, as transformers does."""
    reasoning = next((message[k] for k in _REASONING if message.get(k) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _template_files(directory: Path) -> dict[str, str]:
    files = {
        "default": directory / "chat_template.jinja",
        "tool_use": directory / "additional_chat_templates" / "tool_use.jinja",
    }
    found = {}
    for name, file in files.items():
        if file.is_file():
            try:
                with file.open(encoding="utf-8") as text:
                    found[name] = text.read(_MAX_SOURCE + 1)
            except (OSError, UnicodeDecodeError) as error:
                raise ModelFileError(f"{file}: cannot be read ({error})") from error
    return found


def _configured_templates(directory: Path) -> dict[str, Any]:
    file = directory / "tokenizer_config.json"
    value = read_json_object(file).get("chat_template") if file.is_file() else None
    if value is None:
        return {}
    if not isinstance(value, list):
        return {"default": value}
    try:
        return {entry["name"]: entry["template"] for entry in value}
    except (KeyError, TypeError) as error:
        raise ModelFileError(
            f"{file}: chat_template is a list of other things than named templates"
        ) from error
