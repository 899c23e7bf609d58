"""The constants of a run, read from config.toml into frozen values."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.drafter.store import DrafterError

DEFAULT_CONFIG = Path(__file__).with_name("config.toml")


@dataclass(frozen=True, slots=True)
class PromptsConfig:
    """How many prompts of each sort."""

    max_prompt_tokens: int
    evaluation_per_kind: int
    validation_per_kind: int
    self_written: int
    self_written_share: float


@dataclass(frozen=True, slots=True)
class AnswersConfig:
    """How the target's answers are generated."""

    slots: int
    max_answer_tokens: int
    held_out_answer_tokens: int
    max_question_tokens: int
    max_text_tokens: int
    sampled_share: float
    temperature: float
    question_temperature: float
    top_k: int
    shard_sequences: int
    tokens: int


@dataclass(frozen=True, slots=True)
class VocabularyConfig:
    """The size of the reduced draft vocabulary of each kind of drafter."""

    head: int
    model: int


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """The shape of a head, its closed-form start, and what its training rolls out."""

    num_layers: int
    features: list[float]
    fit_tokens: int
    fit_ridge: float
    token_heads: float
    sharpness: float
    steps: int
    step_weights: list[float]
    single_share: float

    def feature_layers(self, num_layers: int) -> tuple[int, ...]:
        """The target's layers whose states a head joins, ascending."""
        return tuple(sorted({max(1, round(share * num_layers)) for share in self.features}))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which layers of the target a draft model is made of, and its closed-form start."""

    prefix: float
    stride: int
    fit_tokens: int
    fit_ridge: float

    def layers(self, num_layers: int) -> tuple[int, list[int]]:
        """The number of layers that are kept, and the target's layers that the trained ones start from."""
        prefix = round(self.prefix * num_layers)
        return prefix, list(range(prefix, num_layers, self.stride))


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """The optimiser and its schedule."""

    tokens_per_batch: int
    learning_rate: float
    warmup_steps: int
    decay_share: float
    final_learning_rate: float
    label_temperature: float
    weight_decay: float
    betas: list[float]
    clip_norm: float
    hidden_weight: float
    question_weight: float
    checkpoint_minutes: float
    validate_minutes: float
    tokens: int


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """The numbers of layers that are compared, each trained for so many tokens from its closed-form start.

    Attributes:
        kept: share of a draft model's layers that are the target's first ones, unchanged.
    """

    tokens: int
    tokens_per_batch: int
    learning_rate: float
    layers: list[int]
    kept: float


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """What the evaluation measures."""

    max_k: int
    temperature: float
    lookup_max_ngram: int
    timing_requests: int
    timing_context: int


@dataclass(frozen=True, slots=True)
class Config:
    """Every constant of scripts/train_drafter; `training` by kind of drafter."""

    seed: int
    packages: dict[str, list[str]]
    prompts: PromptsConfig
    answers: AnswersConfig
    draft_vocabulary: VocabularyConfig
    head: HeadConfig
    model: ModelConfig
    training: dict[str, TrainingConfig]
    compare: CompareConfig
    evaluation: EvaluationConfig


def load_config(path: Path = DEFAULT_CONFIG) -> Config:
    """Reads a configuration.

    Raises:
        DrafterError: the file cannot be read, or a key is missing or unknown.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return Config(
            seed=values["seed"],
            packages=values["packages"],
            prompts=PromptsConfig(**values["prompts"]),
            answers=AnswersConfig(**values["answers"]),
            draft_vocabulary=VocabularyConfig(**values["draft_vocabulary"]),
            head=HeadConfig(**values["head"]),
            model=ModelConfig(**values["model"]),
            training={kind: TrainingConfig(**values["training"][kind]) for kind in ("head", "model")},
            compare=CompareConfig(**values["compare"]),
            evaluation=EvaluationConfig(**values["evaluation"]),
        )
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise DrafterError(f"{path} is not a configuration of this script: {error}") from error
