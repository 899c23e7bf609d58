"""The file of tokens: what is refused before a service starts, and what it admits while it runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from minedraft.errors import ConfigError
from minedraft.security.tokens import MIN_TOKEN_CHARS, TokenFile, check_token, new_token, read_tokens
from tests.fakes.certificates import write_secret

OLD, NEW = "old-token-0123456789", "new-token-0123456789"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("", "has no token"),
        (" \n\t\n\n", "has no token"),
        ("# only a remark\n", "has no token"),
        ("x" * (MIN_TOKEN_CHARS - 1), "line 1.*characters, this one has 15"),
        (f"{OLD}\nshort\n", "line 2.*this one has 5"),
        ("x" * 1025, "this one has 1025"),
        ("two words are no token", "printable ASCII without spaces"),
        ("schlüssel-0123456789", "printable ASCII without spaces"),
        ("\n".join(f"{OLD}{number}" for number in range(1025)), "has 1025 tokens"),
    ],
)
def test_a_file_without_a_usable_token_is_refused(tmp_path: Path, text: str, limit: str) -> None:
    with pytest.raises(ConfigError, match=limit) as caught:
        TokenFile(write_secret(tmp_path / "token", text))
    assert caught.value.field == "token_file"
    assert not any(word in str(caught.value) for word in (OLD, "two words", "schl")), "no token in a message"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o700, 0o610])
def test_a_file_that_others_may_read_is_refused_by_name(tmp_path: Path, mode: int) -> None:
    path = write_secret(tmp_path / "token", OLD, mode)
    with pytest.raises(ConfigError, match=f"{path}.*has mode {mode:04o}, at most 0600"):
        read_tokens(path)


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, limit in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "directory|not a file"),
        (tmp_path / "pipe", "not a file"),
    ):
        with pytest.raises(ConfigError, match=limit):
            read_tokens(path)
    path = write_secret(tmp_path / "token", "")
    path.write_bytes(b"\xff" * 32)
    with pytest.raises(ConfigError, match="is not text"):
        read_tokens(path)


def test_a_credential_of_systemd_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    # systemd shows the ACL of the service's user as the bits of the group
    write_secret(credentials / "minedraft-token", OLD, 0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert TokenFile(Path("minedraft-token")).admits(OLD)
    (credentials / "minedraft-token").chmod(0o444)
    with pytest.raises(ConfigError, match="has mode 0444"):
        TokenFile(Path("minedraft-token"))


def test_only_the_tokens_of_the_file_are_admitted(tmp_path: Path) -> None:
    tokens = TokenFile(write_secret(tmp_path / "token", f"# of May\n{OLD}\n\n  {NEW}  \n"))
    assert tokens.admits(OLD)
    assert tokens.admits(NEW)
    for wrong in ("", OLD[:-1], f"{OLD}x", OLD.upper(), f"{OLD}\n{NEW}", "# of May", "\udcff"):
        assert not tokens.admits(wrong)


def test_a_changed_file_is_read_again_and_a_broken_one_admits_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_secret(tmp_path / "token", OLD)
    tokens = TokenFile(path)
    with caplog.at_level(logging.INFO):
        write_secret(tmp_path / "next", f"{NEW}\n{OLD}\n").replace(path)
        assert tokens.admits(OLD), "both are valid while clients change over"
        assert tokens.admits(NEW)
        write_secret(path, f"{NEW}\n")
        assert not tokens.admits(OLD)
        path.chmod(0o644)
        assert not tokens.admits(NEW), "everybody could have read it"
        path.chmod(0o600)
        assert tokens.admits(NEW)
        path.unlink()
        assert not tokens.admits(NEW)
    assert OLD not in caplog.text
    assert NEW not in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "ERROR", "INFO", "ERROR"]


def test_a_new_token_can_be_used_and_is_never_the_same() -> None:
    first, second = check_token(new_token()), check_token(new_token())
    assert first != second
    assert len(first) >= 43
