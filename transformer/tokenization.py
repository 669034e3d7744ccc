"""Turn text into WordPiece ids as BERT was trained on, from a bounded cache.

The output is that of the compiled `tokenizers` library, character for character. It is faster
because nothing in BERT's tokenisation looks across a space: cleaning, accents, lower case,
punctuation and WordPiece act inside a space-separated chunk, and text repeats its chunks. So
`encode` is a split and a dictionary look-up per chunk; only a new chunk is worked out.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from transformer import characters
from transformer.file_utils import cached_path
from transformer.files import atomic_write
from transformer.vocabulary import (
    MAX_CHARACTERS_PER_WORD,
    SENTENCE_PIECE_NAME,
    SPECIAL_TOKENS,
    TOKENIZER_FILES,
    TOKENIZER_JSON,
    VOCAB_NAME,
    fast_tokenizer,
    find_vocab,
    has_sentence_pieces,
    keeps_accents,
    parse_vocab,
    read_vocab_bytes,
    resolve_case,
    stored_options,
)

logger = logging.getLogger(__name__)

_SPECIAL_TOKEN = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")

MAX_CACHED_CHUNKS = 2**19

MAX_CACHED_LENGTH = 24


class _CharacterMap(dict[int, str]):
    """A table for `str.translate`, filled as characters are met."""

    def __init__(self, replace: Callable[[str], str]):
        super().__init__()
        self._replace = replace

    def __missing__(self, code_point: int) -> str:
        replacement = self[code_point] = self._replace(chr(code_point))
        return replacement


# subtle: letters that must not be decomposed hide behind private-use characters meanwhile. Those
# are free: `clean` removes the private-use characters of a text.
_HIDDEN = {char: chr(0xF0000 + i) for i, char in enumerate(sorted(characters.KEPT_COMPOSED))}

_SHOWN = {hidden: char for char, hidden in _HIDDEN.items()}


class BasicTokenizer:
    """Clean text and split it into words and punctuation.

    Args:
        never_split: words between blanks that stay as they are.
        strip_accents: None does it exactly when `do_lower_case`.
        tokenize_chinese_chars: make every Chinese character a word.
    """

    def __init__(
        self,
        do_lower_case: bool = True,
        never_split: Iterable[str] = (),
        *,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
    ):
        self.do_lower_case = do_lower_case
        self.never_split = tuple(never_split)
        self.strip_accents = do_lower_case if strip_accents is None else strip_accents
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self._clean_map = _CharacterMap(self._clean)
        self._split_map = _CharacterMap(self._split)

    def tokenize(self, text: str) -> list[str]:
        """Split `text` into words: "Hé, you!" -> ["he", ",", "you", "!"]."""
        if self.never_split:
            return self._tokenize_around(text)
        if not (text.isascii() and text.isprintable()):
            text = self._decompose(text.translate(self._clean_map))
        # Only spaces are left as blanks, so that `split()` cannot find one of its own.
        return text.translate(self._split_map).split()

    def _tokenize_around(self, text: str) -> list[str]:
        """Split `text` into words but for those of `never_split`."""
        kept = {word.translate(self._clean_map): word for word in self.never_split}
        words: list[str] = []
        for word in text.translate(self._clean_map).split():
            if word in kept:
                words.append(kept[word])
            else:
                words += self._decompose(word).translate(self._split_map).split()
        return words

    def _decompose(self, clean: str) -> str:
        """Make letter and accents characters of their own if they are stripped."""
        return unicodedata.normalize("NFD", clean) if self.strip_accents else clean

    def _clean(self, char: str) -> str:
        """Return what `char` is before decomposition: itself, spaced, a space or nothing."""
        if characters.is_blank(char):
            return " "
        if characters.is_removed(char):
            return ""
        if self.tokenize_chinese_chars and characters.is_cjk(char):
            return f" {char} "
        return _HIDDEN.get(char, char)

    def _split(self, char: str) -> str:
        """Return what `char` is after decomposition: nothing, lower case, or spaced."""
        shown = _SHOWN.get(char, char)
        if self.strip_accents and characters.is_mark(shown):
            return ""
        cased = characters.lower(shown) if self.do_lower_case else shown
        return f" {cased} " if characters.is_punctuation(cased[:1]) else cased

    def __getstate__(self) -> dict[str, Any]:
        options = self.strip_accents, self.tokenize_chinese_chars
        return {"options": (self.do_lower_case, self.never_split, *options)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        do_lower_case, never_split, strip_accents, chinese = state["options"]
        self.__init__(
            do_lower_case, never_split, strip_accents=strip_accents, tokenize_chinese_chars=chinese
        )


class WhitespaceTokenizer:
    """Split text at blanks and leave the words as they are (`do_basic_tokenize=False`)."""

    do_lower_case = False
    never_split = ()

    def tokenize(self, text: str) -> list[str]:
        """Split `text` at blanks."""
        return text.split()


def _reach(entries: Iterable[str]) -> dict[str, int]:
    """Return the length of the longest entry that begins with each two characters."""
    reach: dict[str, int] = {}
    for entry in entries:
        reach[entry[:2]] = max(len(entry), reach.get(entry[:2], 0))
    return reach


class WordpieceTokenizer:
    """Split words into the longest pieces of a vocabulary, greedily from the left."""

    def __init__(
        self,
        vocab: dict[str, int],
        unk_token: str = "[UNK]",
        max_input_chars_per_word: int = MAX_CHARACTERS_PER_WORD,
    ):
        self.vocab = vocab
        self.unk_token = unk_token
        self.max_input_chars_per_word = max_input_chars_per_word
        # Continuations without their mark: looking one up then needs no concatenation.
        self._continuations = {
            token[2:]: index for token, index in vocab.items() if token.startswith("##")
        }
        self._tokens = {index: token for token, index in vocab.items()}
        self._reach = _reach(vocab)
        self._continuation_reach = _reach(self._continuations)

    def tokenize(self, text: str) -> list[str]:
        """Split blank-separated words: "unaffable" -> ["un", "##aff", "##able"]."""
        pieces: list[str] = []
        for word in text.split():
            ids = self.word_ids(word)
            pieces += [self._tokens[index] for index in ids] if ids else [self.unk_token]
        return pieces

    def word_ids(self, word: str) -> tuple[int, ...]:
        """Return the ids of the pieces of one word; nothing if it cannot be spelled."""
        length, start = len(word), 0
        if length > self.max_input_chars_per_word:
            return ()
        if word in self.vocab:
            return (self.vocab[word],)
        ids: list[int] = []
        look_up, reach = self.vocab.get, self._reach
        while start < length:
            # Two characters that begin no entry may still be one entry and the start of another.
            farthest = start + reach.get(word[start : start + 2], 1)
            for end in range(min(length, farthest), start, -1):
                index = look_up(word[start:end])
                if index is not None:
                    break
            else:
                return ()
            ids.append(index)
            start, look_up, reach = end, self._continuations.get, self._continuation_reach
        return tuple(ids)


class ChunkCache(dict[str, tuple[int, ...]]):
    """The ids of a chunk without a space in it, in bounded memory; what is absent is worked out.

    A chunk is kept if its characters and ids together are at most `MAX_CACHED_LENGTH`: at most
    330 bytes an entry with its slot, about 145 in English. So the `MAX_CACHED_CHUNKS` entries of
    a tokenizer take at most 173 MB (English: 76 MB). A full cache is emptied: the frequent chunks
    are back within a few thousand lines, and the cache follows a corpus that changes its language.
    """

    def __init__(self, basic: BasicTokenizer | WhitespaceTokenizer, wordpiece: WordpieceTokenizer):
        super().__init__()
        self._basic, self._wordpiece = basic, wordpiece
        self._unknown = (wordpiece.vocab[wordpiece.unk_token],)

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        if chunk in self._basic.never_split:
            words = [chunk]
        elif chunk.isascii() and chunk.isalnum():
            words = [chunk.lower() if self._basic.do_lower_case else chunk]
        else:
            words = self._basic.tokenize(chunk)
        if words == [chunk]:
            ids = self._wordpiece.word_ids(chunk) or self._unknown
        else:
            # subtle: this ends, because a word that came out of the basic tokenizer is its own
            # only word. So chunks and words share the cache.
            ids = tuple(chain.from_iterable(map(self.__getitem__, words)))
        if len(chunk) + len(ids) <= MAX_CACHED_LENGTH:
            if len(self) >= MAX_CACHED_CHUNKS:
                self.clear()
            self[chunk] = ids
        return ids


class BertTokenizer:
    """BERT's tokenizer: text to pieces and ids.

    Text is text: "[SEP]" in it is a bracket, a word and a bracket, unless `special_tokens=True`.

    Args:
        vocab_file: one token a line; or a `tokenizer.json` with a WordPiece model.
        do_lower_case: lower-case and, unless `strip_accents` says otherwise, strip accents.
        max_len: another name of `model_max_length`.
        do_basic_tokenize: False splits at blanks alone, and lower-cases nothing.
        never_split: words between blanks that are not split at punctuation, nor lower-cased.
        model_max_length: stored for other tools; nothing is cut here.

    Raises:
        UserError: the vocabulary has a blank line, a duplicate or no special tokens.
    """

    def __init__(
        self,
        vocab_file: str | Path,
        do_lower_case: bool = True,
        max_len: int | None = None,
        do_basic_tokenize: bool = True,
        never_split: Iterable[str] | None = None,
        *,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        model_max_length: int = 512,
    ):
        self._vocab_bytes = read_vocab_bytes(Path(vocab_file))
        self.vocab = parse_vocab(self._vocab_bytes, str(vocab_file))
        self._options = {
            "do_lower_case": do_lower_case,
            "strip_accents": strip_accents,
            "tokenize_chinese_chars": tokenize_chinese_chars,
            "model_max_length": model_max_length if max_len is None else max_len,
        }
        if not do_basic_tokenize:
            self._options["do_basic_tokenize"] = False
        if never_split:
            self._options["never_split"] = list(never_split)
        self._build()

    def _build(self) -> None:
        """Derive everything that follows from the vocabulary and the options."""
        self.do_lower_case: bool = self._options["do_lower_case"]
        self.ids_to_tokens = {index: token for token, index in self.vocab.items()}
        special_ids = (self.vocab[token] for token in SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = special_ids
        # These two are rare, and keep text from being cut at punctuation before anything else.
        self._is_usual = not {"do_basic_tokenize", "never_split"} & self._options.keys()
        self.basic_tokenizer = WhitespaceTokenizer()
        if self._options.get("do_basic_tokenize", True):
            self.basic_tokenizer = BasicTokenizer(
                self.do_lower_case,
                self._options.get("never_split", ()),
                strip_accents=self._options["strip_accents"],
                tokenize_chinese_chars=self._options["tokenize_chinese_chars"],
            )
        self.wordpiece_tokenizer = WordpieceTokenizer(self.vocab)
        self._chunk_ids = ChunkCache(self.basic_tokenizer, self.wordpiece_tokenizer)

    @property
    def settings(self) -> dict[str, Any]:
        """Return what decides, beside the vocabulary, which ids a text gets."""
        return {name: value for name, value in self._options.items() if name != "model_max_length"}

    @property
    def fingerprint(self) -> str:
        """Return a digest of all that decides which ids a text gets: vocabulary and settings."""
        facts = json.dumps([self.vocab, self.settings], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    # Caches stay behind when a tokenizer is sent to a worker process.
    def __getstate__(self) -> dict[str, Any]:
        return {"bytes": self._vocab_bytes, "vocab": self.vocab, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._vocab_bytes, self.vocab = state["bytes"], state["vocab"]
        self._options = state["options"]
        self._build()

    def _chunks(self, text: str) -> list[str]:
        """Cut `text` where words end for certain: "Hi, you." -> ["hi", ",", "you", "."]."""
        if not self._is_usual:
            return text.split(" ")
        if self.do_lower_case and text.isascii():
            text = text.lower()
        # Punctuation is a token by itself wherever it stands. Cut off from words, its most frequent
        # characters leave a quarter fewer chunks to work out and to remember. A blank stands only
        # where a word often does, because the others would make empty chunks.
        text = text.replace(",", " ,").replace(".", " .").replace("-", " - ")
        text = text.replace('"', ' " ').replace("(", "( ").replace(")", " )")
        # subtle: of the blanks only the space is cut at, the others stay in a chunk. `str.split()`
        # would also cut at characters that BERT removes, and so tear words apart.
        return text.split(" ")

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`; [CLS] and [SEP] are not put round it.

        Args:
            special_tokens: read "[MASK]" and the other special tokens in `text` as such.
        """
        if special_tokens:
            return self._encode_with_special_tokens(text)
        return list(chain.from_iterable(map(self._chunk_ids.__getitem__, self._chunks(text))))

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text, as `encode` does, a third faster."""
        # The collector walks through all lists made so far, again and again, and finds nothing.
        collecting = gc.isenabled()
        gc.disable()
        try:
            look_up, flatten = self._chunk_ids.__getitem__, chain.from_iterable
            encoded: list[list[int]] = []
            # A comprehension is a fifth slower here.
            for text in texts:
                encoded.append(list(flatten(map(look_up, self._chunks(text)))))  # noqa: PERF401
            return encoded
        finally:
            if collecting:
                gc.enable()

    def _encode_with_special_tokens(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in _SPECIAL_TOKEN.split(text):
            ids += [self.vocab[part]] if part in SPECIAL_TOKENS else self.encode(part)
        return ids

    def tokenize(self, text: str, *, special_tokens: bool = False) -> list[str]:
        """Return the pieces of `text`: "Unaffable!" -> ["una", "##ffa", "##ble", "!"].

        To know which pieces belong to which word, call it word by word.
        """
        return self.convert_ids_to_tokens(self.encode(text, special_tokens=special_tokens))

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the id of each token, that of [UNK] for one that the vocabulary lacks."""
        return [self.vocab.get(token, self.unk_id) for token in tokens]

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the token of each id.

        Raises:
            KeyError: an id that the vocabulary does not have.
        """
        return [self.ids_to_tokens[index] for index in ids]

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        do_lower_case: bool | None = None,
        *,
        cache_dir: str | Path | None = None,
    ) -> BertTokenizer:
        """Read the tokenizer of a checkpoint directory, hub name or address, or a vocabulary file.

        Args:
            do_lower_case: the user's flag. None follows `tokenizer_config.json`, then
                `tokenizer.json`, then the vocabulary: one without a capital is lower-cased.

        Returns:
            For a SentencePiece model, a `SentencePieceTokenizer`.

        Raises:
            UserError: nothing there, or not a BERT vocabulary.
        """
        location = Path(cached_path(path, cache_dir, files=TOKENIZER_FILES))
        directory = location if location.is_dir() else location.parent
        vocab_file = find_vocab(location) if location.is_dir() else location
        if has_sentence_pieces(vocab_file):
            from transformer.sentence_pieces import SentencePieceTokenizer  # extends this class

            return SentencePieceTokenizer(directory, do_lower_case)
        options = stored_options(directory)
        stored = options.pop("do_lower_case", None)
        tokenizer = cls(vocab_file, bool(do_lower_case), **options)
        tokenizer._options["do_lower_case"] = resolve_case(
            do_lower_case, stored, tokenizer.vocab, vocab_file
        )
        nothing_stored = options.get("strip_accents") is None and stored is None
        lowers = nothing_stored and tokenizer._options["do_lower_case"]
        if lowers and keeps_accents(tokenizer.vocab):
            logger.info("%s has accented entries: accents are kept", vocab_file)
            tokenizer._options["strip_accents"] = False
        tokenizer._build()
        return tokenizer

    def save_vocabulary(self, path: str | Path) -> tuple[str]:
        """Write the vocabulary byte for byte as it was read, to a directory or a file."""
        target = Path(path)
        file = target / VOCAB_NAME if target.is_dir() else target
        with atomic_write(file, "wb") as output:
            output.write(self._vocab_bytes)
        return (str(file),)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write vocabulary and settings so that `from_pretrained` and Hugging Face read them.

        `tokenizer.json` says the same to those who read nothing else, the `tokenizers` library and
        what is built on it. A "[SEP]" in a text is [SEP] to them.
        """
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        self.save_vocabulary(target)
        # Hugging Face would prefer what another model left there.
        (target / SENTENCE_PIECE_NAME).unlink(missing_ok=True)
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        special = dict(zip(names, SPECIAL_TOKENS, strict=True))
        config = {"tokenizer_class": "BertTokenizer", **self._options, **special}
        for name, content in (
            ("special_tokens_map.json", special),
            ("tokenizer_config.json", config),
        ):
            with atomic_write(target / name) as output:
                output.write(json.dumps(content, indent=2) + "\n")
        if not self._is_usual:  # no tokenizer.json can say it; what another model left would win
            (target / TOKENIZER_JSON).unlink(missing_ok=True)
            return
        with atomic_write(target / TOKENIZER_JSON) as output:
            json.dump(fast_tokenizer(self.vocab, self._options), output, ensure_ascii=False)
