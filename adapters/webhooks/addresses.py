"""Which addresses a webhook may have: none by which a request could reach what only this machine or its network can."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

from graftwork.adapters.errors import InvalidRequest

MAX_URL_CHARS = 2000

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_INNER = tuple(map(ipaddress.ip_network, ("64:ff9b:1::/48", "fec0::/10", "::ffff:0:0:0/96")))
"""Networks that reach what is not public, and that older versions of Python take for global."""


def check_url(url: str, *, allow_private: bool) -> SplitResult:
    """Check a webhook's URL as far as that can be done without a lookup of its name.

    Raises:
        InvalidRequest: It is no URL for a webhook.
    """

    def refuse(why: str) -> InvalidRequest:
        return InvalidRequest(f"url {why}", param="url", code="invalid_url")

    if len(url) > MAX_URL_CHARS or not url.isascii() or any(char <= " " for char in url):
        raise refuse(f"has at most {MAX_URL_CHARS} characters, all of them ASCII and none of them white space")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise refuse("is none: give one like https://hooks.example/graftwork") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise refuse("begins with https:// or http:// and names a host")
    if parts.username is not None or parts.password is not None:
        raise refuse("must not have a user or password: requests are signed instead")
    if parts.fragment:
        raise refuse("must not have a fragment")
    if not allow_private and _is_literal(parts.hostname) and not _is_public(parts.hostname):
        raise refuse(
            f"has the address {parts.hostname}, which is not public: graftwork serve --allow-private-webhooks "
            "permits such ones"
        )
    return parts


def resolve(host: str, port: int, *, allow_private: bool) -> str:
    """The address to connect to, so that no later lookup of the name can lead elsewhere.

    Raises:
        OSError: The name has no address, or one that is not public.
    """
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    private = [address for address in found if not _is_public(address)]
    if private and not allow_private:
        raise OSError(f"{host} has the address {private[0]}, which is not public")
    return found[0]


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # What the system's resolver would take for an address, such as 0x7f.1 or 2130706433.
        try:
            socket.inet_aton(host)
        except OSError:
            return False
    return True


def _is_public(address: str) -> bool:
    """Whether an address, as text, is one of the public internet."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if inner is not None:
            return _is_public(str(inner))
        if parsed in _NAT64:
            return _is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
        if any(parsed in network for network in _INNER):
            return False
    return parsed.is_global and not parsed.is_multicast
