"""Uploads in the form of multipart/form-data, taken apart as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from hasten.errors import TooLargeError, UsageError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

__all__ = ["FormReader"]

_FIELD_BYTES = 4096
_PARTS = 16
_NAME = 255


class FormReader:
    """Reads a form with one file, whose content is passed on, and short fields, which are kept.

    Args:
        content_type: Of the request.
        file_field: Name of the field that holds the file.
        sink: Receives the file's content in pieces.

    Attributes:
        fields: The other fields.
        file_name: As the client called it; None before it comes.

    Raises:
        UsageError: If this is no such form.
    """

    def __init__(self, content_type: str, file_field: str, sink: Callable[[bytes], object]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise UsageError(
                f"the body is {content_type[:80]!r}", allowed="multipart/form-data with a boundary"
            )
        self.fields: dict[str, str] = {}
        self.file_name: str | None = None
        self._file_field = file_field
        self._sink = sink
        self._parts = 0
        self._ended = False
        self._header = [b"", b""]
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._value = b""
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _malformed(error) from error

    def push(self, data: bytes) -> None:
        """Takes the next bytes of the body.

        Raises:
            UsageError: If they are not as they must be.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(error) from error

    def finish(self) -> None:
        """The body is complete.

        Raises:
            UsageError: If it is not, or holds no file.
        """
        if not self._ended:
            raise UsageError("the form ends too early", do="send all of it")
        if self.file_name is None:
            raise UsageError(f"the form has no file in its field {self._file_field!r}")

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _PARTS:
            raise TooLargeError("the form has too many fields", allowed=f"{_PARTS}")
        self._headers = {}
        self._header = [b"", b""]
        self._value = b""

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header[0].lower()] = self._header[1]
        self._header = [b"", b""]

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name == self._file_field:
            if self.file_name is not None:
                raise UsageError("the form has two files", allowed="one")
            name = options.get(b"filename", b"").decode(errors="replace")[:_NAME]
            self.file_name = "".join(one if one.isprintable() else "?" for one in name) or "file"

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._file_field:
            self._sink(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _FIELD_BYTES:
            raise TooLargeError(
                f"the field {self._name[:80]!r} is too long", allowed=f"{_FIELD_BYTES} bytes"
            )

    def _end_part(self) -> None:
        if self._name != self._file_field:
            self.fields[self._name] = self._value.decode(errors="replace")

    def _end(self) -> None:
        self._ended = True


def _malformed(error: Exception) -> UsageError:
    return UsageError(f"the body is no multipart/form-data that can be read: {error}")
