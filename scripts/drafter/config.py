"""The constants of a run, read from config.toml into frozen values."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.drafter.store import DrafterError

DEFAULT_CONFIG = Path(__file__).with_name("config.toml")


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """The expected target; any other model is refused."""

    name: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    num_parameters: int


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
    """How the target's answers are generated and what is recorded."""

    slots: int
    max_answer_tokens: int
    max_question_tokens: int
    sampled_share: float
    temperature: float
    question_temperature: float
    top_k: int
    recorded_layers: list[int]
    shard_sequences: int
    tokens: int


@dataclass(frozen=True, slots=True)
class VocabularyConfig:
    """The reduced draft vocabulary."""

    size: int


@dataclass(frozen=True, slots=True)
class StudentConfig:
    """Which layers of the target the student is made of, and how its closed-form start is fitted."""

    prefix: int
    trained: list[int]
    fit_tokens: int
    fit_ridge: float

    @property
    def num_layers(self) -> int:
        """Layers of the student."""
        return self.prefix + len(self.trained)


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
    prompt_weight: float
    checkpoint_minutes: float
    validate_minutes: float
    trained_tokens: int


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """The students that are compared before the long training."""

    tokens: int
    fit_tokens: int
    students: list[tuple[int, list[int]]]


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """What the evaluation measures."""

    max_k: int
    answer_tokens: int
    temperature: float
    lookup_max_ngram: int
    timing_requests: int
    timing_k: int
    timing_context: int


@dataclass(frozen=True, slots=True)
class Config:
    """Every constant of scripts/train_drafter."""

    seed: int
    target: TargetConfig
    packages: dict[str, list[str]]
    prompts: PromptsConfig
    answers: AnswersConfig
    draft_vocabulary: VocabularyConfig
    student: StudentConfig
    training: TrainingConfig
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
            target=TargetConfig(**values["target"]),
            packages=values["packages"],
            prompts=PromptsConfig(**values["prompts"]),
            answers=AnswersConfig(**values["answers"]),
            draft_vocabulary=VocabularyConfig(**values["draft_vocabulary"]),
            student=StudentConfig(**values["student"]),
            training=TrainingConfig(**values["training"]),
            compare=CompareConfig(**values["compare"]),
            evaluation=EvaluationConfig(**values["evaluation"]),
        )
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise DrafterError(f"{path} is not a configuration of this script: {error}") from error
