"""The Optuna dashboard on a study's storage, served to this machine alone."""

from __future__ import annotations

import errno
from collections.abc import Callable
from wsgiref.simple_server import WSGIRequestHandler, make_server

from optuna.storages import BaseStorage
from optuna_dashboard import wsgi

from hpo.errors import UsageError

LOOPBACK = "127.0.0.1"  # the dashboard has no login: whoever reaches the port may delete studies


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests are not news."""


def serve(storage: BaseStorage, port: int, announce: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Raises:
        UsageError: the port is taken or not allowed.
    """
    try:
        server = make_server(LOOPBACK, port, wsgi(storage), handler_class=_QuietHandler)
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UsageError(f"port {port} {reason}; choose another with --port") from error
    announce(f"dashboard: http://{LOOPBACK}:{port}/ (Ctrl-C ends it)")
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            announce("dashboard ended")
