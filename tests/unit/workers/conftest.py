"""Both ways of choosing tokens: with native kernels, and with torch."""

from __future__ import annotations

import pytest

from minedraft.errors import ConfigError
from minedraft_workers.sampling.sampler import Sampler


@pytest.fixture(scope="session", params=["torch", "native"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    if request.param == "torch":
        return Sampler()
    try:
        return Sampler.native()
    except ConfigError as error:
        pytest.skip(str(error))
