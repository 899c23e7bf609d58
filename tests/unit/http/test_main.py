"""The HTTP door alone refuses what cannot work before it listens, as minedraft-launch does for it."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from minedraft.errors import ConfigError
from minedraft.http.main import command
from tests.support.tiny_models import write_tiny_tokenizer


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--origins", "http://a/"], "http_origins"),
        (["--hosts", "http://a/"], "http_hosts"),
        (["--model-name", ""], "model_name"),
        (["--tls-cert", "/nowhere", "--tls-key", "/nowhere"], "tls_cert"),
        (["--tls-cert", "/nowhere"], "tls_key"),
        (["--tls-key", "/nowhere"], "tls_cert"),
        (["--listen", "0.0.0.0:8000"], "listen"),
    ],
)
def test_what_cannot_work_is_refused_by_name(flags: list[str], field: str, tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path)
    done = CliRunner().invoke(command, ["--target", str(tmp_path), "--listen", "127.0.0.1:1", *flags])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.field == field
