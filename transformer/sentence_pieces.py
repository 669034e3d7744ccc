"""English ALBERT's tokenizer: SentencePiece instead of WordPiece (Kudo and Richardson, 1808.06226).

The model is `spiece.model`, read by the package sentencepiece, or `tokenizer.json`, read by the
package tokenizers; neither is among the requirements. Its pieces mark where a word begins
("▁film", "s"); here they are written as WordPiece does ("film", "##s"), so that all that asks for
whole words or continuations works alike. Ids are those of the model.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from transformer import characters
from transformer.files import EnvironmentFault, UserError, atomic_write
from transformer.tokenization import BasicTokenizer, BertTokenizer
from transformer.vocabulary import (
    SENTENCE_PIECE_NAME,
    SPECIAL_TOKENS,
    TOKENIZER_JSON,
    VOCAB_NAME,
    read_json,
)

WORD_START = "▁"

# What SentencePiece calls special tokens.
SPECIAL_PIECES = {"<pad>": "[PAD]", "<unk>": "[UNK]"}

PACKAGES = {SENTENCE_PIECE_NAME: "sentencepiece", TOKENIZER_JSON: "tokenizers"}


class SentencePieceTokenizer(BertTokenizer):
    """A SentencePiece model behind the interface of `BertTokenizer`.

    Args:
        directory: holds spiece.model or tokenizer.json; both are kept when the tokenizer is saved.
        do_lower_case: None follows the directory's files, and lower-cases where they say nothing.

    Raises:
        EnvironmentFault: the package that reads the model is not installed.
        UserError: a damaged model, one without BERT's special tokens, or a tokenizer.json whose
            case is not that of `do_lower_case`.
    """

    def __init__(self, directory: Path, do_lower_case: bool | None = None):
        settings = directory / "tokenizer_config.json"
        stored = read_json(settings) if settings.is_file() else {}
        files = [directory / name for name in PACKAGES if (directory / name).is_file()]
        self._files = {file.name: file.read_bytes() for file in files}
        self._name = str(directory)
        self._options = {
            "do_lower_case": do_lower_case,
            "keep_accents": bool(stored.get("keep_accents", False)),
            "model_max_length": stored.get("model_max_length", 512),
        }
        if do_lower_case is None:
            self._options["do_lower_case"] = stored.get("do_lower_case")
        self._build()

    def _build(self) -> None:
        """Open the model, and derive everything that follows from it."""
        name, package = self._find_package()
        source = f"{self._name}/{name}"
        try:
            open_model = _open_spiece if name == SENTENCE_PIECE_NAME else _open_json
            pieces, self._encode, lower = open_model(package, self._files[name], self._options)
        except Exception as error:  # the packages' errors share no other base
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{source} is damaged ({reason}); copy it again") from None
        if self._options["do_lower_case"] not in (None, lower):
            raise UserError(
                f"{source} {'lower-cases' if lower else 'keeps capitals'}, which no flag can "
                f"change; leave --{'no-' if lower else ''}do_lower_case out"
            )
        self.do_lower_case = lower
        self.vocab = {token: index for index, token in enumerate(_as_wordpieces(pieces))}
        missing = [token for token in SPECIAL_TOKENS if token not in self.vocab]
        if missing:
            raise UserError(f"{source}: none of its {len(pieces)} pieces is {', '.join(missing)}")
        self.ids_to_tokens = {index: token for token, index in self.vocab.items()}
        special_ids = (self.vocab[token] for token in SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = special_ids
        self.basic_tokenizer = BasicTokenizer(lower)

    def _find_package(self) -> tuple[str, ModuleType]:
        """Return the file to read, and the package that reads it."""
        for name in self._files:
            try:
                return name, import_module(PACKAGES[name])
            except ImportError:
                continue
        needed = " or ".join(f"{PACKAGES[name]} (for {name})" for name in self._files)
        raise EnvironmentFault(
            f"{self._name} has a SentencePiece vocabulary; reading it needs the package {needed}: "
            f"pip install {PACKAGES[next(iter(self._files))]}"
        )

    # The opened model stays behind when a tokenizer is sent to a worker process.
    def __getstate__(self) -> dict[str, Any]:
        return {"files": self._files, "name": self._name, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._files, self._name, self._options = state["files"], state["name"], state["options"]
        self._build()

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`, as `BertTokenizer.encode` does."""
        return self._encode_with_special_tokens(text) if special_tokens else self._encode(text)

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text, as `encode` does."""
        return list(map(self._encode, texts))

    def save_vocabulary(self, path: str | Path) -> tuple[str, ...]:
        """Write the files of the model byte for byte as they were read, to a directory."""
        for name, content in self._files.items():
            with atomic_write(Path(path) / name, "wb", encoding=None) as output:
                output.write(content)
        return tuple(str(Path(path) / name) for name in self._files)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write model and settings so that `from_pretrained` and Hugging Face read them."""
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        for name in {VOCAB_NAME, *PACKAGES} - self._files.keys():  # another model's
            (target / name).unlink(missing_ok=True)
        self.save_vocabulary(target)
        settings = {
            "tokenizer_class": "AlbertTokenizer",
            **{**self._options, "do_lower_case": self.do_lower_case},
            **{"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "[CLS]"},
            **{"sep_token": "[SEP]", "mask_token": "[MASK]"},
        }
        with atomic_write(target / "tokenizer_config.json") as output:
            output.write(json.dumps(settings, indent=2) + "\n")


Opened = tuple[list[str], Callable[[str], list[int]], bool]


def _as_wordpieces(pieces: list[str]) -> list[str]:
    """Write pieces as WordPiece does, each differently.

    >>> _as_wordpieces(["<pad>", "▁film", "s", ",", "▁,", "▁"])
    ['[PAD]', 'film', '##s', ',', '▁,', '▁']
    """
    written: dict[str, None] = {}
    taken = {piece for piece in pieces if characters.is_punctuation(piece[:1])}
    for piece in pieces:
        word = piece.removeprefix(WORD_START)
        if piece in SPECIAL_PIECES:
            token = SPECIAL_PIECES[piece]
        elif piece in taken or not word or word in taken:
            token = piece  # punctuation is a word wherever it stands
        else:
            token = word if piece != word else f"##{piece}"
        while token in written:
            token += WORD_START
        written[token] = None
    return list(written)


def _open_json(tokenizers: ModuleType, content: bytes, options: dict[str, Any]) -> Opened:
    """Open a tokenizer.json: its own normaliser decides about case and accents."""
    values = json.loads(content)
    # subtle: text is text. As added tokens, "[SEP]" and its like would be found in it.
    values["added_tokens"] = []
    model = tokenizers.Tokenizer.from_str(json.dumps(values))
    pieces = [model.id_to_token(index) for index in range(model.get_vocab_size())]
    lower = "Lowercase" in json.dumps(values.get("normalizer"))
    return pieces, lambda text: model.encode(text, add_special_tokens=False).ids, lower


def _open_spiece(sentencepiece: ModuleType, content: bytes, options: dict[str, Any]) -> Opened:
    """Open a spiece.model, with the preparation of text that ALBERT was trained with."""
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    lower = options["do_lower_case"] is not False

    def encode(text: str) -> list[int]:
        text = " ".join(text.split()).replace("``", '"').replace("''", '"')
        if not options["keep_accents"]:
            text = unicodedata.normalize("NFKD", text)
            text = "".join(char for char in text if not unicodedata.combining(char))
        pieces = model.encode(text.lower() if lower else text, out_type=str)
        return [model.piece_to_id(part) for piece in pieces for part in _split_comma(model, piece)]

    return [model.id_to_piece(index) for index in range(len(model))], encode, lower


def _split_comma(model: Any, piece: str) -> list[str]:
    """Take the comma off a number: "▁1990," is "▁1990" and ",", as ALBERT was trained."""
    if len(piece) < 2 or piece[-1] != "," or not piece[-2].isdigit():
        return [piece]
    parts = model.encode(piece[:-1].replace(WORD_START, ""), out_type=str)
    if piece[0] != WORD_START and parts[0][0] == WORD_START:
        parts = [parts[0][1:], *parts[1:]] if len(parts[0]) > 1 else parts[1:]
    return [*parts, ","]
