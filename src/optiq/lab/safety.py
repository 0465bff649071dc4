"""Who may talk to the workbench, and what its pages may do: an ASGI layer outside of everything else.

    request -> Host is a name of ours? -> token (address once, then cookie)? -> Origin is ours? -> application
    response <- content policy, with a nonce in each inline script that the UI library writes

Loopback alone is no protection: any web page can make a browser ask 127.0.0.1, and DNS can make a foreign name lead here. The
token stops the first, the Host check the second, the Origin check a page of another port of this machine. WebSockets pass the
same checks.
Knows nothing of pages.
"""

from __future__ import annotations

import hmac
import re
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

READING = ("GET", "HEAD", "OPTIONS")
WITHOUT_TOKEN = (
    "This is an optiq workbench. It opens with the address that `optiq lab` printed, which carries a token:\n"
    "http://{host}/?token=…\n"
)
# The UI library compiles its templates in the browser (eval) and writes inline styles; scripts come from here or carry the nonce.
POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self' {socket}; manifest-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_SCRIPT = re.compile(rb"<script(?=[\s>])")


class Guard:
    """The layer.

    Args:
        app: what is guarded.
        hosts: values of the Host header that mean this server, as ``name:port``.
        token: the secret.
        port: part of the cookie's name, as cookies do not know ports.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], token: str, port: int) -> None:
        self.app = app
        self.hosts = hosts
        self.token = token
        self.cookie = f"optiq_lab_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        answer = self.refusal(scope)
        if answer is None:
            await self.app(
                scope, receive, _guarded(send, Headers(scope=scope).get("host", "")) if scope["type"] == "http" else send
            )
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        else:
            await answer(scope, receive, send)

    def refusal(self, scope: Scope) -> Response | None:
        """What a request gets instead of an answer; None if it may pass."""
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if host not in self.hosts:
            known = ", ".join(sorted(self.hosts))
            return PlainTextResponse(f"the Host header {host[:100]!r} is none of {known}; use one of these\n", 421)
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            return PlainTextResponse("a page of another origin may not ask here\n", 403)
        method = scope.get("method", "GET")
        if method not in READING and origin is None:
            return PlainTextResponse("a request that changes something needs an Origin header\n", 403)
        if self._has_cookie(headers):
            return None
        return self._entered(scope, host) or PlainTextResponse(WITHOUT_TOKEN.format(host=host), 403)

    def _has_cookie(self, headers: Headers) -> bool:
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(headers.get("cookie", ""))
        except CookieError:
            return False
        found = jar.get(self.cookie)
        return found is not None and _same(found.value, self.token)

    def _entered(self, scope: Scope, host: str) -> Response | None:
        """The answer to the address with the token: a cookie, and the same address without it."""
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if scope["type"] != "http" or not _same(query.pop("token", [""])[0], self.token):
            return None
        rest = urlencode(query, doseq=True)
        path = "/" + scope["path"].lstrip("/\\")  # never `//name`, which would lead elsewhere
        answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303, {"cache-control": "no-store"})
        answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
        return answer


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


def _guarded(send: Send, host: str) -> Send:
    """``send`` that adds the policy to every response, and the nonce to the scripts of pages."""
    nonce = secrets.token_urlsafe(16)
    start: Message | None = None
    body = bytearray()

    async def guarded(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["content-security-policy"] = POLICY.format(nonce=nonce, socket=f"ws://{host}")
            for name, value in HEADERS.items():
                headers[name] = value
            if headers.get("content-type", "").startswith("text/html"):
                start = message
                return
        if message["type"] != "http.response.body" or start is None:
            await send(message)
            return
        body.extend(message.get("body", b""))
        if message.get("more_body"):
            return
        page = _SCRIPT.sub(b'<script nonce="' + nonce.encode() + b'"', bytes(body))
        headers = MutableHeaders(scope=start)
        headers["content-length"] = str(len(page))
        headers["cache-control"] = "no-store"
        await send(start)
        await send({"type": "http.response.body", "body": page})

    return guarded


def own_hosts(host: str, port: int) -> frozenset[str]:
    """What a browser on this machine may call a server that listens on ``host``."""
    names = {host.lower(), "127.0.0.1", "localhost", "[::1]"}
    return frozenset(f"[{name}]:{port}" if ":" in name and not name.startswith("[") else f"{name}:{port}" for name in names)
