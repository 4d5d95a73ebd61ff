"""What keeps web pages from using a server that listens on the user's own machine.

A page can make its reader's browser send requests to any address. The browser says which page it
was (Origin), and a page that gave its own name a local address says that name (Host); so both are
checked, and nothing is allowed that was not named.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from hasten.errors import AccessError
from hasten.serve.auth import is_loopback
from hasten.serve.endpoint import Reply
from hasten.serve.settings import ServerSettings
from hasten.serve.status import HttpError

__all__ = ["BrowserGuard"]

ANY = "*"
PREFLIGHT_SECONDS = 600
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]+))(?::[0-9]{1,5})?")


class BrowserGuard:
    """Checks Host and Origin.

    Args:
        settings: Names the hosts and origins that are allowed; "*" allows all.
    """

    def __init__(self, settings: ServerSettings) -> None:
        own = {settings.host, *settings.hosts}
        if is_loopback(settings.host):
            own.add("localhost")
        self._hosts = frozenset(host.lower().strip("[]") for host in own)
        self._origins = settings.origins

    def check_host(self, host: str | None) -> None:
        """Refuse a request that names a host which is not this one.

        An address is always allowed: only names can be made to point here by somebody else.

        Raises:
            HttpError: If it is no host at all.
            AccessError: If it is another one.
        """
        if host is None:  # of HTTP/1.0, which browsers do not speak
            return
        found = _HOST.fullmatch(host)
        if found is None:
            raise HttpError(400, f"the Host header {host[:100]!r} is malformed")
        name = (found[1] or found[2]).lower()
        if name in self._hosts or ANY in self._hosts or _is_address(name):
            return
        raise AccessError(
            f"the host {name[:100]!r} is not allowed",
            do=f"call the server by its address, or start it with --allow-host {name[:100]}",
        )

    def check_origin(self, origin: str | None) -> dict[str, str]:
        """Refuse a web page that is not allowed to ask.

        Returns:
            Headers that let the browser show the page the response.

        Raises:
            AccessError: If the page is not allowed to.
        """
        if origin is None:
            return {}
        if origin not in self._origins and ANY not in self._origins:
            raise AccessError(
                f"web pages of the origin {origin[:100]!r} may not use this server",
                do=f"start it with --allow-origin {origin[:100]}",
            )
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "*",
            "vary": "Origin",
        }

    def preflight(self, method: str, headers: Mapping[str, str]) -> Reply | None:
        """Answer a browser's question whether a page may ask; None if this is not one.

        Such a question carries no API key. The answer says nothing but that the origin is allowed.
        """
        wanted = headers.get("access-control-request-method")
        if method != "OPTIONS" or wanted is None or "origin" not in headers:
            return None
        asked = headers.get("access-control-request-headers", "authorization, content-type")
        return Reply(
            body=b"",
            status=204,
            headers={
                "access-control-allow-methods": "GET, HEAD, POST, DELETE",
                "access-control-allow-headers": asked,
                "access-control-max-age": str(PREFLIGHT_SECONDS),
            },
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
