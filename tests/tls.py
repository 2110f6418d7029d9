"""A certificate authority of the tests, and a door with TLS in front of any server."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)
_PEM = serialization.Encoding.PEM
_SIGNS = x509.KeyUsage(False, False, False, False, False, True, True, False, False)


@dataclass
class Authority:
    """Signs certificates; files are in ``folder``. They have what RFC 5280 wants, and Python since 3.13 with it."""

    folder: Path
    name: str = "authority"
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        builder = self._builder(self.name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self._certificate = builder.add_extension(_SIGNS, critical=True).sign(self._key, hashes.SHA256())
        self.file.write_bytes(self._certificate.public_bytes(_PEM))

    @property
    def file(self) -> Path:
        """Its own certificate, which clients trust."""
        return self.folder / f"{self.name}.pem"

    def certificate(self, name: str, host: str = "127.0.0.1", *, days: tuple[int, int] = (-1, 1)) -> Path:
        """A file with a key and its certificate for ``host``, valid between two days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternative: x509.GeneralName = x509.DNSName(host)
        with contextlib.suppress(ValueError):
            alternative = x509.IPAddress(ipaddress.ip_address(host))
        builder = self._builder(name, key, days).add_extension(x509.SubjectAlternativeName([alternative]), False)
        signed = builder.sign(self._key, hashes.SHA256())
        file = self.folder / f"{name}.pem"
        secret = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        file.write_bytes(secret + signed.public_bytes(_PEM))
        return file

    def _builder(
        self, name: str, key: ec.EllipticCurvePrivateKey, days: tuple[int, int] = (-1, 1)
    ) -> x509.CertificateBuilder:
        now, (first, last) = datetime.now(UTC), days
        subject_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(_called(name)).issuer_name(_called(self.name)).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + first * _DAY).not_valid_after(now + last * _DAY)
            .add_extension(subject_id, critical=False).add_extension(authority_id, critical=False)
        )  # fmt: skip


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@contextlib.contextmanager
def tls_door(target: int, certificate: Path, clients: Path | None = None) -> Iterator[int]:
    """A port that speaks TLS, with ``certificate``, before the ``target`` port of this machine.

    With ``clients`` only those come in whose certificates this authority has signed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=_enter, args=(context, client, target), daemon=True).start()

    thread = threading.Thread(target=accept, name="tls door", daemon=True)
    thread.start()
    yield int(listener.getsockname()[1])
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def _enter(context: ssl.SSLContext, client: socket.socket, target: int) -> None:
    """Carry bytes both ways until one side ends. One thread: no two may be in one TLS connection at once."""
    # A client that is refused, or that refuses us, is what the tests are about.
    with (
        client,
        contextlib.suppress(OSError),
        context.wrap_socket(client, server_side=True) as outer,
        socket.create_connection(("127.0.0.1", target)) as inner,
    ):
        while True:
            ready = [outer] if outer.pending() else select.select([outer, inner], [], [])[0]
            for source in ready:
                content = source.recv(65_536)
                if not content:
                    return
                (inner if source is outer else outer).sendall(content)
