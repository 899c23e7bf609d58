"""What the paper and its authors' blog publish (MineDraft, arXiv 2603.18016; blog of June 2026).

All gains are of two batches of m over sequential speculative decoding with one batch of m, so with twice the requests
in flight, on five GPUs over four.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublishedGain:
    """Gains of a pair in percent.

    Attributes:
        least, most: over the best baseline, where that is best over k, on the worst and best of four datasets.
        over_sd: the largest over sd at any k, TETRIS variants of the new method included.
        makespan: the largest reduction of makespan per request ("E2EL").
    """

    least: float
    most: float
    over_sd: float
    makespan: float


PUBLISHED = {
    ("qwen3-32b", "qwen3-0.6b"): PublishedGain(40, 47, 70.32, 37.89),
    ("qwen3-32b", "qwen3-1.7b"): PublishedGain(38, 48, 75.68, 39.51),
    ("qwen3-32b", "qwen3-4b"): PublishedGain(49, 65, 75.12, 38.94),
    ("llama-3.3-70b-int4", "llama-3.1-8b"): PublishedGain(21, 30, 37.06, 20.63),
    ("vicuna-33b", "vicuna-33b-eagle"): PublishedGain(1, 7.5, 22.09, 15.52),
    ("vicuna-13b", "vicuna-13b-eagle"): PublishedGain(2, 6.9, 21.08, 16.30),
}

SD_TOKENS_PER_S = 433.18
MINEDRAFT_TOKENS_PER_S = 541.84
TETRIS_1_TOKENS_PER_S = 567.17
"""The only absolute numbers: qwen3-32b with qwen3-1.7b, Arena, k = 2, m = 16: sd, minedraft alone, and with one extra
draft to choose from."""
