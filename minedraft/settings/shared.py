"""What the settings of the service and of a worker share.

One text per field: the descriptions are `--help`, the comments of the TOML file and the README table.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from minedraft.settings.choices import OptionalPath
from minedraft.types import DraftMethod

MIN_BLOCKS = 8
"""KV blocks that a scheduler needs at least."""


class Positional:
    """Marks a setting that is a positional argument of the command line."""


class Switch:
    """Marks a setting that is on by default: the command line has a flag that turns it off, too."""


class SharedSettings(BaseModel):
    """The settings that the service shares with its workers. Frozen: they never change in a running process."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    draft_method: Annotated[DraftMethod | None, Field(strict=False)] = Field(
        None,
        description="model: use the draft model; ngram: look up n-grams in the request, no draft model; eagle: use the "
        "drafting head in the draft folder, which reads the target's features; default: what the draft folder holds.",
    )
    lookup: Annotated[bool, Switch()] = Field(
        True,
        description="Draft by n-grams of the request where that promises more than the draft model, which drafts else.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of the weights; auto picks the faster one for the device."
    )
    kernels: Literal["auto", "native", "triton", "torch", "transformers"] = Field(
        "auto",
        description="What computes a forward pass. native: this package's CPU kernels; triton: its GPU kernels; torch: "
        "torch's operators, layers fused likewise; all three for models of the Llama kind. transformers: the model's "
        "own code, for any model. auto: the first of them that fits.",
    )
    max_model_len: int | None = Field(
        None, ge=16, le=1 << 20, description="Maximum tokens of prompt and answer together; default: the model's limit."
    )
    num_blocks: int | None = Field(
        None,
        ge=MIN_BLOCKS,
        le=1 << 24,
        description="KV cache blocks per worker; default: what fits in its share of the memory.",
    )
    block_size: int = Field(16, ge=1, le=256, description="Tokens per KV cache block.")
    log_format: Literal["text", "json"] = Field(
        "text", description="Form of the log's lines: text, or json for one object a line."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Least level of the log's lines. debug: also each request's start, seat and end, by its id; never "
        "the text of a prompt.",
    )
    worker_tls: OptionalPath = Field(
        None,
        description="Folder with ca.pem, cert.pem and key.pem (`minedraft certs` makes it): links between scheduler "
        "and workers by HOST:PORT use TLS, and both ends show a certificate of that CA. Required between hosts.",
        examples=["DIR"],
    )

    @classmethod
    def own_first(cls) -> list[tuple[str, FieldInfo]]:
        """Return names and fields in the order they are shown in: the class's own before the shared ones."""
        return sorted(cls.model_fields.items(), key=lambda item: item[0] in SharedSettings.model_fields)

    def to_plain_values(self) -> dict[str, Any]:
        """Return the set values as texts and numbers; given as flags, they make the same settings again."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value is not None}
