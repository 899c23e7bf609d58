"""The settings of the service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from minedraft.address import Address, default_listen
from minedraft.device import DEVICE_FORMS, GPU_MEMORY_SHARE, Device, usable_cores
from minedraft.errors import ConfigError
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.settings.checks import cores_of_both
from minedraft.settings.choices import AUTO, DraftLenChoice, ModeChoice, OptionalPath, Share, StepsChoice
from minedraft.settings.observing import ObservingSettings
from minedraft.settings.shared import SharedSettings
from minedraft.settings.worker import WorkerSettings
from minedraft.types import BRANCHES, MAX_BATCH_SIZE, MAX_BRANCHES, Batch, DraftMethod, Mode, Role


def _default_target_device() -> str:
    cores = usable_cores()
    return str(Device("cpu", cores[1:2] or cores))


def _default_draft_device() -> str:
    return str(Device("cpu", usable_cores()[:1]))


class Settings(ObservingSettings):
    """The settings of the service."""

    target: OptionalPath = Field(
        None, description="Target model folder; if omitted, the default pair is used.", examples=["DIR"]
    )
    draft: OptionalPath = Field(
        None,
        description="Draft model folder, which must have the target's tokenizer, or the folder of an EAGLE head.",
        examples=["DIR"],
    )
    mode: ModeChoice = Field(
        AUTO,
        description="minedraft: two batches, drafting and verifying overlap; sd: one batch, taking turns; "
        "pearl: one batch, drafted on while it is verified; ar: no drafts; auto: whichever of the others measured "
        "costs make the fastest at the present load.",
    )
    max_batch_size: int = Field(
        8, ge=1, le=MAX_BATCH_SIZE, description="Requests per batch (m); minedraft has two; auto seats as many as two."
    )
    draft_len: DraftLenChoice = Field(
        AUTO,
        description="Draft tokens per request and round (k), ignored in mode ar; auto: as many as measured costs and "
        "acceptance make the fastest, for each request.",
    )
    branches: int = Field(
        BRANCHES,
        ge=1,
        le=MAX_BRANCHES,
        description="Ways a verify may end that pearl prepares for; 1: as in its paper.",
    )
    steps_per_command: StepsChoice = Field(
        AUTO,
        description="Decode steps that the verifier makes in mode ar before it answers, at most; auto: as many as take "
        "no more than 35 ms together, up to 4. One while requests wait, and where a grammar decides.",
    )
    draft_policy: Literal["fixed", "tetris", "tetris-exact"] = Field(
        "fixed",
        description="Which drafts to verify. fixed: all; tetris: of extra drafts the best of the batch; tetris-exact: "
        "the same by the paper's rule, which changes the distribution of sampled answers without a seed.",
    )
    extra_drafts: int = Field(
        1, ge=1, le=MAX_DRAFT_LEN, description="Drafts beyond draft_len that tetris chooses from, per request."
    )
    verify_capacity: int = Field(
        0, ge=0, le=65536, description="Drafts that tetris verifies per round; 0: as many as without extra ones."
    )
    target_device: str = Field(
        default_factory=_default_target_device,
        description=f"Device of the verifier: {DEVICE_FORMS}; default: the second core.",
        examples=["DEVICE"],
    )
    draft_device: str = Field(
        default_factory=_default_draft_device,
        description="Device of the drafter, in the same form; default: the first core.",
        examples=["DEVICE"],
    )
    keep_cores: bool = Field(
        False,
        description="Have each worker keep to its own cores in modes ar and sd; otherwise whichever computes has all.",
    )
    keep_drafting: bool = Field(
        False, description="Draft even if no draft is accepted; otherwise drafting is suspended and tried again later."
    )
    target_memory_share: Share = Field(
        None,
        description="Part of a GPU's memory that the verifier's weights and KV cache may take, or of the free memory "
        f"of a CPU that its KV cache may take; default: 1/8 on a CPU, {GPU_MEMORY_SHARE:g} on a GPU, which two workers "
        "on one GPU divide by the sizes of their models.",
        examples=["SHARE"],
    )
    draft_memory_share: Share = Field(None, description="The same for the drafter.", examples=["SHARE"])
    prefill_chunk: int = Field(
        256,
        ge=16,
        le=8192,
        description="Prompt tokens per verify round, over all new requests; at most max_model_len.",
    )
    max_waiting: int = Field(
        256, ge=1, le=65536, description="Requests that may wait for a seat; further ones are refused."
    )
    max_waiting_tokens: int = Field(
        1 << 18,
        ge=1,
        le=1 << 30,
        description="Tokens that the waiting requests may have together, if there are several.",
    )
    slow_client_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Seconds that a client may read nothing of its answer, which is paused meanwhile and then ended.",
    )
    stream_tokens: int = Field(
        0,
        ge=0,
        le=256,
        description="Tokens in each streamed message, padded to one size, so that sizes and number of encrypted "
        "messages do not show how many drafts were accepted; 0: as they come.",
    )
    listen: str = Field(
        default_factory=default_listen,
        description="Address to serve clients on: unix:PATH or HOST:PORT.",
        examples=["ADDR"],
    )
    http: str | None = Field(
        None,
        description="Serve OpenAI's API and a chat page over HTTP at HOST:PORT, as 127.0.0.1:8000.",
        examples=["HOST:PORT"],
    )
    http_origins: str | None = Field(
        None,
        description="Web pages of other servers that may ask over HTTP, as http://localhost:3000; * for all; "
        "default: none.",
        examples=["ORIGIN,..."],
    )
    http_hosts: str | None = Field(
        None,
        description="Names that HTTP clients may call this host by, besides localhost, loopback addresses and the one "
        "in http, as behind a proxy that passes its own name on; * for any, the default if http is for other hosts.",
        examples=["HOST,..."],
    )
    model_name: str | None = Field(
        None, description="The model's name for HTTP clients; default: that of its folder.", examples=["NAME"]
    )
    tls_cert: OptionalPath = Field(
        None,
        description="Certificate, with its chain, that clients of HOST:PORT see. A changed file is read again.",
        examples=["FILE"],
    )
    tls_key: OptionalPath = Field(None, description="Key of tls_cert, in a file of mode 0600.", examples=["FILE"])
    tls_client_ca: OptionalPath = Field(
        None, description="Clients must show a certificate of this CA, beside the token.", examples=["FILE"]
    )
    token_file: OptionalPath = Field(
        None,
        description="File of mode 0600 with the tokens that admit clients, one a line, read again when it changes; or "
        "the name of a systemd credential. Required, like tls_cert and tls_key, to serve other hosts.",
        examples=["FILE"],
    )
    allow_configure: bool = Field(
        False, description="Let a client change mode and batch limits temporarily, as `minedraft bench` does."
    )
    target_address: str | None = Field(
        None, description="Use the verifier already running at this address.", examples=["ADDR"]
    )
    draft_address: str | None = Field(
        None, description="Use the drafter already running at this address.", examples=["ADDR"]
    )
    channel: Literal["auto", "inline", "shm", "cuda_ipc", "dist"] = Field(
        "auto",
        description="What carries large tensors (draft distributions, hidden states) between the workers. inline: "
        "messages, through the scheduler; shm: shared memory; cuda_ipc: GPU memory of one host; dist: "
        "torch.distributed, of one host too. auto: the fastest that both workers have; it falls back to inline.",
    )
    load_timeout_s: float = Field(600.0, gt=0, le=86400, description="Seconds within which the workers must be ready.")
    verifier_wait_s: float = Field(
        60.0,
        ge=0,
        le=86400,
        description="Seconds that requests wait for a verifier that was lost; then they end, and others are refused "
        "until it is back.",
    )
    max_replays: int = Field(
        2,
        ge=0,
        le=1000,
        description="Times that a request is recomputed because the verifier was lost in a round of it; the last time "
        "alone, so that a request that kills the verifier ends, and no other one.",
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="Seconds that running requests have to finish at shutdown."
    )

    hang_timeout_s: float = Field(
        5.0,
        ge=0,
        le=86400,
        description="Seconds without progress after which minedraft-launch kills a process and starts it again; a long "
        "forward makes progress with each layer. 0: never, for a debugger; on a GPU at least 30, for its compiler.",
    )

    @property
    def listen_address(self) -> Address:
        return Address.parse(self.listen, "listen")

    @property
    def max_draft_len(self) -> int:
        """The most drafts that a request can have in a round."""
        return MAX_DRAFT_LEN if self.draft_len == AUTO else self.draft_len

    @property
    def max_steps(self) -> int | None:
        """The most decode steps that a verify command can have; None: as measured times allow."""
        return None if self.steps_per_command == AUTO else self.steps_per_command

    @property
    def first_mode(self) -> Mode:
        """The mode to begin with; drafts are to be measured before they can be judged."""
        return Mode.SD if self.mode == AUTO else self.mode

    @property
    def max_in_flight(self) -> int:
        """Requests decoding at the same time over all batches."""
        return self.max_batch_size * (len(Batch) if self.mode == AUTO else self.mode.num_batches)

    @property
    def shares_gpu(self) -> bool:
        """Whether both workers belong to this service and run on one GPU."""
        try:
            devices = {Device.parse(text) for text in (self.target_device, self.draft_device)}
        except ConfigError:  # told elsewhere
            return False
        return len(self.own_workers) == len(Role) and len(devices) == 1 and devices.pop().kind == "cuda"

    @property
    def _max_with_kv(self) -> int | None:
        """Requests that have KV on a worker at once; None where a client may change the limits of the batches."""
        # Two batches, whatever the mode is now; and a request may come before the KV of the last one is released.
        return None if self.allow_configure else 4 * self.max_batch_size

    @property
    def needs_drafter(self) -> bool:
        return self.mode == AUTO or self.mode.has_drafts

    @property
    def own_workers(self) -> tuple[Role, ...]:
        """The workers that belong to this service: those without a given address, where one runs already."""
        roles = []
        if self.target_address is None:
            roles.append(Role.VERIFIER)
        if self.needs_drafter and self.draft_address is None:
            roles.append(Role.DRAFTER)
        return tuple(roles)

    def for_worker(self, role: Role, address: str) -> WorkerSettings:
        """Return the settings of a worker of this service that listens at `address`. The folders must be set."""
        is_verifier = role is Role.VERIFIER
        is_of_target = is_verifier or self.draft_method is DraftMethod.NGRAM
        has_head = self.draft_method is DraftMethod.EAGLE
        own = {
            "role": role,
            "model": self.target if is_of_target else self.draft,
            "target": self.target if has_head and not is_verifier else None,
            "head": self.draft if has_head and is_verifier else None,
            "listen": address,
            "device": self.target_device if is_verifier else self.draft_device,
            "max_device": cores_of_both(self),
            "memory_share": self.target_memory_share if is_verifier else self.draft_memory_share,
            "max_requests": self._max_with_kv,
        }
        shared = {name: getattr(self, name) for name in SharedSettings.model_fields}
        if Address.parse(address).path is not None:  # the other worker may be on another host
            shared["worker_tls"] = None
        return WorkerSettings.model_validate(own | shared)
