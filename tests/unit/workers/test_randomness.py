"""The numbers that every choice hangs on: uniform, independent, and equal wherever they are computed."""

from __future__ import annotations

import math

import pytest
import torch

from minedraft_workers.sampling.randomness import (
    GUMBEL_BOUND_OFFSET,
    GUMBEL_BOUND_UNIT,
    Purpose,
    TokenNoise,
    gumbel,
    gumbel_bound,
    gumbel_of,
    random_bits64,
    uniform,
)

VOCAB = 2048
NOISE = TokenNoise(torch.arange(VOCAB))


def unit(bits: torch.Tensor) -> torch.Tensor:
    return (bits.double() + 0.5) / 2**31


def ks_statistic(values: torch.Tensor) -> float:
    """Kolmogorov-Smirnov distance to the uniform law, times sqrt(n); above 1.95 once in 1000."""
    ordered = values.flatten().sort().values
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max()) * math.sqrt(n)


def chi_square_z(counts: torch.Tensor, expected: torch.Tensor | float) -> float:
    """Chi-square as a normal deviate (Wilson and Hilferty)."""
    counts = counts.double().flatten()
    dof = len(counts) - 1
    ratio = float(((counts - expected) ** 2 / expected).sum()) / dof
    return (ratio ** (1 / 3) - 1 + 2 / (9 * dof)) / math.sqrt(2 / (9 * dof))


def pair_z(a: torch.Tensor, b: torch.Tensor, cells: int = 32) -> float:
    index = (a * cells).long() * cells + (b * cells).long()
    return chi_square_z(torch.bincount(index.flatten(), minlength=cells**2), index.numel() / cells**2)


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    """Uniforms [12 seeds, 12 positions, VOCAB]."""
    return unit(torch.stack([torch.stack([NOISE.bits(seed, pos) for pos in range(12)]) for seed in range(12)]))


@pytest.mark.slow
def test_noise_is_uniform_over_tokens_positions_and_seeds(noise: torch.Tensor) -> None:
    assert ks_statistic(noise) < 1.95
    assert max(ks_statistic(row) for row in noise.flatten(0, 1)) < 2.4
    assert max(ks_statistic(noise[:, :, token]) for token in range(0, VOCAB, 7)) < 2.8


@pytest.mark.slow
def test_noise_of_neighbouring_seeds_positions_and_tokens_is_independent(noise: torch.Tensor) -> None:
    assert abs(pair_z(noise[:-1], noise[1:])) < 4
    assert abs(pair_z(noise[:, :-1], noise[:, 1:])) < 4
    for distance in (1, 2, 64, VOCAB // 2):
        assert abs(pair_z(noise[..., :-distance], noise[..., distance:])) < 4
    correlation = torch.corrcoef(noise.flatten(0, 1)).fill_diagonal_(0).abs().max()
    assert float(correlation) * math.sqrt(VOCAB) < 5.5


@pytest.mark.slow
def test_small_noise_values_which_win_are_as_frequent_and_as_fine_as_they_should_be() -> None:
    bits = torch.stack([NOISE.bits(3, position) for position in range(1000)])
    for limit in (1e-2, 1e-3, 1e-4):
        wanted = bits.numel() * limit
        assert abs(float((unit(bits) < limit).sum()) - wanted) < 4.5 * math.sqrt(wanted)
    assert ks_statistic(unit(bits[bits < 2**19]) * 2**12) < 1.95


@pytest.mark.parametrize("shift", [0, 7, 15, 23])
def test_every_group_of_noise_bits_is_uniform(shift: int) -> None:
    bits = torch.stack([NOISE.bits(11, position) for position in range(200)])
    counts = torch.bincount((bits >> shift & 255).flatten().long(), minlength=256)
    assert abs(chi_square_z(counts, bits.numel() / 256)) < 4


@pytest.mark.slow
def test_the_token_with_the_largest_logit_plus_noise_is_a_draw_from_the_softmax() -> None:
    p = torch.softmax(2 * torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 0)
    small = TokenNoise(torch.arange(40))
    noise = torch.stack([gumbel(small.bits(seed, pos)) for seed in range(5) for pos in range(1000)])
    winners = (p.log() + noise).argmax(-1)
    assert abs(chi_square_z(torch.bincount(winners, minlength=40), p * len(winners))) < 4
    # Winners of neighbouring positions are independent too.
    top = p.argmax()
    both = ((winners[:-1] == top) & (winners[1:] == top)).double().mean()
    assert abs(float(both) - float(p[top]) ** 2) < 0.02


def test_noise_of_a_token_depends_on_its_id_only() -> None:
    whole = NOISE.bits(5, 77)
    some = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))[:1000]
    assert torch.equal(TokenNoise(some).bits(5, 77), whole[some])
    assert torch.equal(NOISE.bits(5, 77, some), whole[some])
    assert torch.equal(gumbel(whole)[some], gumbel(whole[some]))
    assert torch.equal(TokenNoise(torch.tensor([3], dtype=torch.int32)).bits(5, 77), whole[3:4])


def test_the_random_stream_is_frozen() -> None:
    """A seed must give the same answer after an upgrade: these values are part of the contract."""
    assert random_bits64(0, 0, Purpose.ACCEPT) == 0x47200E1D9780FA44
    assert NOISE.bits(42, 7)[[0, 1, 2047]].tolist() == [1564286605, 883960348, 398058076]


@pytest.mark.slow
def test_uniforms_of_different_purposes_positions_and_seeds_are_independent() -> None:
    n = 20_000
    by_purpose = {
        purpose: torch.tensor([uniform(9, position, purpose) for position in range(n)], dtype=torch.float64)
        for purpose in (Purpose.DRAFT, Purpose.ACCEPT, Purpose.TARGET)
    }
    by_seed = torch.tensor([uniform(seed, 4, Purpose.ACCEPT) for seed in range(n)], dtype=torch.float64)
    for values in (*by_purpose.values(), by_seed):
        assert ks_statistic(values) < 1.95
        assert abs(pair_z(values[:-1], values[1:], cells=16)) < 4
        assert float(values.min()) >= 0.0
        assert float(values.max()) < 1.0
    assert abs(pair_z(by_purpose[Purpose.DRAFT], by_purpose[Purpose.ACCEPT], cells=16)) < 4
    assert abs(pair_z(by_purpose[Purpose.ACCEPT], by_purpose[Purpose.TARGET], cells=16)) < 4


def test_seeds_and_positions_at_the_limits_are_ordinary() -> None:
    assert 0.0 <= uniform(2**63 - 1, 2**31 - 1, Purpose.DRAFT) < 1.0
    assert len({random_bits64(seed, 0, Purpose.DRAFT) for seed in (0, 1, 2**32, 2**63 - 1)}) == 4


def test_gumbel_stays_below_its_bound_and_near_it_where_it_is_large() -> None:
    extremes = torch.tensor([0, 1, 2, 3, 2**24 + 1, 2**31 - 1, 2**31 - 2], dtype=torch.int32)
    bits = torch.cat([extremes, NOISE.bits(1, 1)])
    exact = gumbel(bits)
    bound = GUMBEL_BOUND_OFFSET - GUMBEL_BOUND_UNIT * gumbel_bound(bits).double()
    assert bool(exact.isfinite().all())
    assert bool((exact <= bound + 1e-4).all())
    large = (exact > 3) & (bits > 100)
    assert float((bound - exact)[large].max()) < 0.1


def test_gumbel_of_one_token_is_the_gumbel_of_the_vector() -> None:
    bits = NOISE.bits(2, 2)[:50]
    assert torch.tensor([gumbel_of(int(b)) for b in bits], dtype=torch.float64).allclose(gumbel(bits), rtol=1e-14)
