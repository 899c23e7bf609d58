"""Certificates and keys: made by one command, checked before anything listens or connects."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509

from minedraft.address import Address
from minedraft.cli.certs import certs
from minedraft.errors import ConfigError, ConfigErrors
from minedraft.security.authority import make_certificates
from minedraft.security.tls import Access, ServerTls, worker_client_tls, worker_server_tls
from minedraft.security.tokens import read_tokens
from minedraft.settings.loading import load_settings
from tests.fakes.certificates import certify, write_secret

TOKEN = "a-token-of-enough-characters"
NETWORK, SOCKET = Address.parse("10.0.0.2:7000"), Address.parse("unix:/run/a.sock")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certify(tmp_path_factory.mktemp("ca"))


def test_certificates_are_for_their_host_alone_and_their_files_for_their_user(tmp_path: Path) -> None:
    far, near = make_certificates(tmp_path / "certs", ["far.example,10.0.0.2,::1", "near"], 30)
    assert (far.name, near.name) == ("far.example", "near")
    assert {path.name for path in far.iterdir()} == {"ca.pem", "cert.pem", "key.pem"}
    for path in (tmp_path / "certs").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    own = x509.load_pem_x509_certificate((far / "cert.pem").read_bytes())
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["far.example"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.2", "::1"]
    assert 29 <= (own.not_valid_after_utc - datetime.now(UTC)).days <= 30
    # OpenSSL agrees that they form a chain and that the key fits
    context = ssl.create_default_context(cafile=str(far / "ca.pem"))
    context.load_cert_chain(far / "cert.pem", far / "key.pem")
    own.verify_directly_issued_by(x509.load_pem_x509_certificate((near / "ca.pem").read_bytes()))


def test_a_second_run_keeps_ca_and_token_and_renews_the_hosts(tmp_path: Path) -> None:
    host = certify(tmp_path, "a")
    kept = {name: (tmp_path / name).read_bytes() for name in ("ca.pem", "ca.key.pem", "token")}
    old = (host / "cert.pem").read_bytes()
    certify(tmp_path, "a", "b")
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert (host / "cert.pem").read_bytes() != old
    (tmp_path / "ca.key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"ca\.key\.pem.*mode 0644"):
        certify(tmp_path, "a")


@pytest.mark.parametrize("host", ["", "a b", "../a", "a/b", ".", "a,,b", "ä"])
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="hosts"):
        make_certificates(tmp_path, [host], 1)
    assert not list(tmp_path.iterdir())


def test_files_of_a_server_that_do_not_fit_are_refused_by_name(here: Path, tmp_path: Path) -> None:
    other = certify(tmp_path / "other")
    cert, key = here / "cert.pem", here / "key.pem"
    text = write_secret(tmp_path / "text", "no PEM")
    wide = write_secret(tmp_path / "wide", key.read_text(), 0o640)
    for files, field, limit in (
        ((cert, other / "key.pem"), "tls_key", "is not the key of"),
        ((cert, wide), "tls_key", "has mode 0640"),
        ((cert, text), "tls_key", "is not a PEM key"),
        ((text, key), "tls_cert", "is not a certificate"),
        ((tmp_path / "none", key), "tls_cert", "No such file"),
        ((cert, key, text), "tls_client_ca", "is not a certificate"),
    ):
        with pytest.raises(ConfigError, match=limit) as caught:
            ServerTls(*files)
        assert caught.value.field == field


def test_a_certificate_that_has_expired_is_refused(here: Path, tmp_path: Path) -> None:
    expired = certify(tmp_path, days=0)  # it began an hour ago and ends now
    with pytest.raises(ConfigError, match=r"tls_cert.*is valid from .* only"):
        ServerTls(expired / "cert.pem", expired / "key.pem")


def test_new_files_are_used_once_they_fit_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host = certify(tmp_path)
    tls = ServerTls(host / "cert.pem", host / "key.pem")
    old = tls.pem
    assert tls.renew() is None
    certify(tmp_path / "new")
    new = tmp_path / "new" / host.name
    (new / "key.pem").replace(host / "key.pem")
    assert tls.renew() is None, "the old certificate does not fit the new key"
    assert "the certificate in use stays" in caplog.text
    (new / "cert.pem").replace(host / "cert.pem")
    renewed = tls.renew()
    assert renewed is not None
    assert renewed != old
    assert tls.pem is renewed
    assert tls.renew() is None


def test_workers_use_tls_on_networks_only(here: Path) -> None:
    assert worker_server_tls(here, SOCKET) is worker_client_tls(here, SOCKET) is None
    assert worker_server_tls(None, NETWORK) is worker_client_tls(None, NETWORK) is None
    server, client = worker_server_tls(here, NETWORK), worker_client_tls(here, NETWORK)
    assert server is not None
    assert client is not None
    assert server.pem.client_ca == client.roots == (here / "ca.pem").read_bytes()


def test_settings_that_contradict_each_other_are_refused_together(here: Path, tmp_path: Path) -> None:
    token = str(write_secret(tmp_path / "token", TOKEN))
    tls = {"tls_cert": str(here / "cert.pem"), "tls_key": str(here / "key.pem")}
    whole = load_settings({"listen": "0.0.0.0:50051", "token_file": token, **tls})
    assert whole.token_file == Path(token)
    for given, words in (
        ({"listen": "10.0.0.1:50051", "token_file": token}, "listen.*missing: tls_cert, tls_key"),
        ({"listen": "[::]:50051", **tls}, r"listen.*missing: token_file"),
        ({"listen": "unix:/a", **tls}, "tls_cert.*is a unix socket"),
        ({"listen": "0.0.0.0:50051", "token_file": str(write_secret(tmp_path / "empty", "\n")), **tls}, "has no token"),
    ):
        with pytest.raises(ConfigErrors, match=words) as caught:
            load_settings(given)
        assert len(caught.value.errors) == 1


@pytest.mark.parametrize(
    ("address", "given", "words"),
    [
        (NETWORK, {"token": TOKEN}, "tls_ca: required: the token would go to 10.0.0.2:7000 unencrypted"),
        (SOCKET, {"tls_ca": "system"}, "tls_ca is 'system': .* is a unix socket"),
        (NETWORK, {"token": "short"}, "the token given"),
        (NETWORK, {"token": TOKEN, "token_file": "/t"}, "token_file.*remove one"),
        (NETWORK, {"tls_cert": "/c"}, "tls_key"),
        (NETWORK, {"tls_cert": "/c", "tls_key": "/k"}, "tls_ca: must be given with tls_cert"),
        (NETWORK, {"tls_ca": "/nowhere"}, "tls_ca.*No such file"),
    ],
)
def test_a_client_refuses_what_cannot_protect_it(address: Address, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Access.check(address, **given)
    assert TOKEN not in str(caught.value)


def test_secrets_are_not_shown(here: Path) -> None:
    access = Access.check(
        NETWORK, token=TOKEN, tls_ca=here / "ca.pem", tls_cert=here / "cert.pem", tls_key=here / "key.pem"
    )
    server = ServerTls(here / "cert.pem", here / "key.pem")
    shown = f"{access!r} {access} {server!r} {server.pem!r}"
    assert TOKEN not in shown
    assert "PRIVATE KEY" not in shown
    assert access.metadata == (("authorization", f"Bearer {TOKEN}"),)


def test_one_command_makes_everything_and_says_how_to_use_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(certs, [str(tmp_path / "all"), "far.example,10.0.0.2", "near"])
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(tmp_path / "all" / "far.example"), str(tmp_path / "all" / "near")]
    for words in ("--worker-tls", "--tls-cert", "--tls-ca", f"--token-file {tmp_path}/all/token"):
        assert words in done.stderr
    assert read_tokens(tmp_path / "all" / "token")
