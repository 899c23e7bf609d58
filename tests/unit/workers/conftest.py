"""All ways of choosing tokens: with native kernels, row by row with torch, and all rows together as on a GPU."""

from __future__ import annotations

import pytest

from minedraft.errors import ConfigError
from minedraft_workers.sampling.sampler import Sampler


@pytest.fixture(scope="session", params=["torch", "native", "batched"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    if request.param == "torch":
        return Sampler()
    if request.param == "batched":
        return Sampler(is_batched=True)
    try:
        return Sampler.native()
    except ConfigError as error:
        pytest.skip(str(error))
