"""The count by which a slow forward differs from one that hangs: it moves at least once a layer, whatever computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from minedraft.device import Device
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.pulse import PULSE, Pulse
from tests.support.native import needs_native
from tests.support.tiny_models import make_tiny_model

NUM_LAYERS = 2


@pytest.mark.parametrize("kernels", [pytest.param("native", marks=needs_native), "torch", "transformers"])
@pytest.mark.parametrize("num_tokens", [4, 80], ids=["few rows", "a long prompt"])
def test_every_layer_of_a_forward_beats(tmp_path: Path, kernels: str, num_tokens: int) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    folder = make_tiny_model(tmp_path, "llama", **sizes)
    before = PULSE.count
    device = Device.parse("cpu").here()
    options = LoadOptions(device, dtype="float32", kernels=kernels, num_blocks=64, block_size=4)
    executor = Executor.load(folder, options)
    assert PULSE.count - before >= NUM_LAYERS, "loading beats too"
    for request_id in (1, 2):
        before = PULSE.count
        executor.forward([ForwardSpan(request_id, 0, tuple(range(3, 3 + num_tokens)), 1)])
        assert PULSE.count - before >= len(executor.kv_layers) == NUM_LAYERS


def test_a_pulse_adds_up_its_sources() -> None:
    pulse = Pulse()
    pulse.beat()
    pulse.add_source("kernels", lambda: 5)
    pulse.add_source("kernels", lambda: 7)
    assert pulse.count == 8
