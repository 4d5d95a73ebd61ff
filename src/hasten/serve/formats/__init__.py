"""What models write: tool calls and reasoning, told apart from the answer as it comes."""

from hasten.serve.formats.choose import find_format
from hasten.serve.formats.format import OutputFormat
from hasten.serve.formats.parts import Part
from hasten.serve.formats.splitter import Splitter

__all__ = ["OutputFormat", "Part", "Splitter", "find_format"]
