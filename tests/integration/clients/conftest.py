"""A real service with small random models behind the door, for clients that other people have written.

Most of these clients are in an environment of their own, which `scripts/test --clients` makes; where it is missing,
their tests are skipped.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from minedraft.local import serve
from tests.support.tiny_models import make_tiny_model

ENVIRONMENT = Path(os.environ["MINEDRAFT_CLIENTS"]) if "MINEDRAFT_CLIENTS" in os.environ else None
MODEL = "smollm2-135m-instruct"  # the name that the README's examples ask for


@pytest.fixture(scope="package")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the door, without a slash at its end."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "target", max_position_embeddings=2048)
    make_tiny_model(folder / "draft", layers=1, seed=1, max_position_embeddings=2048)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    small = {"dtype": "float32", "num_blocks": 512, "target_device": "cpu", "draft_device": "cpu", "mode": "sd"}
    service = serve(folder / "target", folder / "draft", http=f"127.0.0.1:{port}", model_name=MODEL, **small)
    with service:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def environment() -> Path:
    """The folder of the environment with clients: `bin`, and `node_modules` if it has node."""
    if ENVIRONMENT is None:
        pytest.skip("needs the clients: scripts/test --clients")
    return ENVIRONMENT
