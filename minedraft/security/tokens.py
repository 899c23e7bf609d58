"""The tokens that admit clients, one a line of a file; several at once, so that one can be replaced by the next."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from pathlib import Path

from minedraft.errors import ConfigError
from minedraft.security.secret_file import find_secret, mark_of, read_secret

logger = logging.getLogger(__name__)

MIN_TOKEN_CHARS = 16
MAX_TOKEN_CHARS = 1024
MAX_TOKENS = 1024
# What a header can carry; no spaces, which a token would gain and lose unseen.
_TOKEN = re.compile(r"[\x21-\x7e]+")


class TokenFile:
    """The tokens of a file: one a line; empty lines and those that begin with `#` are skipped.

    It is read again when it has changed. A file that can no longer be used admits nobody until it is mended.

    Args:
        path: of the file, or the name of one of systemd's credentials.

    Raises:
        ConfigError: the file cannot be used; see `read_tokens`.
    """

    def __init__(self, path: Path, field: str = "token_file") -> None:
        self._path = find_secret(path)
        self._field = field
        self._mark = mark_of(self._path)
        self._digests = _digests(read_tokens(self._path, field))

    def admits(self, token: str) -> bool:
        """Return whether the token is one of the file's. How long it takes does not depend on what they have in
        common."""
        self._read_again()
        digest = _digest(token)
        is_known = False
        for known in self._digests:
            is_known |= hmac.compare_digest(digest, known)
        return is_known

    def _read_again(self) -> None:
        mark = mark_of(self._path)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._digests = _digests(read_tokens(self._path, self._field))
            logger.info("%s has changed: %d tokens are valid", self._path, len(self._digests))
        except ConfigError as error:
            self._digests = ()
            logger.error("no token is valid now: %s", error)


def read_tokens(path: Path, field: str = "token_file") -> list[str]:
    """Return the tokens of a file, at least one.

    Raises:
        ConfigError: it cannot be read, is open to other users, has no token, too many, or one that is too short, too
            long or not printable ASCII; the error never shows a token.
    """
    path = find_secret(path)
    try:
        lines = read_secret(path, field).decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(field, str(path), "is not text") from None
    tokens: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            tokens.append(_check(line.strip(), field, f"{path}, line {number}"))
    if not tokens:
        raise ConfigError(field, str(path), "has no token; `minedraft certs` makes one")
    if len(tokens) > MAX_TOKENS:
        raise ConfigError(field, str(path), f"has {len(tokens)} tokens, at most {MAX_TOKENS} are allowed")
    return tokens


def check_token(token: str) -> str:
    """Return the token that a client was given. Raise ConfigError, which does not show it, if it can be none."""
    return _check(token, "token", "the token given")


def new_token() -> str:
    """Return a random token of 256 bits."""
    return secrets.token_urlsafe(32)


def _check(token: str, field: str, where: str) -> str:
    if not MIN_TOKEN_CHARS <= len(token) <= MAX_TOKEN_CHARS:
        limit = f"a token has {MIN_TOKEN_CHARS} to {MAX_TOKEN_CHARS} characters, this one has {len(token)}"
        raise ConfigError(field, where, limit)
    if not _TOKEN.fullmatch(token):
        raise ConfigError(field, where, "a token is printable ASCII without spaces")
    return token


def _digests(tokens: list[str]) -> tuple[bytes, ...]:
    return tuple(_digest(token) for token in tokens)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
