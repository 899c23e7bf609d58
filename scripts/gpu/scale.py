"""How large each step is: on a GPU, and on a CPU, where the check only tests itself."""

from __future__ import annotations

from dataclasses import dataclass

MAIN_TARGET, MAIN_DRAFT = "llama-8b", "llama-1b"


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes of all steps.

    Attributes:
        copy_bytes, matmul_size: of the measured rates. matmul_dtype: its number format.
        dtype: of all controlled models but the exact ones.
        targets, drafters: shapes that are timed alone, the most important first.
        num_sequences, span_lens, context: the grid of forwards; cached tokens of each sequence.
        command_sizes, draft_lens: requests and drafts of the timed draft and verify commands.
        warm_calls, max_calls, point_s: calls before and in a timing, and the seconds that it may take.
        pair: target, draft model beside it, and draft model for CPU cores.
        sizes: requests per batch (m) of the pair. draft_len: its k. alpha: share of right drafts.
        prompt_len, num_new: tokens of its requests. repeats: runs of each mode. num_blocks: KV blocks.
        law_batches, law_vocab: random batches whose choices are compared, and their vocabulary.
        exact_kinds: architectures of the exact step. exact_prompts, exact_new: its requests.
        exact_pair: shapes of its controlled target and draft model.
        warmed: shapes, with their dtypes, whose programs are compiled before anything is timed.
    """

    copy_bytes: int
    matmul_size: int
    matmul_dtype: str
    dtype: str
    targets: tuple[str, ...]
    drafters: tuple[str, ...]
    num_sequences: tuple[int, ...]
    span_lens: tuple[int, ...]
    context: int
    command_sizes: tuple[int, ...]
    draft_lens: tuple[int, ...]
    warm_calls: int
    max_calls: int
    point_s: float
    pair: tuple[str, str, str]
    sizes: tuple[int, ...]
    draft_len: int
    alpha: float
    prompt_len: int
    num_new: int
    repeats: int
    num_blocks: int
    law_batches: int
    law_vocab: int
    exact_kinds: tuple[str, ...]
    exact_prompts: int
    exact_new: int
    exact_pair: tuple[str, str]
    warmed: tuple[tuple[str, str], ...]


FULL = Scale(
    copy_bytes=4 << 30,
    matmul_size=8192,
    matmul_dtype="bfloat16",
    dtype="bfloat16",
    targets=(MAIN_TARGET, "qwen-1.5b", "smollm-135m"),
    drafters=(MAIN_DRAFT, "qwen-0.5b"),
    num_sequences=(16, 1, 4, 64, 128),
    span_lens=(5, 1, 2),
    context=500,
    command_sizes=(16, 32, 64, 128),
    draft_lens=(4, 1, 2),
    warm_calls=5,
    max_calls=50,
    point_s=0.25,
    pair=(MAIN_TARGET, MAIN_DRAFT, "llama-two-layers"),
    sizes=(16, 64),
    draft_len=4,
    alpha=0.8,
    prompt_len=128,
    num_new=64,
    repeats=2,
    num_blocks=2560,
    law_batches=20,
    law_vocab=32_000,
    exact_kinds=("llama", "qwen2"),
    exact_prompts=10,
    exact_new=40,
    exact_pair=("llama-two-layers", "llama-two-layers"),
    warmed=(
        *((name, "bfloat16") for name in (MAIN_TARGET, MAIN_DRAFT, "qwen-1.5b", "qwen-0.5b", "smollm-135m")),
        ("llama-two-layers", "bfloat16"),
        ("test-model", "float32"),
        ("test-model", "bfloat16"),
    ),
)
TINY = Scale(
    copy_bytes=16 << 20,
    matmul_size=256,
    matmul_dtype="float32",
    dtype="float32",
    targets=("tiny",),
    drafters=("tiny-draft",),
    num_sequences=(2, 4),
    span_lens=(5, 1),
    context=20,
    command_sizes=(2, 4),
    draft_lens=(4, 1),
    warm_calls=1,
    max_calls=3,
    point_s=0.02,
    pair=("tiny", "tiny-draft", "tiny-draft"),
    sizes=(2,),
    draft_len=4,
    alpha=0.8,
    prompt_len=8,
    num_new=24,
    repeats=1,
    num_blocks=128,
    law_batches=4,
    law_vocab=500,
    exact_kinds=("llama",),
    exact_prompts=3,
    exact_new=12,
    exact_pair=("tiny", "tiny-draft"),
    warmed=(("tiny", "float32"),),
)
