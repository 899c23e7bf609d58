"""A causal language model of transformers, run with packed input over a paged KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from minedraft.device import Device
from minedraft.errors import ConfigError, ProtocolError
from minedraft.models.model_config import max_context
from minedraft_workers.device import torch_device
from minedraft_workers.execution.attention import CONTEXT_KEYWORD, ForwardContext, QuerySpan, Scratch, pack_order
from minedraft_workers.execution.kvcache import KVCache, LayerShape, to_device
from minedraft_workers.execution.loading import LoadedModel, choose_dtype, load_model, read_config
from minedraft_workers.execution.memory import available_memory
from minedraft_workers.execution.selfcheck import check_packed_forward, record_layers
from minedraft_workers.execution.spans import ForwardSpan as ForwardSpan

# Shares of the memory that is free once the weights are loaded. On a GPU the rest is for activations; on the
# CPU two workers share the memory, and one may look before the other has loaded its weights.
_CUDA_KV_SHARE = 0.8
_CPU_KV_SHARE = 0.125


class Executor:
    """One model on one device with its KV cache. Not thread-safe: one device thread calls it.

    Attributes:
        num_blocks, block_size: size of the KV cache, in blocks and in tokens per block.
        max_model_len: longest sequence, in tokens.
        vocab_size: token ids given to `forward` are below it.
        draft_vocab_ids: int64 [n]; column j of the logits is token draft_vocab_ids[j]. None: it is token j.
        weights_bytes: bytes of the model's parameters in its dtype.
        read_bytes, num_multiplied: bytes of weights that one forward reads, as stored, and number of weights
            that each token is multiplied with; a lower bound of a forward's time follows from them.
    """

    def __init__(
        self,
        cache: KVCache,
        *,
        model_name: str,
        device_name: str,
        max_model_len: int,
        vocab_size: int,
        weights: LoadedModel,
    ) -> None:
        self._model: PreTrainedModel = weights.model
        self._cache = cache
        self._scratch = Scratch()
        self.num_blocks = cache.pool.num_blocks
        self.block_size = cache.pool.block_size
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.model_name = model_name
        self.device_name = device_name
        self.dtype_name = str(cache.dtype).removeprefix("torch.")
        self.draft_vocab_ids = weights.draft_vocab_ids
        self.weights_bytes = weights.num_bytes
        self.read_bytes = weights.read_bytes
        self.num_multiplied = weights.num_multiplied

    @classmethod
    def load(
        cls,
        model_dir: Path,
        *,
        device: Device,
        dtype: str = "auto",
        num_blocks: int | None = None,
        block_size: int = 16,
        max_model_len: int | None = None,
    ) -> Executor:
        """Load a local folder, make the KV cache and check one small forward against the model's own.

        The cache has `num_blocks` blocks, or as many as fit in a share of the free memory: an eighth on
        the CPU, where memory is taken on first use, and 0.8 on CUDA. The caller calls `pin(device)` before.

        Raises:
            ModelError: the folder cannot be used, or this kind of model cannot run here.
            ConfigError: another argument cannot be used.
        """
        config = read_config(model_dir)
        context = _choose_context(config, max_model_len)
        target = torch_device(device)
        torch_dtype = choose_dtype(dtype, target)
        weights = load_model(model_dir, config, torch_dtype, target)
        cache = _make_cache(record_layers(weights.model, model_dir), num_blocks, block_size, torch_dtype, target)
        capacity = cache.pool.num_blocks * block_size
        executor = cls(
            cache,
            model_name=model_dir.resolve().name,
            device_name=str(device),
            max_model_len=capacity if context is None else min(context, capacity),
            vocab_size=config.get_text_config().vocab_size,
            weights=weights,
        )
        check_packed_forward(executor, weights.model, model_dir)
        return executor

    @property
    def num_free_blocks(self) -> int:
        return self._cache.pool.num_free

    @property
    def kv_layers(self) -> tuple[LayerShape, ...]:
        """What each layer caches per token."""
        return self._cache.layers

    def cached_len(self, request_id: int) -> int:
        """Return the number of tokens whose KV is cached for this request; 0 if it is unknown."""
        return self._cache.length(request_id)

    @torch.inference_mode()
    def forward(self, spans: Sequence[ForwardSpan]) -> torch.Tensor:
        """Run all spans as one packed forward.

        Returns:
            Logits, float32 [sum of num_logits, columns] on the device, in the order of the spans.

        Raises:
            BlocksExhausted: the spans do not fit in the free blocks; nothing was changed.
            ProtocolError: a span is empty, repeated, too long, has a token id out of range, or keeps
                more tokens than are cached; nothing was changed.
        """
        if not spans:
            return torch.empty(0, self.num_columns, device=self._cache.device)
        tokens = self._check(spans)
        tables = self._cache.resize([(span.request_id, span.prefix_len + len(span.tokens)) for span in spans])
        queries = [
            QuerySpan(span.prefix_len, len(span.tokens), np.array(table))
            for span, table in zip(spans, tables, strict=True)
        ]
        order = pack_order(queries)
        positions = [np.arange(query.start, query.start + query.num_tokens) for query in queries]
        context = ForwardContext(self._cache, self._scratch, [queries[i] for i in order])
        device = self._cache.device
        logits = self._model(
            input_ids=to_device(np.concatenate([tokens[i] for i in order]), device)[None],
            position_ids=to_device(np.concatenate([positions[i] for i in order]), device)[None],
            logits_to_keep=to_device(_logit_rows(spans, order), device),
            use_cache=False,
            **{CONTEXT_KEYWORD: context},
        ).logits
        rows: torch.Tensor = logits[0].float()
        return rows

    def release(self, request_id: int) -> None:
        """Free the request's KV; an unknown request is ignored."""
        self._cache.release(request_id)

    def release_all(self) -> None:
        """Free everything: a new epoch begins."""
        for request_id in self._cache.pool.owners:
            self._cache.release(request_id)

    @property
    def num_columns(self) -> int:
        """Columns of the logits."""
        return self.vocab_size if self.draft_vocab_ids is None else len(self.draft_vocab_ids)

    def _check(self, spans: Sequence[ForwardSpan]) -> list[np.ndarray]:
        seen: set[int] = set()
        tokens = []
        for span in spans:
            name, ids = f"span of request {span.request_id}", np.asarray(span.tokens, dtype=np.int64)
            if span.request_id in seen:
                raise ProtocolError(f"{name} comes twice")
            seen.add(span.request_id)
            if not 0 <= span.prefix_len <= self.cached_len(span.request_id):
                cached = self.cached_len(span.request_id)
                raise ProtocolError(f"{name} keeps {span.prefix_len} tokens, {cached} are cached")
            if not len(ids) or span.prefix_len + len(ids) > self.max_model_len:
                raise ProtocolError(f"{name} has {len(ids)} tokens after {span.prefix_len}, limit {self.max_model_len}")
            if not 0 <= span.num_logits <= len(ids):
                raise ProtocolError(f"{name} wants {span.num_logits} rows of logits for {len(ids)} tokens")
            if ids.min() < 0 or ids.max() >= self.vocab_size:
                raise ProtocolError(f"{name} has a token id outside 0..{self.vocab_size - 1}")
            tokens.append(ids)
        return tokens


def _logit_rows(spans: Sequence[ForwardSpan], order: Sequence[int]) -> np.ndarray:
    """Return the packed row of every requested row of logits, in the order of the spans."""
    ends = np.empty(len(spans), dtype=np.int64)
    ends[list(order)] = np.cumsum([len(spans[i].tokens) for i in order])
    return np.concatenate([np.arange(end - span.num_logits, end) for span, end in zip(spans, ends, strict=True)])


def _choose_context(config: PretrainedConfig, max_model_len: int | None) -> int | None:
    """Return the tokens per sequence: the requested ones or the model's context; None if neither is known."""
    limit = max_context(config.get_text_config().to_dict())
    if max_model_len is None:
        return limit
    if max_model_len < 1 or (limit is not None and max_model_len > limit):
        raise ConfigError("max_model_len", max_model_len, f"the model's context is {limit} tokens")
    return max_model_len


def _make_cache(
    layers: Sequence[LayerShape], num_blocks: int | None, block_size: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    block_bytes = KVCache.block_bytes(layers, block_size, dtype)
    if num_blocks is None:
        num_blocks = _fit_blocks(block_bytes, block_size, device)
    if num_blocks < 1:
        raise ConfigError("num_blocks", num_blocks, "must be 1 or more")
    try:
        return KVCache(layers, num_blocks=num_blocks, block_size=block_size, dtype=dtype, device=device)
    except (MemoryError, torch.OutOfMemoryError) as error:
        limit = f"needs {num_blocks * block_bytes / 1e9:.0f} GB of KV cache, more than this device has"
        raise ConfigError("num_blocks", num_blocks, limit) from error


def _fit_blocks(block_bytes: int, block_size: int, device: torch.device) -> int:
    """Return the number of blocks that fit in the KV cache's share of the free memory."""
    if device.type == "cuda":
        kv_bytes = int(torch.cuda.mem_get_info(device)[0] * _CUDA_KV_SHARE)
    else:
        kv_bytes = int(available_memory() * _CPU_KV_SHARE)
    if kv_bytes < block_bytes:
        limit = f"one block of {block_size} tokens needs {block_bytes} bytes, the memory has room for {kv_bytes}"
        raise ConfigError("num_blocks", None, limit)
    return kv_bytes // block_bytes
