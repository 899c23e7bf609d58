"""SamplingParams to and from its protobuf message, for the client API and the worker link."""

from __future__ import annotations

from minedraft.sampling_params import GRAMMARS, SamplingParams
from minedraft.v1 import common_pb2

_DEFAULTS = SamplingParams()


def sampling_to_pb(params: SamplingParams) -> common_pb2.SamplingParams:
    """Return the message. It holds numbers as float32, so only the first round trip rounds them."""
    message = common_pb2.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        min_new_tokens=params.min_new_tokens,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        n=params.n,
        ignore_eos=params.ignore_eos,
        skip_special_tokens=params.skip_special_tokens,
        speculate=params.speculate,
    )
    if params.max_new_tokens is not None:
        message.max_new_tokens = params.max_new_tokens
    if params.seed is not None:
        message.seed = params.seed
    if params.logprobs is not None:
        message.logprobs = params.logprobs
    if params.draft_len is not None:
        message.draft_len = params.draft_len
    if params.grammar is not None:
        kind, text = params.grammar
        setattr(message, kind, text)
    return message


def sampling_from_pb(message: common_pb2.SamplingParams) -> SamplingParams:
    """Return the parameters; an unset optional field takes its default.

    Raises:
        InvalidRequest: a value breaks a limit of `SamplingParams`.
    """
    return SamplingParams(
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p if message.HasField("top_p") else _DEFAULTS.top_p,
        min_p=message.min_p,
        repetition_penalty=(
            message.repetition_penalty if message.HasField("repetition_penalty") else _DEFAULTS.repetition_penalty
        ),
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=dict(message.logit_bias),
        max_new_tokens=message.max_new_tokens if message.HasField("max_new_tokens") else None,
        min_new_tokens=message.min_new_tokens,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        seed=message.seed if message.HasField("seed") else None,
        n=message.n if message.HasField("n") else _DEFAULTS.n,
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        skip_special_tokens=(
            message.skip_special_tokens if message.HasField("skip_special_tokens") else _DEFAULTS.skip_special_tokens
        ),
        draft_len=message.draft_len if message.HasField("draft_len") else None,
        speculate=message.speculate if message.HasField("speculate") else _DEFAULTS.speculate,
        **{kind: getattr(message, kind) for kind in GRAMMARS if message.HasField(kind)},
    )
