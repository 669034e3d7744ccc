"""Instances of pre-training data, and how they become lines of JSON quickly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# Special and reserved entries: [MASK], [unused7], <S>.
_NOT_ORDINARY = re.compile(r"\[\w+\]|<\w+>")


class Instance(NamedTuple):
    """One sequence: tokens, each quoted for JSON; first_length counts segment 0 with its [SEP]."""

    tokens: list[bytes]
    first_length: int
    is_random_next: bool
    masked_positions: list[int]
    masked_labels: list[bytes]


class TokenTable:
    """The tokens of a vocabulary as they are written: quoted once, not at every use."""

    def __init__(self, vocab: Mapping[str, int]) -> None:
        quoted = {token: json.dumps(token).encode("ascii") for token in vocab}
        self._quoted = np.empty(max(vocab.values()) + 1, object)
        for token, index in vocab.items():
            self._quoted[index] = quoted[token]
        self.continuing = {quoted[token] for token in vocab if token.startswith("##")}
        self.ordinary = [quoted[token] for token in vocab if not _NOT_ORDINARY.fullmatch(token)]
        self.cls, self.sep, self.mask = quoted["[CLS]"], quoted["[SEP]"], quoted["[MASK]"]

    def tokens(self, ids: np.ndarray) -> list[bytes]:
        """Return the quoted tokens of `ids`: (N,). All occurrences of one are the same object."""
        return self._quoted.take(ids).tolist()


def format_line(instance: Instance) -> bytes:
    """Return an instance as one line of JSON, in the published keys."""
    tokens, first_length, is_random, positions, labels = instance
    # The last "," of the segments is cut off.
    segments = b"0," * first_length + b"1," * (len(tokens) - first_length)
    return b"".join(
        (
            b'{"tokens":[',
            b",".join(tokens),
            b'],"segment_ids":[',
            segments[:-1],
            b'],"is_random_next":true' if is_random else b'],"is_random_next":false',
            b',"masked_lm_positions":[',
            ",".join(map(str, positions)).encode() if positions else b"",
            b'],"masked_lm_labels":[',
            b",".join(labels),
            b"]}\n",
        )
    )
