"""What can be wrong with TLS on the way to Redis, said so that one can mend it."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import redis

from jobs.errors import InputError, first_line

#: How Python dresses what OpenSSL says.
_OPENSSL = re.compile(r".*\[(?:SSL|X509)[^]]*\] (.*?)\.? \(_ssl\.c:\d+\)")
_UNKNOWN_ISSUER = ("unable to get local issuer certificate", "self-signed certificate")


def check_files(options: Mapping[str, Any]) -> None:
    """Read the files that the Redis URL names. Raises InputError: what redis-py says later names none of them."""
    authorities, certificate, key = (options.get(f"ssl_{name}") for name in ("ca_certs", "certfile", "keyfile"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authorities:
        _read(f"ssl_ca_certs={authorities}", "certificates", lambda: context.load_verify_locations(authorities))
    if key and not certificate:
        raise InputError("PROMPTMILL_REDIS_URL: ssl_keyfile wants the ssl_certfile that it belongs to")
    if certificate:
        named = f"ssl_certfile={certificate}" + (f" with ssl_keyfile={key}" if key else "")
        # An empty password: nobody is asked for one in the middle of a command.
        _read(named, "a certificate with its key", lambda: context.load_cert_chain(certificate, key, lambda: ""))


def _read(named: str, what: str, read: Callable[[], None]) -> None:
    try:
        read()
    except OSError as error:
        reason = _OPENSSL.sub(r"\1", first_line(error)) if isinstance(error, ssl.SSLError) else error.strerror
        raise InputError(f"PROMPTMILL_REDIS_URL: {named} does not hold {what}: {reason}") from error


def said(text: str, pool: redis.ConnectionPool) -> str:
    """What redis-py says of a connection that failed, with what TLS may have to do with it."""
    options = pool.connection_kwargs
    ours = "with" if options.get("ssl_certfile") else "without"
    if found := _OPENSSL.match(text):
        if "alert" in found[1]:  # it is the server that refuses
            return f"{found[1]} (TLS {ours} a client certificate)"
        missing = any(words in text for words in _UNKNOWN_ISSUER) and not options.get("ssl_ca_certs")
        return f"{found[1]} (TLS)" + ("; ?ssl_ca_certs=FILE names an authority of your own" if missing else "")
    if "path" in options or ("closed by server" not in text and "reset by peer" not in text):
        return text
    over = issubclass(pool.connection_class, redis.SSLConnection)
    return f"{text} (TLS {ours} a client certificate)" if over else f"{text} (without TLS)"


def of_silence(error: BaseException) -> str:
    """What a handshake without an answer suggests."""
    return " over TLS: a port without TLS is redis://" if "handshake" in str(error.__context__) else ""
