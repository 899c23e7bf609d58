import subprocess
import sys
from inspect import signature

import pytest

import minedraft


def test_the_public_names_are_these():
    assert sorted(minedraft.__all__) == [
        "AsyncClient",
        "Client",
        "MineDraftError",
        "Output",
        "SamplingParams",
        "ServiceStatus",
    ]
    for name in minedraft.__all__:
        assert getattr(minedraft, name).__name__ == name


def test_the_blocking_client_takes_the_same_arguments_as_the_other_one():
    blocking, asynchronous = minedraft.Client, minedraft.AsyncClient
    assert list(signature(blocking).parameters.values()) == list(signature(asynchronous).parameters.values())
    for name in ("generate", "complete", "complete_all", "abort", "status", "borrow"):
        assert signature(getattr(blocking, name)).parameters == signature(getattr(asynchronous, name)).parameters


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        minedraft.no_such_name  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import minedraft", ("torch", "grpc", "transformers")),
        ("from minedraft import AsyncClient, Client, SamplingParams", ("torch", "transformers")),
        (
            "import minedraft.client, minedraft.bench.runner",
            ("torch", "pydantic", "minedraft.core", "minedraft.engine"),
        ),
        ("import minedraft.local", ("torch", "transformers", "minedraft.core", "minedraft.engine", "minedraft.launch")),
        ("import minedraft.core.scheduler, minedraft.engine.pipeline, minedraft.engine.slots", ("torch", "grpc")),
        ("import minedraft.server.service", ("torch", "transformers", "grpc", "google.protobuf", "minedraft.rpc")),
        ("import minedraft.server.composition, minedraft.models.catalogue", ("torch", "transformers")),
        ("import minedraft_workers.server, minedraft_workers.servicer", ("torch", "transformers")),
        ("import minedraft.cli.main, minedraft.cli.launch", ("torch", "transformers")),
    ],
)
def test_importing_stays_light(statement: str, absent: tuple[str, ...]):
    program = f"{statement}; import sys; print(*(name for name in {absent!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
