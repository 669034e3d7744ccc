"""The ids of many texts in one array, by the compiled package `nanotoken` where it is installed.

It is an alpha, so it is believed as far as it is checked: of each block the first texts are encoded
by our own tokenizer as well, and once their ids differ it is not asked again. What it gives does
not depend on whether it is there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from transformer.tokenization import BertTokenizer

logger = logging.getLogger(__name__)

CHECKED_TEXTS = 32  # of each block

_distrusted: set[BertTokenizer] = set()  # those that it did not agree with


def encode_flat(tokenizer: BertTokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of N texts one after another, (M,), and how many each has, (N,) int64."""
    compiled = _compiled(tokenizer)
    if compiled is not None and tokenizer not in _distrusted:
        found = compiled.encode_batch(list(texts), add_special_tokens=False, parallel=False)
        ids, lengths = np.asarray(found.ids), np.asarray(found.lengths, np.int64)
        expected, _ = _encode(tokenizer, texts[:CHECKED_TEXTS])
        if np.array_equal(ids[: int(lengths[:CHECKED_TEXTS].sum())], expected):
            return ids, lengths
        logger.warning("WARNING: nanotoken gives other ids than this tokenizer; it is not used")
        _distrusted.add(tokenizer)
    return _encode(tokenizer, texts)


def _encode(tokenizer: BertTokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = tokenizer.encode_batch(texts)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return np.fromiter(chain.from_iterable(encoded), np.int32, int(lengths.sum())), lengths


@lru_cache(maxsize=1)
def _compiled(tokenizer: BertTokenizer) -> Any:
    """Return the compiled tokenizer, None where there is none that does the same."""
    try:
        from nanotoken import Tokenizer
    except ImportError:
        return None
    content = tokenizer.as_json()
    if content is None:
        return None
    # A "[SEP]" in a text is text to ours: without added tokens there is no other reading.
    return Tokenizer.from_json(json.dumps(content | {"added_tokens": []}))
