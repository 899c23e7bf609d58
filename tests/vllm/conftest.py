"""Models, a drafter, and the answers of vLLM alone."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.tiny_models import add_noise, make_tiny_model
from tests.support.worker_process import WorkerProcess, worker

_WIDTHS = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "max_position_embeddings": 256}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Without vLLM these tests say what they need. Its import warns, which is not ours to mend.
    is_there = find_spec("vllm") is not None
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(900))
            item.add_marker(pytest.mark.skipif(not is_there, reason="needs vLLM: scripts/test --vllm"))


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two random layers."""
    return make_tiny_model(tmp_path_factory.mktemp("target"), **_WIDTHS)


@pytest.fixture(scope="session")
def draft_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that often agrees with the target."""
    folder = make_tiny_model(tmp_path_factory.mktemp("draft"), **_WIDTHS)
    return add_noise(folder, 0.05)


@pytest.fixture(scope="session")
def drafter(draft_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """A drafter process of the whole session; it serves one engine after the other."""
    arguments = ("--model", str(draft_model), "--dtype", "float32", "--device", "cpu:0")
    with worker("drafter", tmp_path_factory.mktemp("drafter"), *arguments) as process:
        yield process


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Seventeen prompts of 3 to 67 tokens."""
    return [[3 + (7 * index + 5 * place) % 300 for place in range(3 + 4 * index)] for index in range(17)]
