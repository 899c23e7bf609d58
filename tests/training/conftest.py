"""A tiny random target and configuration for the tests of scripts/train_drafter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.drafter.config import Config, load_config

TEMPLATE = "{% for m in messages %}<u>{{ m['content'] }}<e>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_attention_heads=3,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = ["<s>", "<e>", "<u>", "<a>", *"abcdefghijklmnopqrstuvwxyz", " "]
    core = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<e>", additional_special_tokens=["<u>", "<a>"], chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config() -> Config:
    whole = load_config()
    return replace(
        whole,
        answers=replace(
            whole.answers, slots=3, max_answer_tokens=10, held_out_answer_tokens=10, max_question_tokens=4,
            shard_sequences=4, top_k=5,
        ),
        prompts=replace(whole.prompts, max_prompt_tokens=24, self_written=8),
        draft_vocabulary=replace(whole.draft_vocabulary, head=32, model=40),
        head=replace(whole.head, fit_tokens=60),
        model=replace(whole.model, prefix=0.5, stride=1, fit_tokens=60),
        compare=replace(whole.compare, tokens=40, tokens_per_batch=60, layers=[3], kept=0.7),
        evaluation=replace(whole.evaluation, timing_requests=2, timing_context=16),
        training={
            kind: replace(settings, tokens_per_batch=60, warmup_steps=2, learning_rate=3e-3)
            for kind, settings in whole.training.items()
        },
    )  # fmt: skip
