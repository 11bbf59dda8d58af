"""Who may ask what: the host they name, the page they come from, the token they have."""

import hmac
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bach.serve.figures import Figures

COOKIE = "bach_session"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SAFE = ("GET", "HEAD", "OPTIONS")
# Without a token: what shows that the service lives, and how to give one.
_OPEN = ("/v2/health/live", "/v2/health/ready", "/login")
_OPEN_FOLDER = "/assets/"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Stands before the routes: refuses, adds headers, counts.

    Args:
        app: The routes.
        token: What whoever asks must have; None where nobody needs one.
        loopback: Whether the service listens to this machine alone.
        figures: Count what is answered.

    Attributes:
        session: What a browser keeps as a cookie once it has shown the token; another at
            every start.
    """

    def __init__(self, app: ASGIApp, token: str | None, loopback: bool, figures: Figures):
        self._app, self._token, self._loopback, self._figures = app, token, loopback, figures
        self.session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        scope["guard"] = self
        try:
            refusal = self._refusal(scope)
            await (refusal or self._app)(scope, receive, answer)
        except ClientDisconnect:
            status = 499  # as others call it: nobody is there to be answered
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._figures.request(scope["method"], route, status, time.monotonic() - start)

    def is_token(self, given: str) -> bool:
        """Whether somebody has the token; takes as long for any that is wrong."""
        return self._token is not None and _same(given, self._token)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # A page elsewhere can have its own name lead here (DNS rebinding): it then asks by it.
        if self._loopback and _hostname(host) not in _LOOPBACK:
            return refused(421, f"This service answers to localhost, not to {host!r:.100}.")
        if scope["method"] not in _SAFE:
            origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
            elsewhere = origin is not None and _netloc(origin) != host.lower()
            if elsewhere or site not in ("same-origin", "none"):
                return refused(403, "Pages of other places may not change anything here.")
        path = scope["path"]
        if self._token is None or path in _OPEN or path.startswith(_OPEN_FOLDER):
            return None
        if self._known(headers):
            return None
        scope["unknown"] = True
        if path == "/" and scope["method"] in ("GET", "HEAD"):
            return None  # asks for the token
        return refused(
            401,
            "A token must be sent: Authorization: Bearer TOKEN.",
            {"WWW-Authenticate": 'Bearer realm="bach"'},
        )

    def _known(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return False
        return COOKIE in cookies and _same(cookies[COOKIE].value, self.session)


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error, in the form of all but those of /v2."""
    return JSONResponse({"status": "error", "message": message}, status, headers)


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _netloc(origin: str) -> str:
    """Host and port of an origin, "" of one that has none ("null")."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
