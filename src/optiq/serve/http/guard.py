"""Who may ask: hosts, origins, keys. Pure ASGI; knows no protocol.

Host      a name that is not the server's own is refused: a page whose name was pointed at this machine (DNS rebinding) sends it
Origin    pages of this machine and those that were allowed; others may not even send
key       `Authorization: Bearer KEY` or `x-api-key: KEY`, compared in constant time, on every route
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from optiq.errors import InputError
from optiq.serve.http.problem import Kind, Problem, Refusal

SHARED = "optiq.shared"  # in the scope: headers by which a browser lets a page read any answer, errors too; `edge` adds them
PREFLIGHT_S = 600  # a browser remembers an answer for so long


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Args:
        host: the address that the server listens on.
        key: what every request has to carry; "" for none, on a loopback address alone.
        hosts: further names of the server; `*` for any.
        origins: pages (`https://name:port`) that may use it; `*` for any.

    Raises:
        InputError: an address that others can reach, without a key.
    """

    host: str = "127.0.0.1"
    key: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.key and not is_loopback(self.host):
            raise InputError(
                f"--host {self.host} can be reached by others and there is no key; add --api-key KEY (or set OPTIQ_API_KEY)"
            )
        if not self.key.isascii() or any(character.isspace() for character in self.key):
            raise InputError("--api-key has characters that a header cannot carry, expected ASCII without white space")


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Lets those through who may ask.

    Args:
        app: what is below.
        access: who may.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        own = socket.gethostname().lower()
        self._hosts = {"localhost", access.host.lower(), own, f"{own}.local", *(host.lower() for host in access.hosts)}
        self._key = _digest(access.key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        origin = headers.get("origin")
        if origin is None:
            self._check_key(headers)
            await self._app(scope, receive, send)
            return
        self._check_origin(origin, headers.get("host", ""))
        scope[SHARED] = _shared(origin)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(headers)(scope, receive, send)
            return
        self._check_key(headers)
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        host = _hostname(headers.get("host", ""))
        if "*" in self._hosts or host in self._hosts or _is_address(host):
            return
        raise Refusal(
            Problem(Kind.FORBIDDEN, f"Host {host[:100]!r} is not this server's; start it with --allow-host for that name")
        )

    def _check_origin(self, origin: str, host: str) -> None:
        allowed = self._access.origins
        page = urlsplit(origin)
        if "*" in allowed or origin in allowed or (page.hostname and is_loopback(page.hostname)) or page.netloc == host != "":
            return
        raise Refusal(
            Problem(
                Kind.FORBIDDEN, f"Origin {origin[:100]!r} may not use this server; start it with --allow-origin for that page"
            )
        )

    def _check_key(self, headers: Headers) -> None:
        if not self._access.key:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
        fits = [hmac.compare_digest(_digest(key), self._key) for key in given]
        if not any(fits):
            text = "a wrong API key" if any(given) else "no API key"
            raise Refusal(Problem(Kind.KEY, f"{text}; send `Authorization: Bearer KEY` or `x-api-key: KEY`"))


def _digest(key: str) -> bytes:
    """So that a comparison takes as long for keys of any length."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _hostname(host: str) -> str:
    """A Host header without its port, a bracketed address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(host: str) -> bool:
    """Whether it is a number: no name was pointed anywhere."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _shared(origin: str) -> list[tuple[bytes, bytes]]:
    exposed = b"x-request-id, request-id, retry-after"
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", exposed),
        (b"vary", b"origin"),
    ]


def _preflight(headers: Headers) -> Response:
    """What a browser may send: the methods that there are, the headers that it asks for."""
    asked = headers.get("access-control-request-headers", "")
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": "GET, POST, DELETE",
            "access-control-allow-headers": asked,
            "access-control-max-age": str(PREFLIGHT_S),
        },
    )
