"""Drafting heads in plain torch, float64, whole sequences at once: an independent reading of their layouts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


class ReferenceHead:
    """A head of one of the layouts of `tiny_heads`, from its folder and its target's."""

    def __init__(self, folder: Path, target: Path) -> None:
        self._config = json.loads((folder / "config.json").read_text())
        self._weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
        rows = load_file(target / "model.safetensors")
        embedding = rows["model.embed_tokens.weight"].double()
        self._embedding = self._weights.get("embed_tokens.weight", embedding)
        self.is_eagle3 = "midlayer.self_attn.q_proj.weight" in self._weights
        self.ids = torch.arange(len(embedding))
        if self.is_eagle3:
            d2t = self._weights["d2t"].long()
            self.ids = torch.arange(len(d2t)) + d2t
        output = rows.get("lm_head.weight", embedding).double()[self.ids]
        self._output = self._weights.get("lm_head.weight", output)

    def run(self, tokens: list[int], features: torch.Tensor, num_own: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and states of the positions of `tokens`, which are one ahead of the features.

        Args:
            features: [positions, size] of the target's; the last `num_own` positions have no row in it, but follow
                from the head's own state at the position before.
        """
        states: list[torch.Tensor] = []
        for own in range(num_own + 1):
            length = len(tokens) - num_own + own
            logits, out = self._forward(tokens[:length], features.double(), states)
            states.append(out[-1])
        return logits, out

    def propose(self, tokens: list[int], features: torch.Tensor, draft_len: int) -> list[int]:
        """Return the greedy drafts after the committed `tokens`, whose features but for the last are given."""
        drafts: list[int] = []
        for index in range(draft_len):
            logits, _ = self.run([*tokens[1:], *drafts], features, num_own=index)
            drafts.append(int(self.ids[logits[-1].argmax()]))
        return drafts

    def _forward(
        self, tokens: list[int], features: torch.Tensor, own: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self._embedding[torch.tensor(tokens)]
        if not self.is_eagle3:
            given = torch.stack([*features, *own])
            return self._eagle(self._linear("fc", torch.cat([embedded, given], dim=1)))
        stream = torch.stack([*self._linear("fc", features), *own])
        x = torch.cat(
            [self._norm("midlayer.input_layernorm", embedded), self._norm("midlayer.hidden_norm", stream)], dim=1
        )
        stream = stream + self._attend("midlayer", x)
        stream = stream + self._mlp("midlayer", self._norm("midlayer.post_attention_layernorm", stream))
        for index in range(1, self._config["num_hidden_layers"]):
            name = f"layers.{index}"
            stream = stream + self._attend(name, self._norm(f"{name}.input_layernorm", stream))
            stream = stream + self._mlp(name, self._norm(f"{name}.post_attention_layernorm", stream))
        return self._norm("norm", stream) @ self._output.T, stream

    def _eagle(self, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stream = stream + self._attend("layers.0", stream)
        stream = stream + self._mlp("layers.0", self._norm("layers.0.post_attention_layernorm", stream))
        return stream @ self._output.T, stream

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = x @ self._weights[f"{name}.weight"].T
        bias = self._weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self._config["rms_norm_eps"]).rsqrt()
        return x * scale * self._weights[f"{name}.weight"]

    def _mlp(self, name: str, x: torch.Tensor) -> torch.Tensor:
        gate, up = (self._linear(f"{name}.mlp.{part}_proj", x) for part in ("gate", "up"))
        return self._linear(f"{name}.mlp.down_proj", gate * gate.sigmoid() * up)

    def _attend(self, name: str, x: torch.Tensor) -> torch.Tensor:
        config, length = self._config, len(x)
        dim, heads, kv_heads = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
        q, k, v = (
            self._linear(f"{name}.self_attn.{part}_proj", x).view(length, -1, dim).transpose(0, 1) for part in "qkv"
        )
        q, k = self._rotate(q), self._rotate(k)
        k, v = (each.repeat_interleave(heads // kv_heads, dim=0) for each in (k, v))
        scores = q @ k.transpose(1, 2) / dim**0.5
        mask = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
        mixed = (scores + mask).softmax(-1) @ v
        return self._linear(f"{name}.self_attn.o_proj", mixed.transpose(0, 1).reshape(length, heads * dim))

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        speeds = self._config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * speeds
        left, right = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
