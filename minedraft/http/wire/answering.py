"""From the service's output to the `openai` package's response objects: texts, log-probabilities, usage, metrics."""

from __future__ import annotations

from typing import Any

from openai.types import CompletionUsage
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob, TopLogprob
from openai.types.completion_choice import Logprobs
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails

from minedraft.messages import TokenLogprobs
from minedraft.output import Output, RequestUsage
from minedraft.sampling_params import SamplingParams
from minedraft.text.tokenizer import Tokenizer
from minedraft.types import FinishReason

FINISH_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.ABORT: "stop"}


def usage_of(prompt_tokens: int, output_tokens: int) -> CompletionUsage:
    """Return the account of a call; of n samples the prompt counts once."""
    return CompletionUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=output_tokens,
        total_tokens=prompt_tokens + output_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=0),
    )


def chat_logprobs(tokenizer: Tokenizer, output: Output) -> list[ChatCompletionTokenLogprob]:
    """Return the entries of a chat completion's logprobs, one for each token."""
    entries = []
    for token_id, logprobs in zip(output.token_ids, output.logprobs, strict=True):
        top = [
            TopLogprob(token=text, logprob=logprob, bytes=list(data))
            for text, data, logprob in _alternatives(tokenizer, logprobs)
        ]
        data = tokenizer.token_bytes(token_id)
        text = data.decode("utf-8", "replace")
        entries.append(
            ChatCompletionTokenLogprob(token=text, logprob=logprobs.logprob, bytes=list(data), top_logprobs=top)
        )
    return entries


def completion_logprobs(tokenizer: Tokenizer, output: Output, offset: int) -> Logprobs:
    """Return a text completion's logprobs, in their older form.

    Args:
        offset: characters of the sample's text before this piece.
    """
    texts = [tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in output.token_ids]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return Logprobs(
        tokens=texts,
        token_logprobs=[entry.logprob for entry in output.logprobs],
        top_logprobs=[
            {text: logprob for text, _, logprob in _alternatives(tokenizer, entry)} for entry in output.logprobs
        ],
        text_offset=offsets,
    )


def stop_reason(tokenizer: Tokenizer, params: SamplingParams, whole: Output) -> int | str | None:
    """Return what ended a sample: a stop string, one of `stop_token_ids`, or None for the model's own end or the
    limit."""
    if whole.finish_reason is not FinishReason.STOP or not whole.token_ids:
        return None
    last = whole.token_ids[-1]
    if last in params.stop_token_ids:
        return last
    if last in tokenizer.eos_ids and not params.ignore_eos:
        return None
    if len(params.stop) == 1:
        return params.stop[0]
    if (special := tokenizer.token_bytes(last).decode("utf-8", "replace")) in params.stop:
        return special
    text = tokenizer.decode(whole.token_ids, params.skip_special_tokens)
    found = [(text.find(stop), stop) for stop in params.stop if stop in text]
    return min(found)[1] if found else None


def metrics_of(usage: RequestUsage, whole: Output, draft_len: int) -> dict[str, Any]:
    """Return what one sample took, under vLLM's names.

    Args:
        whole: the sample. draft_len: the service's most drafts per round (k).
    """
    decoding_s = usage.total_s - usage.first_token_s
    forced_lens = whole.forced_lens or (0,) * len(whole.round_lens)
    accepted = [length - 1 - forced for length, forced in zip(whole.round_lens, forced_lens, strict=True)]
    histogram = [0] * (max([draft_len, *accepted], default=0) + 1)
    for length in accepted:
        histogram[length] += 1
    drafted = usage.drafted_tokens
    speculation = {
        "mean_acceptance_length": 1 + usage.accepted_tokens / usage.rounds if usage.rounds else 1.0,
        "draft_acceptance_rate": usage.accepted_tokens / drafted if drafted else 0.0,
        "acceptance_histogram": histogram,
        "num_spec_steps": usage.rounds,
        "num_accepted_draft_tokens": usage.accepted_tokens,
        "num_draft_tokens": drafted,
        "num_spec_tokens": draft_len,
        "per_step_accepted": accepted,
    }
    return {
        "time_to_first_token_ms": usage.first_token_s * 1e3,
        "generation_time_ms": decoding_s * 1e3,
        "queue_time_ms": usage.queue_s * 1e3,
        "mean_itl_ms": decoding_s * 1e3 / (usage.output_tokens - 1) if usage.output_tokens > 1 else 0.0,
        "tokens_per_second": usage.output_tokens / usage.total_s if usage.total_s else 0.0,
        "speculative_decoding": speculation if drafted else None,
        "num_forced_tokens": usage.forced_tokens,
    }


def _alternatives(tokenizer: Tokenizer, entry: TokenLogprobs) -> list[tuple[str, bytes, float]]:
    found = []
    for token_id, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True):
        data = tokenizer.token_bytes(token_id)
        found.append((data.decode("utf-8", "replace"), data, logprob))
    return found
