"""Protobuf messages from the text of their declaration, without generated code.

They live in a pool of their own, so that they are in nobody's way who has generated ones of the
same names. Enums are declared as int32, which is the same on the wire; what nobody reads is left
out.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

from hasten.errors import MissingDependencyError
from hasten.measure.targets.target import TargetError

__all__ = ["Message", "declare", "parse"]

Message: TypeAlias = Any
"""A message of protobuf, whose fields no type checker knows."""

_MESSAGE = re.compile(r"message (\w+) \{([^}]*)\}")
_FIELD = re.compile(r"(repeated )?(?:map<(\w+), (\w+)>|(\w+)) (\w+) = (\d+);")


def declare(package: str, source: str) -> dict[str, type[Message]]:
    """The classes of messages by name.

    Args:
        package: In which they are.
        source: Messages as in a .proto file, not nested; a field's type is a scalar or one of them.

    Raises:
        MissingDependencyError: protobuf is not installed.
    """
    try:
        from google.protobuf import (  # type: ignore[import-untyped]
            descriptor_pb2,
            descriptor_pool,
            message_factory,
        )
    except ImportError as error:
        raise MissingDependencyError(
            "gRPC targets need the package protobuf", do="pip install 'hasten[grpc]'"
        ) from error
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3"
    )
    for name, body in _MESSAGE.findall(source):
        message = file.message_type.add(name=name)
        for repeated, key, value, scalar, field, number in _FIELD.findall(body):
            kind = _add_entry(message, package, field, key, value) if key else scalar
            many = bool(repeated or key)
            _add_field(message, package, field, int(number), kind, repeated=many)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{package}.{message.name}")
        )
        for message in file.message_type
    }


def parse(kind: type[Message], data: bytes) -> Message:
    """Reads a message.

    Raises:
        TargetError: It is malformed.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise TargetError(f"a message of the server is malformed: {error}") from error


def _add_entry(message: Message, package: str, field: str, key: str, value: str) -> str:
    """Adds the nested message that a map's entries are, and gives its name."""
    name = "".join(part.capitalize() for part in field.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    _add_field(entry, package, "key", 1, key)
    _add_field(entry, package, "value", 2, value)
    return f"{message.name}.{name}"


def _add_field(
    message: Message,
    package: str,
    name: str,
    number: int,
    kind: str,
    *,
    repeated: bool = False,
) -> None:
    from google.protobuf.descriptor_pb2 import (  # type: ignore[import-untyped]
        FieldDescriptorProto as Field,
    )

    added = message.field.add(name=name, number=number)
    added.label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
    scalar = f"TYPE_{kind.upper()}"
    if scalar in set(Field.Type.keys()):
        added.type = Field.Type.Value(scalar)
    else:
        added.type = Field.TYPE_MESSAGE
        added.type_name = f".{package}.{kind}"
