"""Workers without a model: the target's next token is a fixed function of the whole prefix, and every
claim of the scheduler about KV is checked against what was really sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from minedraft.blocks import BlockPool
from minedraft.types import (
    PROTOCOL_VERSION,
    DraftCommand,
    DraftReply,
    Proposal,
    Role,
    Timing,
    Verdict,
    VerifyCommand,
    VerifyReply,
    WorkerInfo,
)

VOCAB_SIZE = 97


def next_token(prefix: Sequence[int]) -> int:
    """What the fake target says after `prefix`."""
    return (sum((i + 1) * t for i, t in enumerate(prefix)) * 31 + len(prefix)) % VOCAB_SIZE


def continuation(prompt: Sequence[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeKv:
    """KV of one worker: tokens per request, with block accounting as strict as the real one."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.tokens: dict[int, list[int]] = {}

    def append(self, request_id: int, prefix_len: int, tokens: Sequence[int], *, introduced: bool) -> list[int]:
        known = self.tokens.setdefault(request_id, [])
        assert introduced == (prefix_len == 0), "the spec comes with prefix length 0 and only then"
        assert prefix_len <= len(known), f"request {request_id}: {prefix_len} tokens kept of {len(known)} cached"
        del known[prefix_len:]
        known.extend(tokens)
        self.pool.resize(request_id, len(known))
        return known

    def release(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self.tokens.pop(request_id, None)
            self.pool.release(request_id)


def _info(role: Role, num_blocks: int, block_size: int, max_model_len: int) -> WorkerInfo:
    return WorkerInfo(
        role=role,
        epoch=7,
        protocol_version=PROTOCOL_VERSION,
        vocab_size=VOCAB_SIZE,
        vocab_fingerprint="fake",
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=max_model_len,
        model_name="fake",
        device="none",
        dtype="none",
    )


class FakeVerifier:
    """Executes verify commands at once; `hold` makes the async form wait for permission."""

    def __init__(self, num_blocks: int = 64, block_size: int = 4, max_model_len: int = 128) -> None:
        self.info = _info(Role.VERIFIER, num_blocks, block_size, max_model_len)
        self.kv = FakeKv(num_blocks, block_size)
        self.commands: list[VerifyCommand] = []
        self.hold: Callable[[], asyncio.Future[None]] | None = None

    def execute(self, command: VerifyCommand) -> VerifyReply:
        self.commands.append(command)
        self.kv.release(command.released)
        verdicts = []
        for span in command.spans:
            known = self.kv.append(
                span.request_id, span.prefix_len, (*span.tokens, *span.drafts), introduced=span.spec is not None
            )
            committed = known[: span.prefix_len + len(span.tokens)]
            if not span.sample:
                verdicts.append(Verdict(span.request_id, len(committed), 0, ()))
                continue
            tokens = [*committed]
            out: list[int] = []
            for draft in (*span.drafts, None):
                out.append(next_token(tokens))
                tokens.append(out[-1])
                if draft != out[-1]:
                    break
            verdicts.append(Verdict(span.request_id, len(committed), len(out) - 1, tuple(out)))
        return VerifyReply(command.round, tuple(verdicts), Timing(), self.kv.pool.num_free)

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        if self.hold is not None:
            await self.hold()
        await asyncio.sleep(0)
        return self.execute(command)

    async def release(self, request_ids: Sequence[int]) -> int:
        await asyncio.sleep(0)
        self.kv.release(request_ids)
        return self.kv.pool.num_free


class FakeDrafter:
    """Proposes the target's own next tokens, but errs where `is_right(prefix_len)` says so."""

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        max_model_len: int = 128,
        is_right: Callable[[int], bool] = lambda prefix_len: prefix_len % 3 != 0,
    ) -> None:
        self.info = _info(Role.DRAFTER, num_blocks, block_size, max_model_len)
        self.kv = FakeKv(num_blocks, block_size)
        self.is_right = is_right
        self.commands: list[DraftCommand] = []
        self.error: Exception | None = None

    def execute(self, command: DraftCommand) -> DraftReply:
        self.commands.append(command)
        self.kv.release(command.released)
        proposals = []
        for span in command.spans:
            known = self.kv.append(span.request_id, span.prefix_len, span.tokens, introduced=span.spec is not None)
            tokens = list(known)
            for _ in range(span.draft_len):
                token = next_token(tokens)
                tokens.append(token if self.is_right(len(tokens)) else (token + 1) % VOCAB_SIZE)
            drafts = tokens[len(known) :]
            if drafts:
                proposals.append(Proposal(span.request_id, len(known), tuple(drafts)))
                known.extend(drafts[:-1])
                self.kv.pool.resize(span.request_id, len(known))
        return DraftReply(command.round, tuple(proposals), Timing(), self.kv.pool.num_free)

    async def draft(self, command: DraftCommand) -> DraftReply:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.execute(command)

    prefill = draft

    async def release(self, request_ids: Sequence[int]) -> int:
        await asyncio.sleep(0)
        self.kv.release(request_ids)
        return self.kv.pool.num_free
