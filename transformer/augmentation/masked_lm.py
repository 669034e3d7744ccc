"""Ask a masked language model which words could stand in a place, in large batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from transformer.augmentation.words import is_candidate, is_cjk
from transformer.files import UserError
from transformer.modeling import BertForMaskedLM
from transformer.tokenization import BertTokenizer

DEFAULT_LENGTH = 128

# Entries that are the word itself in other letters ("Film" for "film") are passed over.
SPARE_CANDIDATES = 4


class MaskedWord(NamedTuple):
    """A question to the masked LM: the pieces around and including a word, and its place."""

    pieces: bytes  # int32 ids; bytes can be keys
    position: int


def mask_window(pieces: np.ndarray, position: int, width: int) -> MaskedWord:
    """Return at most `width` pieces with `position` in the middle, as far as the ends allow.

    Example: pieces=[7 8 9 5 6], position=3, width=3 -> pieces [9 5 6], position 1.
    """
    start = max(0, min(position - width // 2, len(pieces) - width))
    return MaskedWord(pieces[start : start + width].tobytes(), position - start)


class MaskedLM:
    """A masked language model that says which words could stand in a place.

    Args:
        model: in evaluation mode, on its device, in the precision to compute in.
        candidates: M, wanted for each word.
        original_context: show the model the unmasked text as second segment.
        max_seq_length: of its input; a longer text is seen through a window round the word.
            None: 128, or as many as the model has positions.
        batch_size: masked copies in one forward pass.

    Raises:
        UserError: the model has fewer positions, or fewer entries than the vocabulary.
    """

    def __init__(
        self,
        model: BertForMaskedLM,
        tokenizer: BertTokenizer,
        *,
        candidates: int = 15,
        original_context: bool = False,
        max_seq_length: int | None = None,
        batch_size: int = 128,
    ):
        limit, entries = model.config.max_position_embeddings, model.config.vocab_size
        length = max_seq_length or min(DEFAULT_LENGTH, limit)
        if length > limit:
            raise UserError(f"--max_seq_length {length}: the model has {limit} positions")
        if original_context and model.config.type_vocab_size < 2:
            raise UserError("--mlm_context original: the model knows one segment, two are needed")
        if len(tokenizer.vocab) > entries:
            raise UserError(
                f"the vocabulary has {len(tokenizer.vocab)} entries, the model {entries}; they do "
                "not belong together"
            )
        self.model, self.tokenizer = model, tokenizer
        self.count, self.batch_size = candidates, batch_size
        self.copies = 2 if original_context else 1
        # [CLS], and [SEP] after each copy.
        self.window = (length - 1 - self.copies) // self.copies
        self.device = next(model.parameters()).device
        texts = [tokenizer.ids_to_tokens.get(index, "##") for index in range(entries)]
        # What is barred (V,) for a word: whatever is no word or holds Chinese; for a Chinese
        # character: whatever is not one.
        words = [not is_candidate(text) or any(map(is_cjk, text)) for text in texts]
        self._barred = torch.tensor([words, [not is_cjk(text) for text in texts]]).to(self.device)

    def masked_word(self, pieces: np.ndarray, position: int) -> MaskedWord:
        """Return the question for the piece at `position` of a text of any length."""
        return mask_window(pieces, position, self.window)

    def candidates(self, words: Iterable[MaskedWord]) -> dict[MaskedWord, list[str]]:
        """Return the M likeliest whole words in each place, likeliest first, as the vocabulary
        spells them; without the word itself. Equal questions are asked once."""
        # subtle: batches depend on the words of this call and their order alone, because the
        # rounding of a result depends on the batch it was computed in.
        by_length: dict[int, list[MaskedWord]] = {}
        for word in dict.fromkeys(words):
            by_length.setdefault(len(word.pieces), []).append(word)
        size = self.batch_size
        batches = [
            alike[start : start + size]
            for _, alike in sorted(by_length.items())
            for start in range(0, len(alike), size)
        ]
        with torch.inference_mode():
            top = [self._top_entries(batch) for batch in batches]  # read after all are queued
        found = {}
        for batch, entries in zip(batches, top, strict=True):
            for word, row in zip(batch, entries.tolist(), strict=True):
                found[word] = self._without_itself(word, row)
        return found

    def _top_entries(self, batch: list[MaskedWord]) -> Tensor:
        """Return the ids of the likeliest entries (N, K), padded with -1 at the end.

        The copies of a batch are of one length.
        """
        ids, segments = self._inputs(batch)
        positions = torch.tensor([word.position + 1 for word in batch], device=self.device)
        rows = torch.arange(len(batch), device=self.device)
        originals = torch.from_numpy(ids).to(self.device)
        inputs = originals.clone()
        inputs[rows, positions] = self.tokenizer.mask_id
        segment_ids = torch.from_numpy(segments).to(self.device) if self.copies > 1 else None
        output = self.model(inputs, segment_ids, tokens=positions.unsqueeze(1))
        logits = output.logits.squeeze(1).float()
        kinds = [
            is_cjk(self.tokenizer.ids_to_tokens[int(row[word.position + 1])])
            for row, word in zip(ids, batch, strict=True)
        ]
        logits.masked_fill_(self._barred[torch.tensor(kinds, device=self.device).long()], -math.inf)
        count = min(self.count + SPARE_CANDIDATES, logits.shape[1])
        scores, entries = logits.topk(count, dim=1)
        return entries.masked_fill(scores == -math.inf, -1)

    def _inputs(self, batch: list[MaskedWord]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and segments (N, T) before masking."""
        texts = np.stack([np.frombuffer(word.pieces, np.int32) for word in batch]).astype(np.int64)
        rows, length = texts.shape
        ids = np.full((rows, 1 + self.copies * (length + 1)), self.tokenizer.sep_id, np.int64)
        segments = np.zeros_like(ids)
        ids[:, 0] = self.tokenizer.cls_id
        for copy in range(self.copies):
            start = 1 + copy * (length + 1)
            ids[:, start : start + length] = texts
            segments[:, start : start + length + 1] = copy
        return ids, segments

    def _without_itself(self, word: MaskedWord, entries: list[int]) -> list[str]:
        original = int(np.frombuffer(word.pieces, np.int32)[word.position])
        itself = self.tokenizer.ids_to_tokens[original].casefold()
        texts = (self.tokenizer.ids_to_tokens[entry] for entry in entries if entry >= 0)
        others = [text for text in texts if text.casefold() != itself]
        return others[: self.count]
