"""What both ends of a TLS connection show and trust, in PEM, checked before anything listens or connects."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, Unpack

from minedraft.address import Address
from minedraft.errors import ConfigError
from minedraft.security.secret_file import MAX_SECRET_BYTES, mark_of, read_secret
from minedraft.security.tokens import check_token, read_tokens

logger = logging.getLogger(__name__)

SYSTEM = "system"
"""As a CA: those of the web, which come with gRPC."""

CA_NAME, CERT_NAME, KEY_NAME = "ca.pem", "cert.pem", "key.pem"
"""The files of a folder of worker certificates."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """One caller's side.

    Attributes:
        roots: the CAs that it trusts; None for those of the web.
        certificate, key: its own, for a server that wants one.
    """

    roots: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ServerPem:
    """One server's side. client_ca: callers must show a certificate of it; None: they need none."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None


class ServerTls:
    """A server's certificate, key and the CA of its callers, in files that may be replaced while it runs.

    Args:
        names: the settings that the files belong to, for errors.

    Raises:
        ConfigError: a file cannot be used, the certificate has expired, or the key is not its key.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
        names: tuple[str, str, str] = ("tls_cert", "tls_key", "tls_client_ca"),
    ) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._names = names
        self._marks = self._look()
        self.pem = self._read()

    def renew(self) -> ServerPem | None:
        """Return the content of the files if it has changed and can be used; otherwise None, and the old one stays."""
        marks = self._look()
        if marks == self._marks:
            return None
        self._marks = marks
        try:
            self.pem = self._read()
        except ConfigError as error:
            logger.error("the certificate in use stays: %s", error)
            return None
        logger.info("new connections use the new certificate in %s", self._certificate)
        return self.pem

    def _look(self) -> list[tuple[int, ...] | None]:
        return [mark_of(path) for path in (self._certificate, self._key, self._client_ca) if path is not None]

    def _read(self) -> ServerPem:
        certificate, key = _read_pair(self._certificate, self._key, self._names[0], self._names[1])
        ca = None if self._client_ca is None else _read_certificates(self._client_ca, self._names[2])
        return ServerPem(certificate, key, ca)


class AccessOptions(TypedDict, total=False):
    """What a client is given of what `Access` holds; see `Access.check`."""

    token: str | None
    token_file: str | os.PathLike[str] | None
    tls_ca: str | os.PathLike[str] | None
    tls_cert: str | os.PathLike[str] | None
    tls_key: str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class Access:
    """How to call a server: over TLS or not, with a token or not."""

    tls: ClientTls | None = None
    token: str = field(default="", repr=False)

    @classmethod
    def check(cls, address: Address, **options: Unpack[AccessOptions]) -> Access:
        """Return how a client calls the service at `address`; of a token file, the first token is used.

        Raises:
            ConfigError: a file cannot be used, or they contradict each other; also if the token would go unencrypted
                to another host.
        """
        token, token_file = options.get("token"), _path(options.get("token_file"))
        if token is not None and token_file is not None:
            raise ConfigError("token_file", str(token_file), "the token is given already; remove one of the two")
        if token_file is not None:
            token = read_tokens(token_file)[0]
        elif token is not None:
            token = check_token(token)
        ca = _path(options.get("tls_ca"))
        tls = _client_tls(ca, _path(options.get("tls_cert")), _path(options.get("tls_key")))
        if tls is not None and address.path is not None:
            raise ConfigError("tls_ca", str(ca), f"{address} is a unix socket, which is used without TLS")
        if token is not None and tls is None and not address.is_local:
            limit = f"required: the token would go to {address} unencrypted"
            raise ConfigError("tls_ca", None, limit)
        return cls(tls, token or "")

    def explain(self, details: str) -> str:
        """Return what the words of gRPC about a connection that failed mean here; "" if they say it themselves."""
        if "http1.x server" in details:
            return "it speaks HTTP, as OpenAI's clients do; give the address of gRPC, which the service is started with"
        if self.tls is None:
            return "it may want TLS: give tls_ca, the CA of its certificate" if "Socket closed" in details else ""
        if "WRONG_VERSION_NUMBER" in details:
            return "it does not use TLS"
        if "CERTIFICATE_VERIFY_FAILED" in details:
            return "its certificate is not signed by tls_ca, or has expired"
        if "Hostname Verification" in details:
            return "its certificate is for other names"
        if "Socket closed" in details and self.tls.certificate is None:
            return "it may want a certificate of the client: give tls_cert and tls_key"
        return ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call that shows the token."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def worker_server_tls(folder: Path | None, address: Address) -> ServerTls | None:
    """Return how a worker at `address` serves with a folder of certificates; None on a unix socket or without a folder.

    Raises:
        ConfigError: a file of the folder cannot be used.
    """
    if folder is None or address.path is not None:
        return None
    return ServerTls(folder / CERT_NAME, folder / KEY_NAME, folder / CA_NAME, ("worker_tls",) * 3)


def worker_client_tls(folder: Path | None, address: Address) -> ClientTls | None:
    """Return how a scheduler calls a worker at `address`; None on a unix socket or without a folder.

    Raises:
        ConfigError: a file of the folder cannot be used.
    """
    if folder is None or address.path is not None:
        return None
    certificate, key = _read_pair(folder / CERT_NAME, folder / KEY_NAME, "worker_tls", "worker_tls")
    return ClientTls(_read_certificates(folder / CA_NAME, "worker_tls"), certificate, key)


def _client_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> ClientTls | None:
    if (certificate is None) != (key is None):
        missing = "tls_cert" if certificate is None else "tls_key"
        raise ConfigError(missing, None, "a client's certificate needs its key, and the key its certificate")
    if ca is None:
        if certificate is not None:
            raise ConfigError("tls_ca", None, "must be given with tls_cert: the CA of the service's certificate")
        return None
    roots = None if str(ca) == SYSTEM else _read_certificates(ca, "tls_ca")
    if certificate is None or key is None:
        return ClientTls(roots)
    return ClientTls(roots, *_read_pair(certificate, key, "tls_cert", "tls_key"))


def _path(text: str | os.PathLike[str] | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


def _read_pair(certificate: Path, key: Path, cert_name: str, key_name: str) -> tuple[bytes, bytes]:
    """Return a certificate that is valid today, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    cert_pem, key_pem = _read_certificates(certificate, cert_name), read_secret(key, key_name)
    try:
        loaded = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError):  # not PEM, or under a password
        raise ConfigError(key_name, str(key), "is not a PEM key without a password") from None
    own = x509.load_pem_x509_certificates(cert_pem)[0]
    now = datetime.now(UTC)
    if not own.not_valid_before_utc <= now < own.not_valid_after_utc:
        valid = f"{own.not_valid_before_utc:%Y-%m-%d} to {own.not_valid_after_utc:%Y-%m-%d}"
        raise ConfigError(cert_name, str(certificate), f"is valid from {valid} only")
    if own.public_key() != loaded.public_key():
        raise ConfigError(key_name, str(key), f"is not the key of {certificate}")
    return cert_pem, key_pem


def _read_certificates(path: Path, name: str) -> bytes:
    from cryptography import x509

    try:
        with path.open("rb") as file:
            data = file.read(MAX_SECRET_BYTES)
        x509.load_pem_x509_certificates(data)
    except OSError as error:
        raise ConfigError(name, str(path), f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(name, str(path), "is not a certificate in PEM") from None
    return data
