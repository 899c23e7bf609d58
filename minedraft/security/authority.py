"""A private certificate authority, and certificates of it for a set of hosts."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from minedraft.errors import ConfigError
from minedraft.security.secret_file import read_secret
from minedraft.security.tls import CA_NAME, CERT_NAME, KEY_NAME
from minedraft.security.tokens import new_token

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CA_KEY_NAME = "ca.key.pem"
TOKEN_NAME = "token"  # noqa: S105 - the name of a file

_HOST = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9_.:-]*")  # names a folder, too
_MAX_NAME_CHARS = 64  # of a subject, by X.509
_CA_SUBJECT = "MineDraft private CA"
_CLOCK_SLACK = timedelta(hours=1)  # of a host whose clock is behind
_CA_DAYS = 3650


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate and its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Return the CA of a folder, which is made if the folder has none.

        Raises:
            ConfigError: the folder cannot be written, or its CA cannot be used.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (folder / CA_KEY_NAME).exists():
                made = cls.make()
                _write(folder / CA_KEY_NAME, _key_pem(made.key))
                _write(folder / CA_NAME, made.pem)
            return cls._read(folder)
        except OSError as error:
            raise ConfigError("folder", str(folder), f"cannot be used: {error.strerror}") from None

    @classmethod
    def make(cls) -> Authority:
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        return cls(_sign([], key, key, _CA_DAYS), key)

    @classmethod
    def _read(cls, folder: Path) -> Authority:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key_pem = read_secret(folder / CA_KEY_NAME, "folder")
        try:
            certificate = x509.load_pem_x509_certificate((folder / CA_NAME).read_bytes())
            key = load_pem_private_key(key_pem, None)
        except (ValueError, TypeError):
            raise ConfigError("folder", str(folder), f"{CA_NAME} or {CA_KEY_NAME} is damaged") from None
        if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError("folder", str(folder), f"{CA_KEY_NAME} is not the key of {CA_NAME}")
        return cls(certificate, key)

    @property
    def pem(self) -> bytes:
        return _cert_pem(self.certificate)

    def issue(self, names: list[str], days: int) -> tuple[bytes, bytes]:
        """Return a new certificate and its key, in PEM. Both ends of a link show one, so it serves and calls.

        Args:
            names: the host's names and IP addresses, as callers write them.
        """
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        return _cert_pem(_sign(names, key, self.key, days)), _key_pem(key)


def make_certificates(folder: Path, hosts: list[str], days: int) -> list[Path]:
    """Make certificates of a folder's CA for hosts, and a token for clients; CA and token are kept if they are there.

        folder/ca.pem, ca.key.pem               the CA; the key need not leave this place
        folder/token                            a token for clients
        folder/HOST/ca.pem, cert.pem, key.pem   what the host needs

    Args:
        hosts: the names and IP addresses of each, separated by commas; the first names the folder.

    Returns:
        The folders of the hosts.

    Raises:
        ConfigError: the folder cannot be written, its CA cannot be used, or a host is no name or address.
    """
    names_of = [host.split(",") for host in hosts]
    for host, names in zip(hosts, names_of, strict=True):
        if not all(_HOST.fullmatch(name) for name in names):
            raise ConfigError("hosts", host, "must be a host's names or IP addresses, separated by commas")
    authority = Authority.open(folder)
    made = []
    try:
        if not (folder / TOKEN_NAME).exists():
            _write(folder / TOKEN_NAME, f"{new_token()}\n".encode())
        for names in names_of:
            place = folder / names[0]
            place.mkdir(mode=0o700, exist_ok=True)
            certificate, key = authority.issue(names, days)
            # A service that runs with these files takes them once they fit together.
            _write(place / KEY_NAME, key)
            _write(place / CERT_NAME, certificate)
            _write(place / CA_NAME, authority.pem)
            made.append(place)
    except OSError as error:
        raise ConfigError("folder", str(folder), f"cannot be written: {error.strerror}") from None
    return made


def _sign(
    names: list[str], key: EllipticCurvePrivateKey, issuer_key: EllipticCurvePrivateKey, days: int
) -> x509.Certificate:
    """Return a certificate of a host; of the CA itself without names."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_MAX_NAME_CHARS])])

    is_ca = not names
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    usage |= {"digital_signature": not is_ca, "key_cert_sign": is_ca, "crl_sign": is_ca}
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(_CA_SUBJECT if is_ca else names[0]))
        .issuer_name(named(_CA_SUBJECT))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_ca, 0 if is_ca else None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_ca:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        alternatives = x509.SubjectAlternativeName([_name_of(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(issuer_key, SHA256())


def _name_of(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _cert_pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _write(path: Path, data: bytes) -> None:
    """Replace a file at once, with mode 0600."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    temporary.replace(path)
