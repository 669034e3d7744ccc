"""One file as training and dev set: which of its texts are held out (--dev_share)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def text_hash(texts: Sequence[str]) -> int:
    """Return a hash of the texts of a row, or the words of a sentence: 64 bits, always the same."""
    digest = hashlib.blake2b("\t".join(texts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def held_out_texts(
    hashes: np.ndarray, strata: np.ndarray, share: float, *, keep_each: bool
) -> frozenset[int]:
    """Choose the texts of the dev set, by their hashes.

    Of every stratum the share is taken, one text more or less. Rows of one text stay together, and
    the choice depends neither on the order of the rows nor on a seed: every stage of a chain, each
    of its ranks and each of its seeds hold out the same texts.

    Args:
        hashes: `text_hash` of every row, (N,) uint64.
        strata: the number of the label, or the score, (N,).
        share: up to a half.
        keep_each: a text of every stratum stays in training, however rare it is.
    """
    texts, rows = np.unique(hashes, return_index=True)
    strata = strata[rows]
    order = np.lexsort((texts, strata))  # by stratum, and in it by a hash: in random order
    if keep_each:
        ends = np.flatnonzero(np.diff(strata[order])) + 1
        order = np.delete(order, [0, *ends] if len(order) else [])
    # Every 1/share-th of them, so that strata too small for a text of their own get some together.
    counted = np.floor(np.arange(len(order) + 1) * share + 0.5)
    return frozenset(texts[order[np.diff(counted) > 0]].tolist())
