"""Turns a client's call into requests of the pipeline: tokenises its prompt and submits each sample."""

from __future__ import annotations

import asyncio
import hashlib
import secrets

from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.core.scheduler import Scheduler
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import InvalidRequest
from minedraft.prompts import ChatPrompt, GenerateCall, TokenPrompt
from minedraft.sampling_params import DEFAULT_CHAT_TOKENS, DEFAULT_NEW_TOKENS, SamplingParams
from minedraft.server.answers.answer import Answer
from minedraft.server.live_call import LiveCall
from minedraft.server.tokenizing import PromptTokenizer
from minedraft.text.grammars import Grammars
from minedraft.text.tokenizer import Tokenizer


class Intake:
    """Tokenises and submits the calls of one service; belongs to its event loop."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._prompts = PromptTokenizer(tokenizer)
        self._grammars = Grammars(tokenizer.to_json, tokenizer.eos_ids)

    async def submit(self, pipeline: Pipeline, call: GenerateCall, live: LiveCall, name: str, client: str) -> None:
        """Submit the samples of a call, with `live` to receive their output.

        Args:
            name: the call's request id.
            client: the client's name; long prompts of different clients take turns.

        Raises:
            MineDraftError: the call cannot be answered.
        """
        _check_num_samples(call.sampling.n, pipeline.scheduler.limits)
        tokenizer, is_chat = self._tokenizer, isinstance(call.prompt, ChatPrompt)
        stop_ids = () if call.sampling.ignore_eos else tokenizer.eos_ids
        stop_ids += call.sampling.stop_token_ids
        if call.sampling.skip_special_tokens:
            stop_ids += tokenizer.stop_ids(call.sampling.stop)
        if (grammar := call.sampling.grammar) is not None:
            await asyncio.to_thread(self._grammars.check, *grammar)
        context_len = _context_len(pipeline.scheduler)
        prompt_ids = await self._prompts.encode(call.prompt, client, context_len - 1)
        default = DEFAULT_CHAT_TOKENS if is_chat else DEFAULT_NEW_TOKENS
        sampling = call.sampling.fit(context_len - len(prompt_ids), default)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        for index in range(sampling.n):
            new = NewRequest(prompt_ids, sampling, derive_seed(seed, index), tuple(dict.fromkeys(stop_ids)), name)
            # A chat answer is a separate message; any other answer continues the prompt's text.
            decoder = tokenizer.stream_decoder(sampling.skip_special_tokens, () if is_chat else prompt_ids)
            answer = Answer(index, decoder, sampling, live, name)
            live.answers.append(answer)
            live.pipeline_ids.append(pipeline.submit(new, answer))

    def warm_up(self, pipeline: Pipeline) -> GenerateCall:
        """Return a call long enough for a full round with drafts after the prompt's round, if the context allows."""
        context_len = _context_len(pipeline.scheduler)
        num_tokens = min(pipeline.scheduler.limits.draft_len + 2, context_len - 1)
        prompt = self._tokenizer.encode("Hello")[: context_len - num_tokens]
        return GenerateCall(TokenPrompt(tuple(prompt)), SamplingParams(max_new_tokens=num_tokens, ignore_eos=True))


def derive_seed(seed: int, index: int) -> int:
    """Return the seed of sample `index`; sample 0 has the call's own seed."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _check_num_samples(num_samples: int, limits: SchedulerLimits) -> None:
    num_seats = limits.num_batches * limits.max_batch_size
    if num_samples > num_seats + limits.max_waiting:
        limit = f"at most {num_seats + limits.max_waiting}: {num_seats} seats and max_waiting {limits.max_waiting}"
        raise InvalidRequest("n", num_samples, limit)


def _context_len(scheduler: Scheduler) -> int:
    """Return the maximum tokens of prompt and answer together, which the model and the KV memory limit."""
    return min(scheduler.limits.max_model_len, scheduler.verifier_kv.capacity)
