"""Whether the hub can be reached, asked within seconds: its own client would retry for half a minute and more.

The address is that of the endpoint, or of the proxy, that huggingface_hub would use.
"""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit

from fusionlab.errors import ModelError

_TIMEOUT_SECONDS = 3.0
_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}


def why_unreachable() -> str | None:
    """Why the hub, or the proxy before it, takes no connection within three seconds; None where it does.

    Answers at once when HF_HUB_OFFLINE is set. Raises `ModelError` for an HF_ENDPOINT that is no address.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    host, port = address_to_try(constants.ENDPOINT)
    answers: list[str | None] = []

    def connect() -> None:
        try:
            with socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS):
                answers.append(None)
        except OSError as error:
            answers.append(str(error))

    # in a thread, because looking up a name obeys no timeout, and a name may have several addresses to time out on
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(_TIMEOUT_SECONDS)
    return answers[0] if answers else f"no answer from {host}:{port} within {_TIMEOUT_SECONDS:g} seconds"


def address_to_try(endpoint: str) -> tuple[str, int]:
    """Host and port of the hub's endpoint, or of the proxy that the environment sets for it.

    >>> address_to_try("http://hub.example:8080")                     # doctest: +SKIP
    ('hub.example', 8080)
    """
    from urllib.request import getproxies, proxy_bypass

    target = split_address(endpoint, "HF_ENDPOINT")
    proxies = getproxies()
    proxy = proxies.get(urlsplit(endpoint).scheme) or proxies.get("all")
    if proxy and not proxy_bypass(f"{target[0]}:{target[1]}"):
        return split_address(proxy if "://" in proxy else f"http://{proxy}", "the proxy")
    return target


def split_address(url: str, name: str) -> tuple[str, int]:
    """Host and port of a URL, the port from its scheme where none is given. name: what to call it in an error."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:  # a port that is no number
        parts, port = urlsplit(""), None
    if not parts.hostname or port is None:
        raise ModelError(f"{name} is {url!r}, which is no address", remedy="write it like http://host:8080")
    return parts.hostname, port
