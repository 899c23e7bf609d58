"""Checks at load time that a model gives the same logits packed over the paged cache as by itself.

Models with positions or state of their own (ALiBi, recurrent layers, learned offsets, attention that
bypasses transformers' interface) would answer nonsense without any error; they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from minedraft.errors import ModelError
from minedraft_workers.execution.attention import ATTENTION_NAME, CONTEXT_KEYWORD, ShapeRecorder
from minedraft_workers.execution.spans import ForwardSpan
from minedraft_workers.kernels.tables import LayerShape, QuerySpan

if TYPE_CHECKING:
    from minedraft_workers.execution.executor import Executor
    from minedraft_workers.execution.fused import FusedDecoder

# Relative to the norm of the model's own logits. The error of wrong positions or masks is far larger.
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.2}
# Of one layer: of what it adds to the residual stream, and of the stream that this is added to.
_LAYER_TOLERANCES = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (0.05, 0.01)}
_CHECKED_TOKENS = 6
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
    except torch.OutOfMemoryError:  # says nothing about the model
        raise
    except _FAILURES as error:
        limit = f"{kind} does not run through transformers' attention interface ({type(error).__name__}: {error})"
        raise ModelError("model", str(model_dir), limit) from error
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(recorder.layers) != list(range(num_layers)) or recorder.num_attended != num_layers:
        limit = f"{kind}: {len(recorder.layers)} of its {num_layers} layers cache keys and values; all must"
        raise ModelError("model", str(model_dir), limit)
    return [recorder.layers[i] for i in range(num_layers)], recorder.specials


@torch.inference_mode()
def check_layers(decoder: FusedDecoder[Any, Any, Any], model: PreTrainedModel, model_dir: Path) -> None:
    """Raise ModelError unless the embedding, every layer and the output make of the model's own numbers what the
    model makes of them.

    One layer at a time, because in bfloat16 rounding errors grow over the layers to what a wrong factor in a
    part of one layer would give. It leaves the decoder's cache empty.
    """
    for attention in (attentions := _own_attentions(model)):
        try:
            return _check_layers(decoder, model, model_dir, attention)
        except ModelError:
            if attention == attentions[-1]:
                raise


def _own_attentions(model: PreTrainedModel) -> Sequence[str]:
    """Return transformers' own ways to attend, any of which is right: in bfloat16 the plain one rounds the scores too,
    and where keys are large (Qwen2.5 1.5B) that alone is more than what is allowed. Its fused one does not."""
    is_rounded = model.dtype == torch.bfloat16 and model._supports_sdpa
    return ("eager", "sdpa") if is_rounded else ("eager",)


def _check_layers(
    decoder: FusedDecoder[Any, Any, Any], model: PreTrainedModel, model_dir: Path, attention: str
) -> None:
    tables = decoder.tables
    length = min(_CHECKED_TOKENS, tables.pool.num_blocks * tables.pool.block_size)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ids = np.arange(5, 5 + 7 * length, 7) % vocab_size
    stream, logits = _record_stream(model, ids, attention)
    span = QuerySpan(0, length, tables.resize([(0, length)])[0])
    found: list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor | None]] = [
        ("the embedding", decoder.embed(torch.from_numpy(ids).to(model.device)), stream[0], None)
    ]
    for index, (before, after) in enumerate(pairwise(stream)):
        found.append((f"layer {index}", decoder.run_layer(index, before, span), after, before))
    found.append(("the output layer", decoder.finish(stream[-1]), logits, None))
    tables.release_all()
    for name, got, want, added_to in found:
        if not bool(want.isfinite().all()):
            return  # a checkpoint may give NaN: it is served, and a request that meets one ends with an error
        error, size = float((got - want).float().norm()), float(want.float().norm())
        # What a layer adds may be small beside what it is added to, which the sum is rounded with.
        added = size if added_to is None else float((want - added_to).float().norm())
        share, rounding = _LAYER_TOLERANCES[model.dtype]
        if not error <= share * added + rounding * size + 1e-6:
            limit = f"{name} differs from the model's own by {error / max(added, 1e-6):.1%}"
            raise ModelError("model", str(model_dir), limit)


def _record_stream(model: PreTrainedModel, ids: np.ndarray, attention: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Run the model by itself. Return the residual stream before, between and after its layers, [tokens, hidden
    size] each, and the logits, float32."""
    stream: list[torch.Tensor] = []

    def record(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        stream.append(args[0][0].clone())

    def record_last(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 - a hook
        stream.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    decoder: Any = model.get_decoder()
    hooks = [layer.register_forward_pre_hook(record) for layer in decoder.layers]
    hooks.append(decoder.layers[-1].register_forward_hook(record_last))
    try:
        with _own_attention(model, attention):
            logits = model(input_ids=torch.from_numpy(ids)[None].to(model.device), use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return stream, logits.float()


@contextmanager
def _own_attention(model: PreTrainedModel, attention: str) -> Iterator[None]:
    model.set_attn_implementation(attention)
    try:
        yield
    finally:
        model.set_attn_implementation(ATTENTION_NAME)


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

    inputs = [torch.tensor([text], device=model.device) for text in texts]
    errors = []
    for attention in _own_attentions(model):
        with _own_attention(model, attention):
            own = [model(input_ids=ids, use_cache=False).logits[0].float() for ids in inputs]
        # A checkpoint may give NaN for some token: it is served, and a request that meets one ends with an error.
        pairs = [(a, b) for a, b in zip(packed, own, strict=True) if bool(b.isfinite().all())]
        errors.append(max((float((a - b).norm() / b.norm().clamp_min(1e-6)) for a, b in pairs), default=0.0))
        if errors[-1] <= _TOLERANCES[model.dtype]:
            break
    else:
        error = errors[0]
        limit = f"{model.config.model_type} differs from its own forward by {error:.1%} when packed; not supported"
        raise ModelError("model", str(model_dir), limit)
