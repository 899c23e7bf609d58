"""A token that the model makes NaN of, drafted and then rejected: it must not cost the tokens before it anything."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minedraft.device import Device, usable_cores
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.options import LoadOptions
from tests.support.tiny_models import make_tiny_model

POISON = 299
PROMPT = tuple(range(3, 14))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_tiny_model(tmp_path_factory.mktemp("model"), hidden_size=64, head_dim=16)
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = torch.nan
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of NumPy, in Triton's interpreter
@pytest.mark.parametrize(
    ("kernels", "dtype"),
    [("triton", "float32"), *product(("native", "torch", "transformers"), ("float32", "bfloat16"))],
)
def test_no_row_sees_the_nan_of_a_later_one(folder: Path, kernels: str, dtype: str) -> None:
    if kernels == "triton":
        pytest.importorskip("triton")
    device = Device("cpu", usable_cores()[:1])
    options = LoadOptions(device=device, dtype=dtype, num_blocks=16, kernels=kernels)
    executor = Executor.load(folder, options)

    def verify(request: int, last_draft: int) -> torch.Tensor:
        """Return the logits after a prompt's last token and two drafts."""
        executor.forward([ForwardSpan(request, 0, PROMPT, 0)])
        return executor.forward([ForwardSpan(request, len(PROMPT), [7, 8, last_draft], 3)])

    clean, poisoned = verify(1, 9), verify(2, POISON)
    assert torch.equal(poisoned[:2], clean[:2])
    assert not poisoned[2].isfinite().any()
    # The drafts are rejected, and one token comes in the place of the first: what they cached is in its block still.
    plain = executor.forward([ForwardSpan(1, len(PROMPT), [20], 1)])
    assert torch.equal(executor.forward([ForwardSpan(2, len(PROMPT), [20], 1)]), plain)
    assert plain.isfinite().all()
