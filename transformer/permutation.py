"""Pseudo-random numbers and orders that are computed from a key, with no state to save."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEISTEL_ROUNDS = 8


def mix_seed(*integers: int) -> int:
    """Mix integers into 64 well-spread bits, as a pure function (the splitmix64 finaliser)."""
    state = 0x9E3779B97F4A7C15
    for integer in integers:
        state = (state ^ (integer & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


@dataclass(frozen=True)
class Permutation:
    """A pseudo-random permutation of 0..size-1 that is computed, not stored.

    A Feistel network over the bits of `size`, applied again to results that fall outside
    ("cycle walking"), so that any part of the order is known without the rest of it.
    """

    size: int
    key: int

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the elements at `positions`, int64."""
        values = self._encrypt(np.asarray(positions, np.uint64))
        outside = values >= self.size
        while outside.any():
            values[outside] = self._encrypt(values[outside])
            outside = values >= self.size
        return values.astype(np.int64)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        bits = max(self.size - 1, 3).bit_length()
        # subtle: the halves change places each round, so with an odd number of bits their widths
        # do too; an even number of rounds puts them back.
        widths = [np.uint64(bits // 2), np.uint64(bits - bits // 2)]
        left, right = values >> widths[1], values & _low_bits(widths[1])
        for turn in range(FEISTEL_ROUNDS):
            mask = _low_bits(widths[turn % 2])
            left, right = right, (left ^ _scramble(right, mix_seed(self.key, turn))) & mask
        return left << widths[1] | right


def _low_bits(width: np.uint64) -> np.uint64:
    return (np.uint64(1) << width) - np.uint64(1)


def _scramble(values: np.ndarray, key: int) -> np.ndarray:
    """Hash each element with `key` (multiplications wrap at 64 bits)."""
    mixed = (values + np.uint64(key & 0xFFFFFFFF)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(29)) ^ np.uint64(key >> 32)) * np.uint64(
        0x94D049BB133111EB
    )
    return mixed ^ (mixed >> np.uint64(32))
