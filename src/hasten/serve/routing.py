"""Which route a request means. A path means what it says: nothing in it is normalised.

The path is matched as it was sent, so that no spelling of it (``//v1/models``, ``/v1%2Fmodels``,
``/v1/./models``) reaches a route that a proxy in front or a reader of the table would not expect.
Only the values of placeholders are decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote

from hasten.errors import NotFoundError
from hasten.serve.endpoint import Dialect, Route
from hasten.serve.status import HttpError

__all__ = ["Match", "Router", "parameters"]

_PLACEHOLDER = re.compile(r"\{([a-z_]+)(:path)?\}")

Methods = dict[str, tuple[str, Route]]


class Match(NamedTuple):
    """A route, the name of its protocol, and the values of its placeholders."""

    protocol: str
    route: Route
    path: Mapping[str, str]


class Router:
    """The table of routes.

    Args:
        routes: All of them, by the name of their protocol.
        fallback: How errors are told at paths that resemble none.

    Raises:
        ValueError: If two routes have the same place, or a path is malformed.
    """

    def __init__(self, routes: Mapping[str, Iterable[Route]], fallback: Dialect) -> None:
        self.routes: list[Route] = []
        self._fallback = fallback
        self._fixed: dict[str, Methods] = {}
        self._patterns: dict[str, tuple[re.Pattern[str], Methods]] = {}
        for protocol, listed in routes.items():
            for route in listed:
                methods = self._place(route.path)
                if route.method in methods:
                    raise ValueError(f"two routes answer {route.method} {route.path}")
                methods[route.method] = protocol, route
                self.routes.append(route)

    def _place(self, path: str) -> Methods:
        if not path.startswith("/"):
            raise ValueError(f"the path of a route begins with /, not as {path!r}")
        if not _PLACEHOLDER.search(path):
            return self._fixed.setdefault(path, {})
        # Names do not tell two places apart.
        place = _PLACEHOLDER.sub(lambda found: f"{{{found[2] or ''}}}", path)
        return self._patterns.setdefault(place, (_pattern(path), {}))[1]

    def find(self, method: str, path: str) -> Match:
        """The route of a request; HEAD means GET where it has no route of its own.

        Args:
            method: Of HTTP.
            path: As it was sent, without the query.

        Raises:
            NotFoundError: If there is nothing at the path.
            HttpError: If there is, for other methods.
        """
        allowed: set[str] = set()
        for methods, values in self._at(path):
            found = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
            if found is not None:
                return Match(*found, values)
            allowed.update(methods)
        if not allowed:
            raise NotFoundError(f"there is nothing at {path!r}", do="see /openapi.json")
        if "GET" in allowed:
            allowed.add("HEAD")
        listed = ", ".join(sorted(allowed))
        raise HttpError(
            405, f"{method} does not work at {path!r}", allowed=listed, headers={"allow": listed}
        )

    def _at(self, path: str) -> Iterable[tuple[Methods, Mapping[str, str]]]:
        fixed = self._fixed.get(path)
        if fixed is not None:
            yield fixed, {}
        for pattern, methods in self._patterns.values():
            found = pattern.fullmatch(path)
            if found is not None:
                values = {name: unquote(value) for name, value in found.groupdict().items()}
                yield methods, values

    def dialect(self, path: str) -> Dialect:
        """How errors are told at a path, be there something or not: as at the most similar one."""
        best, most = self._fallback, 0
        parts = path.split("/")[1:]
        for route in self.routes:
            alike = _common(parts, route.path.split("/")[1:])
            if alike > most:
                best, most = route.dialect, alike
        return best


def parameters(path: str) -> list[str]:
    """Names of the placeholders of a route's path, in order."""
    return [found[1] for found in _PLACEHOLDER.finditer(path)]


def _pattern(path: str) -> re.Pattern[str]:
    literals = [re.escape(part) for part in re.split(r"\{[a-z_:]+\}", path)]
    groups = [
        f"(?P<{found[1]}>{'.+' if found[2] else '[^/]+'})" for found in _PLACEHOLDER.finditer(path)
    ]
    if len(literals) != len(groups) + 1:
        raise ValueError(f"{path!r} holds a malformed placeholder")
    return re.compile("".join(a + b for a, b in zip(literals, [*groups, ""], strict=True)))


def _common(one: list[str], other: list[str]) -> int:
    """How many leading parts two paths share; a placeholder is like any part."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right and not right.startswith("{"):
            break
        count += 1
    return count
