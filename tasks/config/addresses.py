"""Addresses in `params.yaml`: of web hooks and of MLflow's stores."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

HTTP = ("http", "https")
SERVERS = ("postgresql", "mysql", "mssql")  # of databases


def _split(address: str) -> SplitResult | None:
    """The parts of an address; None if it cannot be read, has spaces, or its port is no number or 0."""
    if any(char.isspace() or not char.isprintable() for char in address):
        return None
    try:
        parts = urlsplit(address)
        return None if parts.port == 0 else parts
    except ValueError:  # a port that is no number, or brackets that do not match
        return None


def is_web_address(address: str) -> bool:
    """Whether the address is that of a server reached by HTTP."""
    parts = _split(address)
    return parts is not None and parts.scheme in HTTP and bool(parts.hostname)


def is_tracking_uri(address: str) -> bool:
    """Whether the address is an MLflow tracking URI that names a server, a database of a server, or an SQLite file.

    `sqlite://` and `sqlite:///:memory:` are databases in memory, which no second process can read.
    """
    scheme, separator, rest = address.partition(":///")
    if separator and scheme.partition("+")[0] == "sqlite":
        return "\0" not in rest and bool(rest.strip("/")) and not rest.endswith("/") and ":memory:" not in rest
    parts = _split(address)
    if parts is None or parts.scheme.partition("+")[0] not in SERVERS:
        return is_web_address(address)
    return bool(parts.path.strip("/"))
