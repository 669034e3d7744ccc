"""Instances of pre-training data, and how they become lines of JSON quickly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

# Special and reserved entries: [MASK], [unused7], <S>.
_NOT_ORDINARY = re.compile(r"\[\w+\]|<\w+>")


class Instance(NamedTuple):
    """One sequence: ids with the special tokens, and the length of segment 0 with its [SEP]."""

    ids: list[int]
    first_length: int
    is_random_next: bool
    masked_positions: list[int]
    masked_labels: list[int]


class TokenTable:
    """What the vocabulary says of each id: its JSON text, whether it continues a word..."""

    def __init__(self, vocab: Mapping[str, int]) -> None:
        size = max(vocab.values()) + 1
        self.quoted = [b'""'] * size
        self.continues_word = bytearray(size)
        for token, index in vocab.items():
            self.quoted[index] = json.dumps(token).encode("ascii")
            self.continues_word[index] = token.startswith("##")
        self.ordinary = [
            index for token, index in vocab.items() if not _NOT_ORDINARY.fullmatch(token)
        ]
        self.cls, self.sep, self.mask = vocab["[CLS]"], vocab["[SEP]"], vocab["[MASK]"]


class InstanceFormatter:
    """Write instances as lines of JSON.

    The tokens are joined from texts that were quoted once: json.dumps would quote them each time.
    """

    def __init__(self, table: TokenTable, max_seq_len: int) -> None:
        self._quoted = table.quoted
        self._zeros, self._ones = b"0," * max_seq_len, b"1," * max_seq_len

    def line(self, instance: Instance) -> bytes:
        """Return an instance as one line, in the published keys."""
        ids, first_length, is_random, positions, labels = instance
        quoted = self._quoted
        # The last "," of the segments is cut off.
        segments = self._zeros[: 2 * first_length] + self._ones[: 2 * (len(ids) - first_length)]
        return b"".join(
            (
                b'{"tokens":[',
                b",".join([quoted[index] for index in ids]),
                b'],"segment_ids":[',
                segments[:-1],
                b'],"is_random_next":true' if is_random else b'],"is_random_next":false',
                b',"masked_lm_positions":[',
                ",".join(map(str, positions)).encode() if positions else b"",
                b'],"masked_lm_labels":[',
                b",".join([quoted[index] for index in labels]),
                b"]}\n",
            )
        )
