"""The Optuna dashboard on a study's storage, and the policy before it.

Optuna's dashboard has no login: anyone who reaches its port may delete studies. So it is served to this machine alone,
or under a password; and a foreign web page cannot use the browser of a user who is logged in.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import hmac
import ipaddress
import signal
import socket
import sys
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, BinaryIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from bottle import HTTPError
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

from hpo.database.optuna_private import ArtifactFolder
from hpo.errors import UsageError
from hpo.home import Home

CLIENT_TIMEOUT_S = 60.0  # with a client that says nothing
UNREAD_BYTES = 1 << 20  # read of a refused request: a connection closed on unread data loses the answer on its way
# The page of a trial is as wide as its longest attribute is long, thousands of pixels: values break into lines here.
# So do commands in notes, and the cells of their tables stand apart.
STYLE = b"""<style>
p.MuiTypography-root { white-space: normal !important; overflow-wrap: anywhere; }
pre, pre code, pre code * { white-space: pre-wrap !important; overflow-wrap: anywhere; }
td, th { padding: 2px 8px; }
</style>"""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # which change nothing
SECURITY_HEADERS = [("X-Frame-Options", "SAMEORIGIN")]  # in a foreign page's frame, its clicks would land here
# A trial's file may be a page: its scripts must not act as the dashboard, nor another type be read into it. The
# dashboard lets pages of any site read files; that header is taken out.
FILE_HEADERS = [("Content-Security-Policy", "sandbox"), ("X-Content-Type-Options", "nosniff")]


@dataclass(frozen=True, kw_only=True)
class AccessPolicy:
    """Where the dashboard listens, and what it asks of clients.

    Raises:
        UsageError: others could come in and nothing would be asked of them.
    """

    host: str
    port: int
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.password is None and not _is_loopback(self.host):
            raise UsageError(
                f"--host {self.host}: others could reach the dashboard there and delete studies; "
                "give it a --password-file, or listen on 127.0.0.1"
            )


def read_password(path: Path) -> str:
    """The first line of a file, without white space around it.

    Raises:
        UsageError: there is no such file, or no password in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--password-file {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise UsageError(f"--password-file {path}: not UTF-8") from None  # its message would hold the bytes
    password = text.partition("\n")[0].strip()
    if not password:
        raise UsageError(f"--password-file {path}: no password in its first line")
    return password


def serve(storage: BaseStorage, home: Home, policy: AccessPolicy, announce: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM. For the main thread, which alone receives signals.

    Raises:
        UsageError: the port is taken or not allowed, the host is not this machine's.
    """
    with open_server(storage, home, policy) as server:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            host = f"[{policy.host}]" if ":" in policy.host else policy.host
            announce(f"dashboard: http://{host}:{policy.port}/ (Ctrl-C ends it)")
            server.serve_forever()
        except KeyboardInterrupt:
            announce("dashboard ended")
        finally:
            signal.signal(signal.SIGTERM, before)


def open_server(storage: BaseStorage, home: Home, policy: AccessPolicy) -> WSGIServer:
    """The dashboard under its policy, listening; `serve_forever` answers. It shows the trials' files of this home.

    Raises:
        UsageError: the port is taken or not allowed, the host is not this machine's.
    """
    try:
        server = _Server(policy)
    except (socket.gaierror, UnicodeError) as error:  # the latter for what cannot be a name
        raise UsageError(f"--host {policy.host}: no such address") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"--host {policy.host}: no address of this machine") from error
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UsageError(f"port {policy.port} {reason}; choose another with --port") from error
    app = wsgi(storage, artifact_store=_ArtifactFiles(home.artifacts))
    server.set_app(require_auth(styled(app), policy.password))
    return server


def require_auth(app: WSGIApplication, password: str | None) -> WSGIApplication:
    """Put a guard before an application that has none.

    Args:
        app: the application.
        password: asked for by HTTP Basic authentication, under any user name; without one, requests must name this
            machine as localhost: a browser that names another host was sent by a web page whose name was made to
            point here (DNS rebinding).
    """

    def guard(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if password is None and not _is_loopback(_host_name(environ.get("HTTP_HOST", ""))):
            return refuse(environ, start_response, "403 Forbidden", "this dashboard is for localhost alone")
        if password is not None and not _check_password(password, environ.get("HTTP_AUTHORIZATION", "")):
            return refuse(environ, start_response, "401 Unauthorized", "password required")
        if environ["REQUEST_METHOD"] not in SAFE_METHODS and _is_foreign(environ):
            return refuse(environ, start_response, "403 Forbidden", "sent by a page of another site")

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            own = [(name, value) for name, value in headers if name.lower() != "access-control-allow-origin"]
            is_file = environ.get("PATH_INFO", "").startswith("/artifacts/")
            return start_response(status, own + SECURITY_HEADERS + (FILE_HEADERS if is_file else []), *error)

        return app(environ, start)

    def refuse(environ: WSGIEnvironment, start_response: StartResponse, status: str, reason: str) -> list[bytes]:
        length = environ.get("CONTENT_LENGTH", "")
        with contextlib.suppress(OSError):
            environ["wsgi.input"].read(min(int(length), UNREAD_BYTES) if length.isdecimal() else 0)
        login = [("WWW-Authenticate", 'Basic realm="Assay", charset="UTF-8"')] if status.startswith("401") else []
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *login])
        return [f"{reason}\n".encode()]

    return guard


def styled(app: WSGIApplication) -> WSGIApplication:
    """Put a style of our own at the end of the dashboard's pages; the files that it serves stay as they are."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        ending = b""

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            nonlocal ending
            kind = next((value for name, value in headers if name.lower() == "content-type"), "")
            is_page = kind.startswith("text/html") and environ.get("PATH_INFO", "").startswith("/dashboard")
            if is_page and status.startswith("200") and environ["REQUEST_METHOD"] == "GET":
                ending = STYLE
            longer = [
                (name, str(int(value) + len(ending)) if name.lower() == "content-length" else value)
                for name, value in headers
            ]
            return start_response(status, longer, *error)

        body = app(environ, start)
        try:
            yield from body
            yield ending
        finally:
            getattr(body, "close", lambda: None)()

    return answer


def _check_password(password: str, authorization: str) -> bool:
    """Whether an Authorization header carries the password; in constant time."""
    scheme, _, credentials = authorization.partition(" ")
    try:
        _, _, given = base64.b64decode(credentials.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return False
    return scheme.lower() == "basic" and hmac.compare_digest(given, password.encode())


def _is_foreign(environ: WSGIEnvironment) -> bool:
    """Whether a browser sent this for a page of another site; what is no browser names no origin."""
    if "HTTP_ORIGIN" not in environ:
        return False
    origin: str = environ["HTTP_ORIGIN"]
    host: str = environ.get("HTTP_HOST", "")
    return origin.partition("://")[2].lower() != host.lower()


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a page that is still being made does not hold up the end

    def __init__(self, policy: AccessPolicy) -> None:
        found = socket.getaddrinfo(policy.host, policy.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        super().__init__((str(address[0]), int(address[1])), _QuietHandler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # else the client went away, or kept silent
            super().handle_error(request, client_address)


class _QuietHandler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not news."""


class _ArtifactFiles(ArtifactFolder):
    """The artifacts of this machine's home: another machine's files are reported as such, and can be removed."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file.

        Raises:
            HTTPError: 404, it is not here.
        """
        try:
            return super().open_reader(artifact_id)
        except ArtifactNotFound:
            words = "This file is not on this machine: it lies where the trial was trained (hpo:machine says where)."
            raise HTTPError(404, words) from None

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep an uploaded file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        super().write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Remove a file; one that is not here cannot keep a study from being deleted."""
        self.path(artifact_id).unlink(missing_ok=True)
