"""Read vocabularies and tokenizer settings, and decide about lower case."""

from __future__ import annotations

import logging
import re
import reprlib
import unicodedata
from pathlib import Path
from typing import Any

from transformer.files import UserError, read_json

logger = logging.getLogger(__name__)

VOCAB_NAME = "vocab.txt"

MAX_CHARACTERS_PER_WORD = 100  # a longer word is unknown

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

SENTENCE_PIECE_NAME = "spiece.model"  # English ALBERT's

TOKENIZER_JSON = "tokenizer.json"

# Where a vocabulary is read from: the first that exists.
VOCABULARY_FILES = (VOCAB_NAME, SENTENCE_PIECE_NAME, TOKENIZER_JSON)

TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json")
# What tokenizer_config.json may call a tokenizer whose words are cut as BERT's are.
WORDPIECE_CLASSES = frozenset(
    f"{name}Tokenizer"
    for name in ("Bert", "DistilBert", "Electra", "Albert", "MobileBert", "LayoutLM", "Nezha")
) | {"PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"}


def parse_vocab(content: bytes, name: str) -> dict[str, int]:
    """Return the id of each token: its line, counted from 0, without blanks and tabs around it.

    Blank lines at the end are nothing.

    Raises:
        UserError: not UTF-8, a blank line, a duplicate, or no special tokens; with the line.
    """
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{name}, line {line}: not UTF-8; give a BERT vocabulary") from None
    while lines and not lines[-1].strip("\r"):
        lines.pop()
    vocab: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        # subtle: Unicode's other blanks stay. Some vocabularies have them as tokens.
        token = line.removesuffix("\r")
        token = token.strip(" \t") or token
        if not token:
            raise UserError(f"{name}, line {number}: blank line; every line must hold one token")
        if token in vocab:
            raise UserError(
                f"{name}, line {number}: {token!r} is already on line {vocab[token] + 1}; "
                "every token may stand once"
            )
        vocab[token] = number - 1
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        raise UserError(
            f"{name}: none of its {len(lines)} lines is {', '.join(missing)}; "
            "a BERT vocabulary needs " + ", ".join(SPECIAL_TOKENS)
        )
    return vocab


def find_vocab(directory: Path) -> Path:
    """Return the vocabulary file of a checkpoint directory."""
    for name in VOCABULARY_FILES:
        if (directory / name).is_file():
            return directory / name
    raise UserError(
        f"{directory}: no {VOCAB_NAME} and no tokenizer.json; copy the vocabulary there"
    )


def has_sentence_pieces(file: Path) -> bool:
    """Say whether a vocabulary file holds a SentencePiece model."""
    if file.name == TOKENIZER_JSON:
        return _object_in(file, read_json(file), "model").get("type") == "Unigram"
    return file.name == SENTENCE_PIECE_NAME


def read_vocab_bytes(file: Path) -> bytes:
    """Return the content of `vocab.txt`, or what it would be for a `tokenizer.json`."""
    try:
        if file.suffix != ".json":
            return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot read the vocabulary: {error.strerror}") from None
    model = _object_in(file, read_json(file), "model")
    ids = model.get("vocab")
    if model.get("type", "WordPiece") != "WordPiece" or not isinstance(ids, dict):
        raise UserError(f"{file}: holds a {model.get('type')} model; BERT needs WordPiece")
    if not all(isinstance(index, int) for index in ids.values()):
        raise UserError(f"{file}: the ids in its vocab must be whole numbers")
    tokens = sorted(ids, key=lambda token: ids[token])
    for expected, token in enumerate(tokens):
        if ids[token] != expected:
            raise UserError(f"{file}: {token!r} has id {ids[token]!r} where {expected} was due")
    return ("\n".join(tokens) + "\n").encode("utf-8")


def fast_tokenizer(vocab: dict[str, int], options: dict[str, Any]) -> dict[str, Any]:
    """Return the object in a `tokenizer.json`: the same tokenizer for the `tokenizers` library.

    Args:
        options: of the tokenizer, as `BertTokenizer` takes them.
    """
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    first, second = (
        [{"Sequence": {"id": name, "type_id": segment}}, _special("[SEP]", segment)]
        for segment, name in enumerate("AB")
    )
    start = _special("[CLS]", 0)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[token], "content": token, **mark, "special": True}
            for token in sorted(SPECIAL_TOKENS, key=vocab.__getitem__)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": options["tokenize_chinese_chars"],
            "strip_accents": options["strip_accents"],
            "lowercase": options["do_lower_case"],
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, *first],
            "pair": [start, *first, *second],
            "special_tokens": {
                token: {"id": token, "ids": [vocab[token]], "tokens": [token]}
                for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": MAX_CHARACTERS_PER_WORD,
            "vocab": vocab,
        },
    }


def _special(token: str, segment: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": segment}}


def _object_in(file: Path, values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the object under `key` of a JSON file, {} where there is none."""
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise UserError(f"{file}: {key} is {reprlib.repr(found)}; it must be an object")
    return found


def stored_options(directory: Path) -> dict[str, Any]:
    """Return the tokenizer settings of a checkpoint directory; `tokenizer_config.json` wins."""
    options: dict[str, Any] = {}
    kept = None
    if (directory / "tokenizer.json").is_file():
        file = directory / "tokenizer.json"
        normalizer = _object_in(file, read_json(file), "normalizer")
        if normalizer.get("type") == "BertNormalizer":
            options = {
                "do_lower_case": normalizer.get("lowercase"),
                "strip_accents": normalizer.get("strip_accents"),
                "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
            }
    if (directory / "tokenizer_config.json").is_file():
        config = read_json(directory / "tokenizer_config.json")
        names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length")
        options.update({name: config[name] for name in names if name in config})
        # Hugging Face writes "do_basic_tokenize": true where nobody has set it.
        if config.get("do_basic_tokenize") is False:
            options["do_basic_tokenize"] = False
        _check_tokenizer(directory / "tokenizer_config.json", config)
        kept = _never_split(directory / "tokenizer_config.json", config)
    _check_options(directory, options)
    return {**options, "never_split": kept} if kept else options


def _never_split(file: Path, config: dict[str, Any]) -> list[str]:
    words = config.get("never_split") or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{file}: never_split is {words!r}; the tokenizer needs a list of words")
    return words


def _check_options(directory: Path, options: dict[str, Any]) -> None:
    """Refuse settings of another type: "false" in quotes would count as true."""
    for name, value in options.items():
        wanted = "a number" if name == "model_max_length" else "true, false or null"
        allowed = (int, float) if name == "model_max_length" else (bool, type(None))
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise UserError(f"{directory}: {name} is {value!r}; the tokenizer needs {wanted}")


def _check_tokenizer(file: Path, config: dict[str, Any]) -> None:
    """Refuse the tokenizers of other languages that call themselves BERT's; warn of new words."""
    name = str(config.get("tokenizer_class") or "BertTokenizer")
    if name.removesuffix("Fast") not in WORDPIECE_CLASSES:
        raise UserError(
            f"{file}: tokenizer_class {name} cuts words in another way than BERT's WordPiece; "
            "such a model cannot be read"
        )
    added = _object_in(file, config, "added_tokens_decoder")
    extra = [each.get("content") for each in added.values() if isinstance(each, dict)]
    more = config.get("additional_special_tokens") or []
    if not isinstance(more, list):
        raise UserError(f"{file}: additional_special_tokens is {more!r}; it must be a list")
    extra += more
    markers = sorted({str(each) for each in extra} - set(SPECIAL_TOKENS))
    if markers:
        logger.warning(
            "WARNING: %s names the special tokens %s; they are read as plain text here",
            *(file, ", ".join(markers[:10])),
        )


def keeps_accents(vocab: dict[str, int]) -> bool:
    """Say whether a vocabulary has entries that text without accents can never give.

    Such are accented letters, Japanese voiced sounds, Korean syllables and Indic or Thai vowels.
    Google's uncased vocabularies, English and Chinese, have none.
    """

    def stripped(token: str) -> str:
        parts = unicodedata.normalize("NFD", token)
        return "".join(part for part in parts if unicodedata.category(part) != "Mn")

    return any(not token.isascii() and stripped(token) != token for token in vocab)


def resolve_case(
    flag: bool | None, stored: bool | None, vocab: dict[str, int], vocab_file: Path
) -> bool:
    """Decide whether to lower-case: the flag, else what is stored, else by the vocabulary."""
    # "[MASK]" and, in the Chinese vocabulary, "<S>" are marks and no words.
    uncased = not any(
        token != token.lower() for token in vocab if not re.fullmatch(r"\[.*\]|<.*>", token)
    )
    if flag is not None and stored is not None and flag != stored:
        logger.warning(
            "%s: do_lower_case is %s in the tokenizer's settings, but the flag says %s; "
            "the flag is followed",
            vocab_file.parent,
            stored,
            flag,
        )
    choice = flag if flag is not None else stored
    if choice is None:
        logger.info(
            "%s has %s: text is %s (--do_lower_case or --no-do_lower_case decides otherwise)",
            vocab_file,
            "no capital letter" if uncased else "capital letters",
            "lower-cased" if uncased else "not lower-cased",
        )
        return uncased
    if uncased and not choice:
        logger.warning(
            "%s has no capital letter, but text is not lower-cased: words with capitals become "
            "[UNK]; give --do_lower_case",
            vocab_file,
        )
    return choice
