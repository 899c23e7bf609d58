"""A causal language model of transformers, run with packed input over a paged KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PretrainedConfig

from minedraft.device import Device
from minedraft.errors import ConfigError, ModelError
from minedraft.models.model_config import max_context
from minedraft_workers.device import torch_device
from minedraft_workers.execution.choice import (
    AnyKernels,
    choose_native,
    list_candidates,
    make_fused,
    make_transformers,
    with_few_calls,
)
from minedraft_workers.execution.features import AFTER_FINAL_NORM, FeatureLayers, ForwardOutput
from minedraft_workers.execution.loading import LoadedModel, choose_dtype, load_model, read_config
from minedraft_workers.execution.memory import CacheSize
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.execution.programs import ProgramRunner
from minedraft_workers.execution.runner import GraphCapturing, PackedRows, Runner
from minedraft_workers.execution.selfcheck import check_layers, check_packed_forward
from minedraft_workers.execution.spans import ForwardSpan as ForwardSpan
from minedraft_workers.execution.spans import PagedModel
from minedraft_workers.kernels.base import NotFused
from minedraft_workers.kernels.kvcache import to_device
from minedraft_workers.kernels.native_kernels import KernelPool
from minedraft_workers.kernels.tables import LayerShape


class Executor(PagedModel):
    """One model on one device with its KV cache. Not thread-safe: one device thread calls it.

    Attributes:
        device: torch's device, on which the logits are.
        is_batch_invariant: whether a row's logits are the same, bit for bit, whatever else is in the forward.
        draft_vocab_ids: int64 [n]; column j of the logits is token draft_vocab_ids[j]. None: it is token j.
        weights_bytes: bytes of the model's parameters in its dtype.
        read_bytes, num_multiplied: bytes of weights that one forward reads, as stored, and number of weights
            that each token is multiplied with; a lower bound of a forward's time follows from them.
        hidden_size: numbers of a token between two layers.
        feature_layers: what `forward_with_features` gives.
    """

    def __init__(
        self,
        runner: Runner,
        loaded: LoadedModel,
        config: PretrainedConfig,
        context: int | None,
        *,
        model_name: str,
        device: Device,
        kernels_reason: str,
    ) -> None:
        super().__init__(runner.tables, config.get_text_config().vocab_size, context)
        self._runner = runner
        self.device = torch_device(device)
        self.model_name = model_name
        self.device_name = str(device)
        self.dtype_name = str(loaded.model.dtype).removeprefix("torch.")
        self.kernels = runner.kernels
        self.kernels_reason = kernels_reason
        self.is_batch_invariant = runner.is_batch_invariant
        self.draft_vocab_ids = loaded.draft_vocab_ids
        self.weights_bytes = loaded.num_bytes
        self.read_bytes = loaded.read_bytes
        self.num_multiplied = loaded.num_multiplied
        self.hidden_size: int = config.get_text_config().hidden_size
        self._dtype = loaded.model.dtype
        self.want_features(())

    @classmethod
    def load(cls, model_dir: Path, options: LoadOptions) -> Executor:
        """Load a local folder, make the KV cache and check one small forward against the model's own.

        A model that torch's kernels do not fit runs in transformers' own code.

        Raises:
            ModelError: the folder cannot be used, or this kind of model cannot run here.
            ConfigError: an option cannot be used.
        """
        device, kernels = options.device, options.kernels
        config = read_config(model_dir)
        context = _choose_context(config, options.max_model_len)
        size = options.cache_size(context)
        target = torch_device(device)
        native, reason = choose_native(kernels, device)
        loaded = load_model(model_dir, config, choose_dtype(options.dtype, target, native), target)
        for candidate in list_candidates(kernels, native, device, target, loaded.model.dtype):
            try:
                return cls._on_kernels(candidate, model_dir, loaded, config, size, device, reason)
            except (NotFused, ModelError) as error:
                if kernels == candidate.name.split()[0] != "torch":
                    raise ConfigError("kernels", kernels, f"do not fit this model: {error}") from error
                reason = f"{candidate.name} kernels do not fit this model: {error}"
        runner, loaded = make_transformers(loaded, device, model_dir, size)
        return cls._checked(model_dir, runner, loaded, config, context, device, reason)

    @classmethod
    def _on_kernels(
        cls,
        kernels: AnyKernels,
        model_dir: Path,
        loaded: LoadedModel,
        config: PretrainedConfig,
        size: CacheSize,
        device: Device,
        reason: str,
    ) -> Executor:
        """Return the executor on these kernels. Raise NotFused or ModelError if they do not fit the model; then
        nothing of theirs is left, and its memory is free for the next ones."""
        fused = make_fused(loaded, kernels, model_dir, size)
        check_layers(fused, loaded.model, model_dir)
        described, context = replace(loaded, read_bytes=fused.read_bytes), size.max_model_len
        runner = with_few_calls(fused, kernels, context)
        return cls._checked(model_dir, runner, described, config, context, device, reason)

    @classmethod
    def _checked(
        cls,
        model_dir: Path,
        runner: Runner,
        loaded: LoadedModel,
        config: PretrainedConfig,
        context: int | None,
        device: Device,
        reason: str,
    ) -> Executor:
        """Return the executor. Raise ModelError if its packed forward is not the model's own."""
        name = model_dir.resolve().name
        executor = cls(runner, loaded, config, context, model_name=name, device=device, kernels_reason=reason)
        check_packed_forward(executor, loaded.model, model_dir)
        return executor

    @property
    def pool(self) -> KernelPool | None:
        """The threads that compute a forward, whose number changes no bit of it; None where that cannot change."""
        return self._runner.pool if isinstance(self._runner, ProgramRunner) else None

    @property
    def graphs(self) -> GraphCapturing | None:
        """What captures the model's forwards as CUDA graphs; None where they run without."""
        return self._runner if isinstance(self._runner, GraphCapturing) else None

    @property
    def kv_layers(self) -> tuple[LayerShape, ...]:
        """What each layer caches per token."""
        return self._tables.layers

    def want_features(self, layers: tuple[int, ...]) -> None:
        """From now on `forward_with_features` gives the outputs of these layers; () for none.

        Args:
            layers: numbers as in `features`, 0 to the number of layers, or `AFTER_FINAL_NORM`.

        Raises:
            ConfigError: the model has no such layer. ModelError: its layers cannot be found.
        """
        num_layers = len(self.kv_layers)
        for layer in layers:
            if not AFTER_FINAL_NORM <= layer <= num_layers:
                raise ConfigError(
                    "feature_layers", layer, f"{self.model_name} has layers {AFTER_FINAL_NORM} to {num_layers}"
                )
        self.feature_layers = FeatureLayers(layers, self.hidden_size)
        self._runner.want_features(self.feature_layers)

    def find_feature_layers(self) -> tuple[int, ...]:
        """Return the layers whose outputs can be wanted: all, or none if the model's own code hides them. After this
        none are wanted."""
        try:
            self.want_features((len(self.kv_layers),))
        except ModelError:
            return ()
        finally:
            self.want_features(())
        return tuple(range(AFTER_FINAL_NORM, len(self.kv_layers) + 1))

    @torch.inference_mode()
    def forward_with_features(self, spans: Sequence[ForwardSpan]) -> ForwardOutput:
        """Run as `forward`, with the same logits; give the features of every new token too.

        Raises:
            As `forward`.
        """
        if not spans:
            none = torch.empty(0, self.feature_layers.num_columns, dtype=self._dtype, device=self.device)
            return ForwardOutput(torch.empty(0, self.num_columns, device=self.device), none)

        def run(rows: PackedRows) -> ForwardOutput:
            output = self._runner.run_with_features(rows)
            if rows.is_as_given:
                return output
            order = to_device(rows.rows_as_given(), self.device)
            return ForwardOutput(output.logits, output.features.index_select(0, order))

        return self._spans.run(spans, run)

    @torch.inference_mode()
    def forward(self, spans: Sequence[ForwardSpan], given: torch.Tensor | None = None) -> torch.Tensor:
        """Run all spans as one packed forward.

        Args:
            given: int64 [spans] on the device, the ids of spans of one token each, instead of those in the spans; not
                checked. On CUDA the host need not know them.

        Returns:
            Logits, float32 [sum of num_logits, columns] on the device, in the order of the spans.

        Raises:
            BlocksExhausted: the spans do not fit in the free blocks; nothing was changed.
            ProtocolError: a span is empty, repeated, too long, has a token id out of range, or keeps
                more tokens than are cached; nothing was changed.
            OutOfMemoryError (torch's): the device has no room; each request keeps `prefix_len` tokens.
        """
        if not spans:
            return torch.empty(0, self.num_columns, device=self.device)
        if given is None:
            return self._spans.run(spans, self._runner.run)
        return self._spans.run(spans, lambda rows: self._runner.run(rows.with_given(given)))

    @torch.inference_mode()
    def fork(self, request_id: int, prefix_len: int) -> int:
        """Return the id of a second continuation of the request's first `prefix_len` cached tokens, to use in spans.

        Raises:
            BlocksExhausted: no block is free for it; nothing was changed.
        """
        return self._tables.fork(request_id, prefix_len)

    def adopt(self, request_id: int, fork: int) -> None:
        """Make a fork the request, and drop the request's other forks."""
        self._tables.adopt(request_id, fork)

    def drop_forks(self, request_id: int) -> None:
        """Free the KV of the request's forks."""
        self._tables.drop_forks(request_id)

    @property
    def num_columns(self) -> int:
        """Columns of the logits."""
        return self.vocab_size if self.draft_vocab_ids is None else len(self.draft_vocab_ids)


def _choose_context(config: PretrainedConfig, max_model_len: int | None) -> int | None:
    """Return the tokens per sequence: the requested ones or the model's context; None if neither is known."""
    limit = max_context(config.get_text_config().to_dict())
    if max_model_len is None:
        return limit
    if max_model_len < 1 or (limit is not None and max_model_len > limit):
        raise ConfigError("max_model_len", max_model_len, f"the model's context is {limit} tokens")
    return max_model_len
