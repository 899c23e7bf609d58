"""Tiny random drafting heads for tests, in each layout that is read, for a target of `tiny_models`.

The same arguments always give the same folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LAYOUTS = ("eagle1", "eagle3", "minedraft")


def make_tiny_head(
    path: Path,
    target: Path,
    layout: str = "eagle3",
    *,
    layers: int = 1,
    draft_vocab_size: int = 200,
    feature_layers: tuple[int, ...] | None = (0, 1, 2),
    hidden_size: int | None = None,
    num_key_value_heads: int | None = None,
    own_embedding: bool = False,
    own_output: bool = True,
    biases: bool = False,
    is_alike: bool = False,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a head for the model in `target` to `path` and return it.

    Args:
        layout: one of LAYOUTS; see minedraft/models/heads/folder.py.
        layers: of the head; more than one only in layout minedraft.
        draft_vocab_size: ids that it can propose, spread over the target's; all of them in layout eagle1.
        feature_layers: written to its configuration; None for the layout's default. Not in layout eagle1.
        hidden_size: another one than the target's; then with an embedding of its own. Not in layout eagle1.
        own_embedding, own_output: whether it has its own embedding, and output rows (always in layout eagle3).
        biases: give `fc` and the attention's projections biases, where the layout may have them.
        is_alike: make it a poor copy of the target that ignores features: some of its drafts are accepted.
            Such a head has the target's sizes, whose heads must fill its hidden size.
        overrides: further fields of its configuration.
    """
    from safetensors.torch import save_file

    config = json.loads((target / "config.json").read_text())
    size, target_size = hidden_size or config["hidden_size"], config["hidden_size"]
    heads, head_dim = (
        config["num_attention_heads"],
        config.get("head_dim") or target_size // config["num_attention_heads"],
    )
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if layout == "eagle1" else "LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": size,
        "intermediate_size": 2 * size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": num_key_value_heads or (heads if is_alike else config["num_key_value_heads"]),
        "head_dim": head_dim,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "vocab_size": config["vocab_size"],
        "torch_dtype": "float32",
    }
    if layout != "eagle1":
        fields["draft_vocab_size"] = draft_vocab_size
    if layout == "minedraft":
        fields["target_hidden_size"] = target_size
    if feature_layers is not None and layout != "eagle1":
        fields["eagle_aux_hidden_state_layer_ids"] = list(feature_layers)
    fields |= overrides
    num_features = 1 if layout == "eagle1" else len(feature_layers or (0, 0, 0))
    weights = _Weights(fields, target_size, num_features, biases=biases, seed=seed)
    tensors = weights.eagle1() if layout == "eagle1" else weights.eagle3(layers, draft_vocab_size, own_output)
    if own_embedding or size != target_size:
        tensors["embed_tokens.weight"] = weights.matrix(fields["vocab_size"], size, std=1.0)
    if is_alike:
        _make_alike(tensors, target, layout)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(fields))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    return path


def soften_layers(target: Path, share: float) -> Path:
    """Scale down what the layers of a model folder add to the residual stream: its next token then depends mostly on
    its last one, and a head that is alike is right more often."""
    from safetensors.torch import load_file, save_file

    file = target / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.mul_(share)
    save_file(tensors, file, metadata={"format": "pt"})
    return target


class _Weights:
    """Random weights of the shapes that a configuration asks for."""

    def __init__(self, config: dict[str, Any], target_size: int, num_features: int, *, biases: bool, seed: int) -> None:
        import torch

        self._config = config
        self._target_size = target_size
        self._num_features = num_features
        self._has_biases = biases
        self._generator = torch.Generator().manual_seed(seed)

    def eagle1(self) -> dict[str, torch.Tensor]:
        size = self._config["hidden_size"]
        tensors = self._linear("fc", size, size + self._target_size, is_biased=self._has_biases)
        return tensors | self._layer("layers.0", size) | {"layers.0.post_attention_layernorm.weight": self._norm()}

    def eagle3(self, layers: int, draft_vocab_size: int, own_output: bool) -> dict[str, torch.Tensor]:
        import torch

        size, vocab_size = self._config["hidden_size"], self._config["vocab_size"]
        ids = torch.randperm(vocab_size, generator=self._generator)[:draft_vocab_size].sort().values
        t2d = torch.zeros(vocab_size, dtype=torch.bool)
        t2d[ids] = True
        tensors = {"d2t": ids - torch.arange(draft_vocab_size), "t2d": t2d, "norm.weight": self._norm()}
        tensors |= self._linear("fc", size, self._num_features * self._target_size, is_biased=self._has_biases)
        tensors |= self._layer("midlayer", 2 * size)
        for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
            tensors[f"midlayer.{name}.weight"] = self._norm()
        for index in range(1, layers):
            tensors |= self._layer(f"layers.{index}", size)
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"layers.{index}.{name}.weight"] = self._norm()
        if own_output:
            tensors["lm_head.weight"] = self.matrix(draft_vocab_size, size)
        return tensors

    def matrix(self, rows: int, columns: int, std: float | None = None) -> torch.Tensor:
        import torch

        std = 2.0 / columns**0.5 if std is None else std
        return torch.empty(rows, columns).normal_(0.0, std, generator=self._generator)

    def _norm(self) -> torch.Tensor:
        import torch

        return 1 + torch.empty(self._config["hidden_size"]).normal_(0.0, 0.1, generator=self._generator)

    def _linear(self, name: str, rows: int, columns: int, *, is_biased: bool) -> dict[str, torch.Tensor]:
        tensors = {f"{name}.weight": self.matrix(rows, columns)}
        return tensors | ({f"{name}.bias": self.matrix(1, rows, 0.1)[0]} if is_biased else {})

    def _layer(self, name: str, columns: int) -> dict[str, torch.Tensor]:
        config, size = self._config, self._config["hidden_size"]
        width, kv_width = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
        attention = {"q": (width, columns), "k": (kv_width, columns), "v": (kv_width, columns), "o": (size, width)}
        tensors: dict[str, torch.Tensor] = {}
        for part, (rows, columns_) in attention.items():
            is_biased = self._has_biases and part != "o"
            tensors |= self._linear(f"{name}.self_attn.{part}_proj", rows, columns_, is_biased=is_biased)
        inner = config["intermediate_size"]
        for part, shape in {"gate": (inner, size), "up": (inner, size), "down": (size, inner)}.items():
            tensors |= self._linear(f"{name}.mlp.{part}_proj", *shape, is_biased=False)
        return tensors


def _make_alike(tensors: dict[str, torch.Tensor], target: Path, layout: str) -> None:
    """Make the head hand on the embedding of its token, by `fc` or by attention to itself, and use the target's
    output rows on it and, in layout eagle1, its first layer's MLP: what the target says of its last token alone."""
    import torch
    from safetensors.torch import load_file

    model = load_file(target / "model.safetensors")
    size = tensors["fc.weight"].shape[0]
    one = torch.eye(size)
    if layout == "eagle1":
        tensors["fc.weight"] = torch.cat([one, 0 * one], dim=1)
        tensors["layers.0.self_attn.o_proj.weight"].zero_()
    else:
        tensors["fc.weight"].zero_()
        for part, scale in (("q", 3.0), ("k", 3.0), ("v", 1.0)):
            tensors[f"midlayer.self_attn.{part}_proj.weight"] = torch.cat([scale * one, 0 * one], dim=1)
        tensors["midlayer.self_attn.o_proj.weight"] = one.clone()
        ids = tensors["d2t"] + torch.arange(len(tensors["d2t"]))
        tensors["lm_head.weight"] = model.get("lm_head.weight", model["model.embed_tokens.weight"])[ids].clone()
    for name in tensors:
        if name.endswith("down_proj.weight") or (name.startswith("layers.") and name.endswith("o_proj.weight")):
            tensors[name].zero_()
