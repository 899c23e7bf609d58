"""Loads a Hugging Face folder as a model that runs packed forwards; refuses models that would run wrongly."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from minedraft.errors import ConfigError, ModelError
from minedraft.models.folder import DRAFT_VOCAB_NAME, check_model_folder
from minedraft_workers.execution.attention import ATTENTION_NAME, attend
from minedraft_workers.execution.norm import replace_rms_norms
from minedraft_workers.kernels.linear import fastest_dtype, pack_linears
from minedraft_workers.kernels.native_kernels import NativeLayerKernels

_KNOWN_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_MAX_CAUSE_CHARS = 400
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run.

    num_bytes: bytes of its weights in its dtype, a tied weight counted once. read_bytes: bytes of weights
    that a forward reads, as stored. num_multiplied: weights that each token is multiplied with.
    draft_vocab_ids: int64 [n] on the device, ascending, the rows that the output layer has; None unless the
    folder has a draft vocabulary.
    """

    model: PreTrainedModel
    num_bytes: int
    read_bytes: int
    num_multiplied: int
    draft_vocab_ids: torch.Tensor | None


AttentionInterface.register(ATTENTION_NAME, attend)
# A worker's log is not a terminal, and our own errors say why a model cannot be loaded.
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


def choose_dtype(name: str, device: torch.device, native: NativeLayerKernels | None = None) -> torch.dtype:
    """Return the torch dtype for "float32", "bfloat16", or "auto": the fastest one on this device.

    Args:
        native: the kernels that will run the model, if it is not torch.

    Raises:
        ConfigError: another name.
    """
    if name == "auto":
        if native is not None:
            return torch.bfloat16 if native.multiplies_bfloat16 else torch.float32
        return torch.bfloat16 if device.type == "cuda" else fastest_dtype()
    if name not in _DTYPES:
        raise ConfigError("dtype", name, f"must be auto or one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def read_config(model_dir: Path) -> PretrainedConfig:
    """Return a model folder's configuration, checked.

    Raises:
        ModelError: the folder or this kind of model cannot be used.
    """
    kind = check_model_folder(model_dir, "model").model_type
    if kind not in transformers.CONFIG_MAPPING:
        limit = f"transformers {transformers.__version__} has no {kind} model, and code from a folder is never run"
        raise ModelError("model", str(model_dir), limit)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its checks raise errors of any kind
        raise ModelError("model", str(model_dir / "config.json"), f"transformers refuses it: {_say(error)}") from error
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError("model", str(model_dir), f"transformers has no causal language model for {kind}")
    text_config = config.get_text_config()
    unknown = sorted(set(getattr(text_config, "layer_types", None) or ()) - _KNOWN_LAYER_TYPES)
    if unknown:
        limit = f"{kind} has {unknown[0]} layers; only attention layers are supported"
        raise ModelError("model", str(model_dir), limit)
    return config


def build_without_weights(model_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model without weights or memory for them.

    Raises:
        ModelError: as `read_config`, or the model's constructor refuses the configuration.
    """
    config = read_config(model_dir)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=ATTENTION_NAME
            )
    except Exception as error:  # of any kind: a model's constructor does not check its configuration
        limit = f"transformers cannot build the model: {_say(error)}"
        raise ModelError("model", str(model_dir / "config.json"), limit) from error
    return model


def load_model(model_dir: Path, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Return the model with its weights.

    Raises:
        ModelError: the weights do not fit the configuration, or the model cannot run packed.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_dir,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are checked below
        )
    except Exception as error:  # of any kind: a model's constructor does not check its configuration
        raise ModelError("model", str(model_dir), f"transformers cannot load it: {_say(error)}") from error
    model: Any = loaded[0]
    report: dict[str, Any] = loaded[1]
    # transformers fills missing weights with random numbers and only warns.
    wrong = [str(name) for name in report["missing_keys"]]
    for name, found, wanted in report["mismatched_keys"]:
        wrong.append(f"{name} {list(found)} (config.json needs {list(wanted)})")
    if wrong:
        raise ModelError(
            "model", str(model_dir), f"weights missing or of the wrong shape: {', '.join(sorted(wrong)[:3])}"
        )
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise ModelError("model", str(model_dir), f"{config.model_type} cannot compute single rows of logits")
    model = model.eval().requires_grad_(False).to(device)
    ids = _load_draft_vocab(model_dir, config)
    if ids is not None:
        _cut_output_layer(model, ids)
    num_bytes = sum(weight.nbytes for weight in model.parameters())
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    # An embedding is read one row per token; one that is tied to the output layer is read as a whole.
    read_bytes = num_bytes if embedding is output else num_bytes - embedding.nbytes
    num_multiplied = read_bytes // dtype.itemsize
    return LoadedModel(model, num_bytes, read_bytes, num_multiplied, None if ids is None else ids.to(device))


def pack_for_torch(loaded: LoadedModel) -> LoadedModel:
    """Bring a model on the CPU into the layout of torch's matmul, in place, with faster norms."""
    model = loaded.model
    if model.device.type != "cpu":
        return loaded
    num_saved_bytes = pack_linears(model, model.dtype)
    replace_rms_norms(model, model.dtype)
    return replace(loaded, read_bytes=loaded.read_bytes - num_saved_bytes)


def _say(error: Exception) -> str:
    """Return the error as one line, truncated."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _MAX_CAUSE_CHARS else f"{text[: _MAX_CAUSE_CHARS - 1]}…"


def _load_draft_vocab(model_dir: Path, config: PretrainedConfig) -> torch.Tensor | None:
    path = model_dir / DRAFT_VOCAB_NAME
    if not path.exists():
        return None
    ids = load_file(path).get("ids")
    vocab_size = config.get_text_config().vocab_size
    if ids is None or ids.dtype != torch.int32 or ids.dim() != 1 or not len(ids):
        raise ModelError("model", str(path), 'must hold one int32 vector "ids"')
    ids = ids.long()
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size or bool((ids[1:] <= ids[:-1]).any()):
        raise ModelError("model", str(path), f"ids must ascend without repeats within 0..{vocab_size - 1}")
    return ids


def _cut_output_layer(model: PreTrainedModel, ids: torch.Tensor) -> None:
    output = model.get_output_embeddings()
    assert isinstance(output, nn.Linear), f"output layer is {type(output)}"
    rows = ids.to(output.weight.device)
    cut = nn.Linear(output.in_features, len(ids), bias=output.bias is not None, device="meta")
    cut.weight = nn.Parameter(output.weight[rows].detach(), requires_grad=False)
    if output.bias is not None:
        cut.bias = nn.Parameter(output.bias[rows].detach(), requires_grad=False)
    model.set_output_embeddings(cut)
