"""The settings of a single worker."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from minedraft.address import Address
from minedraft.device import DEVICE_FORMS, GPU_MEMORY_SHARE
from minedraft.settings.choices import Folder, OptionalPath, Share
from minedraft.settings.shared import Positional, SharedSettings
from minedraft.types import DraftMethod, Role


class WorkerSettings(SharedSettings):
    """The settings of one worker process."""

    role: Annotated[Role, Field(strict=False), Positional()] = Field(description="The worker's role.")
    model: Folder = Field(
        description="Model folder; with --draft-method ngram the target's, for its tokenizer.", examples=["DIR"]
    )
    target: OptionalPath = Field(
        None,
        description="With draft_method eagle: the target's model folder, for its tokenizer, embedding and output rows.",
        examples=["DIR"],
    )
    head: OptionalPath = Field(
        None,
        description="For a verifier: the folder of the drafting head that will read its features, so that what gives "
        "them is made at load and not at the first command.",
        examples=["DIR"],
    )
    listen: str = Field(description="Address to serve the scheduler on: unix:PATH or HOST:PORT.", examples=["ADDR"])
    device: str = Field("cpu", description=f"Device to run on: {DEVICE_FORMS}.", examples=["DEVICE"])
    max_device: str | None = Field(
        None,
        description="All cores that the scheduler may have it compute on while it runs, as cpu:0-3; default: its own.",
        examples=["DEVICE"],
    )
    memory_share: Share = Field(
        None,
        description="Part of a GPU's memory that weights and KV cache may take, or of the free memory of a CPU "
        f"that the KV cache may take; default: {GPU_MEMORY_SHARE:g} and 1/8.",
        examples=["SHARE"],
    )
    max_requests: int | None = Field(
        None, ge=1, description="Requests that can have KV at once; on a GPU the cache gets no more than they can use."
    )

    sessions: int = Field(
        1,
        ge=1,
        le=64,
        description="Schedulers that a drafter serves at once, each with an equal part of the KV blocks.",
        examples=["N"],
    )

    @property
    def listen_address(self) -> Address:
        return Address.parse(self.listen, "listen")

    @property
    def has_model(self) -> bool:
        """Whether the worker runs a model; a verifier always does."""
        return self.role is Role.VERIFIER or self.draft_method is not DraftMethod.NGRAM
