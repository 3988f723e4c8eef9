"""Tell a web address how a study ended. A failure here fails nothing else."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo.errors import UsageError

ATTEMPTS = 4
FIRST_PAUSE_S = 1.0  # doubled after each attempt
ATTEMPT_S = 10.0  # for each step of an attempt: connecting, sending, the answer
MAX_TOTAL_S = 45.0  # for all of it, whatever a server does
RETRIED = (408, 425, 429)  # answers below 500 after which another attempt may succeed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """An address that takes JSON by POST.

    Its path, query and user are secrets (services put their keys there), so that only the host is ever shown.
    """

    url: str = field(repr=False)  # without user and password
    authorization: str | None = field(default=None, repr=False)  # header that stands for them
    shown: str  # what logs may hold

    @classmethod
    def parse(cls, url: str) -> Webhook:
        """Take a URL apart.

        Raises:
            UsageError: not one of http or https with a host.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:  # its message would hold the text
            parts, host, port = urllib.parse.SplitResult("", "", "", "", ""), None, None
        printable = url.isascii() and url.isprintable() and " " not in url
        if parts.scheme not in ("http", "https") or not host or not printable:
            raise UsageError("--notify takes a URL like https://host/path (in ASCII), got something else")
        address = f"[{host}]" if ":" in host else host
        address = address if port is None else f"{address}:{port}"
        authorization = None
        if parts.username is not None:
            user, password = urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
            authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        bare = urllib.parse.urlunsplit((parts.scheme, address, parts.path or "/", parts.query, ""))
        return cls(url=bare, authorization=authorization, shown=f"{parts.scheme}://{address}/***")

    def send(self, body: Mapping[str, Any]) -> bool:
        """Post a JSON object, again where that may help; returns whether it arrived, and logs why not."""
        failures: list[str] = []  # why the last attempt failed; empty: it arrived
        sender = threading.Thread(target=self._try, args=(json.dumps(body).encode(), failures), daemon=True)
        failures.append(f"no answer within {MAX_TOTAL_S:g} s")
        sender.start()
        sender.join(MAX_TOTAL_S)
        reasons = tuple(failures)
        if reasons:
            logger.warning("webhook %s: not delivered (%s)", self.shown, reasons[-1])
        return not reasons

    def _try(self, body: bytes, failures: list[str]) -> None:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            try:
                self._post(body)
            except urllib.error.HTTPError as error:
                error.close()
                failures.append(f"HTTP {error.code}, attempt {attempt + 1}")
                if error.code < 500 and error.code not in RETRIED:
                    return
            except (OSError, http.client.HTTPException, ValueError) as error:
                failures.append(f"{_kind(error)}, attempt {attempt + 1}")
            else:
                failures.clear()
                return

    def _post(self, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "hpo"}
        if self.authorization is not None:
            headers["Authorization"] = self.authorization
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        urllib.request.build_opener(_NoRedirects).open(request, timeout=ATTEMPT_S).close()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET without its body."""

    def redirect_request(self, *arguments: Any) -> None:
        del arguments


def _kind(error: Exception) -> str:
    """What went wrong, without words of the library's that could hold the address."""
    reason = getattr(error, "reason", error)
    words = getattr(reason, "strerror", None) if isinstance(reason, OSError) else None
    return words or type(reason).__name__
