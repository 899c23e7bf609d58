"""Checks at load time that a model gives the same logits packed over the paged cache as by itself.

Models with positions or state of their own (ALiBi, recurrent layers, learned offsets, attention that
bypasses transformers' interface) would answer nonsense without any error; they are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from minedraft.errors import ModelError
from minedraft_workers.execution.attention import ATTENTION_NAME, CONTEXT_KEYWORD, ShapeRecorder
from minedraft_workers.execution.spans import ForwardSpan
from minedraft_workers.execution.tables import LayerShape

if TYPE_CHECKING:
    from minedraft_workers.execution.executor import Executor

# Relative to the norm of the model's own logits. The error of wrong positions or masks is far larger.
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.2}
_FAILURES = (KeyError, NotImplementedError, TypeError, AttributeError, RuntimeError, ValueError, IndexError)


@torch.inference_mode()
def record_layers(model: PreTrainedModel, model_dir: Path) -> tuple[list[LayerShape], set[str]]:
    """Return what each layer caches, and what layers ask for beside plain causal attention; found by running one
    token through the model.

    Raises:
        ModelError: a layer does not attend through transformers' interface exactly once.
    """
    recorder = ShapeRecorder()
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    kind = model.config.model_type
    try:
        model(input_ids=ids, position_ids=ids, use_cache=False, **{CONTEXT_KEYWORD: recorder})
    except _FAILURES as error:
        limit = f"{kind} does not run through transformers' attention interface ({type(error).__name__}: {error})"
        raise ModelError("model", str(model_dir), limit) from error
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(recorder.layers) != list(range(num_layers)) or recorder.num_attended != num_layers:
        limit = f"{kind}: {len(recorder.layers)} of its {num_layers} layers cache keys and values; all must"
        raise ModelError("model", str(model_dir), limit)
    return [recorder.layers[i] for i in range(num_layers)], recorder.specials


@torch.inference_mode()
def check_packed_forward(executor: Executor, model: PreTrainedModel, model_dir: Path) -> None:
    """Raise ModelError unless two packed forwards (chunk, then rest, of two requests) give the logits of the
    model's own attention.

    It leaves the executor's cache empty.
    """
    length = min(6, executor.block_size, executor.max_model_len)
    texts = [[(7 * i + 3 * owner + 1) % executor.vocab_size for i in range(length)] for owner in (0, 1)]
    texts = texts[: executor.num_blocks]
    cut = max(1, length // 2)
    chunks = [ForwardSpan(owner, 0, text[:cut], cut) for owner, text in enumerate(texts)]
    rests = [ForwardSpan(owner, cut, text[cut:], length - cut) for owner, text in enumerate(texts) if length > cut]
    packed = list(torch.split(executor.forward(chunks), cut))
    if rests:
        tails = torch.split(executor.forward(list(reversed(rests))), length - cut)
        packed = [torch.cat(rows) for rows in zip(packed, reversed(tails), strict=True)]
    executor.release_all()

    model.set_attn_implementation("eager")
    own = [model(input_ids=torch.tensor([text], device=model.device), use_cache=False).logits[0] for text in texts]
    model.set_attn_implementation(ATTENTION_NAME)
    # A checkpoint may give NaN for some token: it is served, and a request that meets one ends with an error.
    pairs = [(a, b.float()) for a, b in zip(packed, own, strict=True) if bool(b.isfinite().all())]
    error = max((float((a - b).norm() / b.norm().clamp_min(1e-6)) for a, b in pairs), default=0.0)
    if not error <= _TOLERANCES[model.dtype]:
        limit = f"{model.config.model_type} differs from its own forward by {error:.1%} when packed; not supported"
        raise ModelError("model", str(model_dir), limit)
