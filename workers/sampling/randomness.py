"""Counter-based randomness: every number is a function of (seed, absolute position, purpose) and, for
vocabulary noise, of the token id. There is no state to save: a replay after a fault, another batch,
another device or a drafter with fewer output rows gets the same numbers.

Two kinds of numbers:

- `uniform`: one float64 per decision, computed in Python integers on the host, or for many decisions by NumPy.
- `TokenNoise`: one 31-bit integer per token, int32 tensor arithmetic only (wrap-around multiply, add,
  xor, shift), hence the same bits on every device. `gumbel` turns such bits into Gumbel noise; the
  token with the largest logit + noise is a draw from softmax(logits).
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch

_MASK64 = (1 << 64) - 1
_GOLDEN64 = 0x9E3779B97F4A7C15
_NOISE_BITS = 31


class Purpose(IntEnum):
    """The use of a number; numbers of different purposes are independent."""

    TOKEN_NOISE = 1  # the noise that drafter and verifier share under COUPLED
    DRAFT = 2  # which token the drafter samples
    ACCEPT = 3  # whether the verifier accepts a draft
    TARGET = 4  # which token the target adds: residual or bonus


def random_bits64(seed: int, position: int, purpose: Purpose) -> int:
    """Return 64 random bits for one use. Each argument goes through a full SplitMix64 round (Steele et al.
    2014), so that neighbouring seeds and positions give unrelated bits."""
    state = _mix64(seed + _GOLDEN64)
    state = _mix64(state + (position + 1) * _GOLDEN64)
    return _mix64(state + int(purpose) * _GOLDEN64)


def seed_of_draft(seed: int, index: int) -> int:
    """Return the seed that the index-th draft of a round is drawn with, for `Purpose.DRAFT`. A position that is
    drafted again, in a later round and so with another index, is drawn anew: a policy that has seen the first draft
    when it chose what to verify may depend on it ever since."""
    return (seed + index * _GOLDEN64) & _MASK64


def uniform(seed: int, position: int, purpose: Purpose) -> float:
    """Return a float64 in [0, 1), a multiple of 2**-53."""
    return (random_bits64(seed, position, purpose) >> 11) * 2.0**-53


def random_bits64_of(
    seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64], purpose: Purpose
) -> npt.NDArray[np.uint64]:
    """Return `random_bits64` of many seeds and positions, each uint64 [n]."""
    golden = np.uint64(_GOLDEN64)
    state = _mix64_of(seeds + golden)
    state = _mix64_of(state + (positions + np.uint64(1)) * golden)
    return _mix64_of(state + np.uint64(int(purpose) * _GOLDEN64 & _MASK64))


def uniforms(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return `uniform` of random bits, float64 [n]."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def noise_keys(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    """Return what `TokenNoise.bits_by_key` takes for random bits, int32 [n, 2]."""
    low, high = bits & np.uint64(0xFFFFFFFF), bits >> np.uint64(32) | np.uint64(1)
    return np.stack([low, high], axis=1).astype(np.uint32).view(np.int32)


class TokenNoise:
    """Noise bits for the columns of a logits row.

    The bits of a column depend on (seed, position) and on the token id that the column stands for, not on
    the column's place or on other columns.

    Attributes:
        hashes: int32 [num_columns], of the token ids.
    """

    __slots__ = ("hashes",)

    def __init__(self, token_ids: torch.Tensor) -> None:
        """Take token_ids: integers [num_columns], on the device of the logits."""
        self.hashes = _hash_token_ids(token_ids)

    def bits(self, seed: int, position: int, columns: torch.Tensor | None = None) -> torch.Tensor:
        """Return int32 in 0..2**31-1, [num_columns], or [len(columns)] if `columns` (int64) are given.

        For one token over random keys the bits are uniform; over the tokens of one key, a keyed
        multiply of well mixed values makes them pairwise independent.
        """
        key = random_bits64(seed, position, Purpose.TOKEN_NOISE)
        hashes = self.hashes if columns is None else self.hashes[columns]
        return _keyed(hashes, _wrapped(key & 0xFFFFFFFF), _wrapped(key >> 32 | 1))

    def bits_by_key(self, keys: torch.Tensor) -> torch.Tensor:
        """Return the bits of many positions, int32 [n, num_columns]; keys: of `noise_keys`, int32 [n, 2]."""
        return _keyed(self.hashes, keys[:, :1], keys[:, 1:])


def gumbel(bits: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise, float64, from noise bits.

    Large values come from small bits, where v = (bits + 1/2) / 2**31 is finest: the values that win
    are resolved to 2**-32 in probability, and -log(-log(u)) is never computed for u near one.
    """
    v = bits.double().add_(0.5).mul_(2.0**-_NOISE_BITS)
    return torch.log1p(v.neg_()).neg_().log_().neg_()


def gumbel_of(bits: int) -> float:
    """Return `gumbel` of one token's bits, computed on the host."""
    return -math.log(-math.log1p(-(bits + 0.5) * 2.0**-_NOISE_BITS))


def gumbel_bound(bits: torch.Tensor) -> torch.Tensor:
    """Return a cheap bound of `gumbel(bits)`, float32:
    gumbel <= GUMBEL_BOUND_OFFSET - GUMBEL_BOUND_UNIT * gumbel_bound.

    gumbel = -log(-log(1 - v)) <= -log(v), and the bit pattern of a float32 is a lower bound of its
    base-2 logarithm (Mitchell 1962), off by at most 0.086. No transcendental function is computed.
    """
    return bits.float().view(torch.int32).float()


_LN2 = 0.6931471805599453
GUMBEL_BOUND_UNIT = _LN2 * 2.0**-23
GUMBEL_BOUND_OFFSET = _LN2 * (127 + _NOISE_BITS)


def _keyed(hashes: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    x = torch.bitwise_xor(hashes, low)
    x.mul_(_MULTIPLIER)
    # The shift keeps the sign. Adding it loses no information, while xor would make x and ~x collide;
    # it takes one operator less than masking the sign bits off.
    x.add_(torch.bitwise_right_shift(x, _SHIFT))
    x.mul_(high)
    return x.bitwise_and_(_LOW_BITS)


def _mix64(x: int) -> int:
    x &= _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def _mix64_of(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash_token_ids(token_ids: torch.Tensor) -> torch.Tensor:
    """Return a well mixed int32 per id (the 32-bit finaliser of MurmurHash3), computed in int64, whose shifts
    of positive values are logical."""
    x = (token_ids.to(torch.int64) + 1) * 0x9E3779B1 & 0xFFFFFFFF
    x = (x ^ (x >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    x = x ^ (x >> 16)
    return (x - ((x >> 31) << 32)).to(torch.int32)


def _wrapped(unsigned: int) -> torch.Tensor:
    """Return a 0-dim int32 tensor of an unsigned 32-bit value. As an operand it works on every device and costs
    a third of a Python number."""
    return torch.tensor(unsigned - ((unsigned >> 31) << 32), dtype=torch.int32)


_MULTIPLIER = _wrapped(0x9E3779B1)
_SHIFT = _wrapped(16)
_LOW_BITS = _wrapped(0x7FFFFFFF)
