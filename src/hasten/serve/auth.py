"""Who asks: API keys, and what holds without any."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from hasten.errors import AccessError, AuthenticationError, UsageError
from hasten.serve.endpoint import Route
from hasten.serve.jobs import Client
from hasten.serve.registry.names import ModelName
from hasten.serve.settings import ServerSettings

__all__ = ["Authenticator", "client_keys", "is_loopback", "key_digest", "read_keys", "refuse_open"]

MAX_KEYS_FILE = 16 << 20

_KEY = re.compile(r"[\x21-\x7e]{1,1024}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")

Positive = Annotated[int, msgspec.Meta(gt=0)]


class KeyEntry(msgspec.Struct, forbid_unknown_fields=True):
    """One entry of a file of keys.

    Attributes:
        name: For logs and metrics.
        key: The key itself; or
        sha256: its SHA-256 in hexadecimal, so that the file holds no secret.
        tenant: As in `Client`; the name where it is left out.
        priority: As in `Client`, like those below.
    """

    name: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_.@-]{1,64}$")]
    key: str | None = None
    sha256: str | None = None
    tenant: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    concurrency: Positive | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    models: frozenset[str] | None = None
    admin: bool = False

    def digest(self) -> str:
        """SHA-256 of the key, in hexadecimal."""
        if (self.key is None) == (self.sha256 is None):
            raise UsageError(f"the key {self.name!r} needs either 'key' or 'sha256'")
        if self.key is not None:
            return key_digest(self.key)
        digest = (self.sha256 or "").lower()
        if not _DIGEST.fullmatch(digest):
            raise UsageError(
                f"'sha256' of the key {self.name!r} is no SHA-256", allowed="64 hexadecimal digits"
            )
        return digest

    def client(self) -> Client:
        """Whom the key stands for.

        Raises:
            UsageError: If what names a model is no name.
        """
        return Client(
            name=self.name,
            tenant=self.tenant or self.name,
            priority=self.priority,
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            models=self.models and frozenset(str(ModelName.parse(name)) for name in self.models),
            admin=self.admin,
        )


def key_digest(key: str) -> str:
    """SHA-256 of an API key, in hexadecimal.

    Raises:
        UsageError: If no header could carry the key. The text does not hold it.
    """
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"an API key of {len(key)} characters cannot be used",
            allowed="1 to 1024 characters of ASCII without spaces",
        )
    return hashlib.sha256(key.encode()).hexdigest()


def client_keys(keys: Iterable[str]) -> dict[str, Client]:
    """Clients by the digest of their key, for keys that were given alone; each may do everything.

    Raises:
        UsageError: If a key cannot be used.
    """
    names = ((f"key-{number}", key) for number, key in enumerate(keys, 1))
    return {key_digest(key): Client(name=name, tenant=name) for name, key in names}


def read_keys(path: Path) -> dict[str, Client]:
    """Clients by the digest of their key, from a JSON file: a list of entries.

    Raises:
        UsageError: If the file cannot be read, an entry is wrong, or two are alike.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEYS_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot read the keys in {str(path)!r}: {error.strerror}") from error
    if len(content) > MAX_KEYS_FILE:
        raise UsageError(f"the keys in {str(path)!r} are too many", allowed="up to 16 MiB")
    try:
        entries = msgspec.json.decode(content, type=list[KeyEntry])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the keys in {str(path)!r} are wrong: {error}",
            do='write a list such as [{"name": "alice", "sha256": "..."}]',
        ) from error
    clients = {entry.digest(): entry.client() for entry in entries}
    if len(clients) < len(entries) or len({entry.name for entry in entries}) < len(entries):
        raise UsageError(f"two keys in {str(path)!r} have the same name or the same key")
    if not clients:
        raise UsageError(f"{str(path)!r} holds no key", do="leave --keys out to ask for none")
    return clients


def refuse_open(settings: ServerSettings, *, accepted: bool) -> None:
    """Refuse to serve others than this machine without keys.

    Args:
        settings: Of the server.
        accepted: The operator has said that it is meant.

    Raises:
        UsageError: If it was not said.
    """
    if settings.keys or accepted or is_loopback(settings.host):
        return
    raise UsageError(
        f"whoever reaches {settings.host} could use this server, as it has no API key",
        do="set one with HASTEN_API_KEY or --keys FILE, or say --no-auth if that is meant",
    )


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost"
    inner = getattr(address, "ipv4_mapped", None)  # what an IPv6 socket calls IPv4
    return (inner or address).is_loopback


class Authenticator:
    """Finds who asks, and whether they may use a route.

    Args:
        keys: Clients by the SHA-256 of their key, in hexadecimal; empty asks for no key.
    """

    def __init__(self, keys: Mapping[str, Client]) -> None:
        self._keys = [(bytes.fromhex(digest), client) for digest, client in keys.items()]

    def client(
        self, headers: Mapping[str, str], peer: str | None, open_to_all: bool = False
    ) -> Client:
        """Who asks.

        Args:
            headers: Names in lower case.
            peer: The address that the request came from.
            open_to_all: A request without key may be by anybody.

        Raises:
            AuthenticationError: If they have no valid key.
        """
        if not self._keys:
            return Client(admin=_is_local(headers, peer))
        if open_to_all and "authorization" not in headers and "x-api-key" not in headers:
            return Client(admin=False)
        digest = hashlib.sha256(_key_of(headers).encode("latin-1", "replace")).digest()
        found = None
        # All of them, so that the time tells nothing about which are alike.
        for known, client in self._keys:
            if hmac.compare_digest(known, digest):
                found = client
        if found is None:
            raise AuthenticationError("the API key is not valid")
        return found

    def check(self, client: Client, route: Route) -> None:
        """Refuse a client that may not use a route.

        Raises:
            AccessError: If so.
        """
        if not route.admin or client.admin:
            return
        if self._keys:
            raise AccessError(
                f"the key {client.name!r} may not manage models",
                do="use a key with 'admin' in the file of --keys",
            )
        raise AccessError(
            "without API keys, models are managed from the server's own machine alone",
            do="start the server with HASTEN_API_KEY or --keys FILE",
        )


def _key_of(headers: Mapping[str, str]) -> str:
    """The key that a request carries, in the place where one of the protocols has it."""
    authorization = headers.get("authorization")
    if authorization is None:
        key = headers.get("x-api-key", "")
    else:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise AuthenticationError(
                "the Authorization header does not begin with Bearer",  # perhaps with the key
                do="send the header 'Authorization: Bearer KEY'",
            )
    if not key.strip():
        raise AuthenticationError(
            "the request has no API key", do="send the header 'Authorization: Bearer KEY'"
        )
    return key.strip()


def _is_local(headers: Mapping[str, str], peer: str | None) -> bool:
    """Whether a request comes from this machine and was not passed on by a proxy on it."""
    forwarded = any(name in headers for name in _FORWARDED)
    return peer is not None and is_loopback(peer) and not forwarded
