"""SentencePiece vocabularies: ids of the reference library, pieces as words, files that last.

Run: pytest tests/test_sentence_pieces.py
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest

from transformer.files import EnvironmentFault, UserError
from transformer.sentence_pieces import SentencePieceTokenizer
from transformer.tokenization import BertTokenizer

TEXTS = [
    "The film was good, and the films were GOOD.",
    "In 1990, 1,500 people saw it; [SEP] in 2,000 places",
    "café “quoted” ``old quotes'' ... naïve",
    "  spaces   and\ttabs ",
    "",
    "漢字 unknown ☃",
]
CORPUS = [
    "the film was good and the films were good",
    "people saw it in 1990, and in 2,000 places",
    "old quotes and spaces and tabs are in the corpus of the tokenizer",
] * 20
SPECIAL = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def json_dir(tmp_path_factory) -> Path:
    """Train a small Unigram model as English ALBERT's tokenizer.json has it."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    directory = tmp_path_factory.mktemp("json")
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def test_ids_are_those_of_the_model(json_dir):
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(json_dir / "tokenizer.json"))
    ours = BertTokenizer.from_pretrained(json_dir)
    assert isinstance(ours, SentencePieceTokenizer) and ours.do_lower_case
    for text in TEXTS:
        if "[SEP]" not in text:
            assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids
    assert ours.encode_batch(TEXTS) == [ours.encode(text) for text in TEXTS]
    special = [ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id]
    assert special == [reference.token_to_id(piece) for piece in SPECIAL]


def test_special_tokens_are_text_unless_asked_for(json_dir):
    tokenizer = BertTokenizer.from_pretrained(json_dir)
    assert tokenizer.sep_id not in tokenizer.encode("the [SEP] film")
    ids = tokenizer.encode("the [MASK] film", special_tokens=True)
    assert ids == [*tokenizer.encode("the"), tokenizer.mask_id, *tokenizer.encode("film")]


def test_pieces_are_written_as_words_and_continuations(json_dir):
    tokenizer = BertTokenizer.from_pretrained(json_dir)
    assert tokenizer.vocab.keys() >= {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    tokens = tokenizer.tokenize("the film, good")
    words = "".join(f" {token}" if token[:2] != "##" else token[2:] for token in tokens)
    assert words.replace("▁", "").split() in (
        ["the", "film", ",", "good"],
        ["the", "film,", "good"],
    )
    assert tokenizer.convert_tokens_to_ids(tokens) == tokenizer.encode("the film, good")


def test_what_is_saved_reads_the_same(json_dir, tmp_path):
    tokenizer = BertTokenizer.from_pretrained(json_dir)
    (tmp_path / "vocab.txt").write_text("of another model\n")
    tokenizer.save_pretrained(tmp_path)
    for again in (
        BertTokenizer.from_pretrained(tmp_path),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert again.vocab == tokenizer.vocab
        assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.convert_tokens_to_ids(theirs.tokenize(TEXTS[0])) == tokenizer.encode(TEXTS[0])


def test_a_flag_that_contradicts_the_model_is_refused(json_dir):
    with pytest.raises(UserError, match="lower-cases, which no flag can change"):
        BertTokenizer.from_pretrained(json_dir, do_lower_case=False)


def test_a_damaged_model_is_told(json_dir, tmp_path):
    values = json.loads((json_dir / "tokenizer.json").read_text())
    values["model"]["vocab"] = 7
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="tokenizer.json is damaged"):
        BertTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("package", ["sentencepiece", "tokenizers"])
def test_a_missing_package_is_named(package, json_dir, tmp_path, monkeypatch):
    name = {"sentencepiece": "spiece.model", "tokenizers": "tokenizer.json"}[package]
    content = (json_dir / "tokenizer.json").read_bytes()
    (tmp_path / name).write_bytes(content)
    monkeypatch.setitem(sys.modules, package, None)  # makes its import fail
    with pytest.raises(EnvironmentFault, match=f"pip install {package}"):
        BertTokenizer.from_pretrained(tmp_path)


def test_spiece_model_is_read_as_albert_was_trained(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=46,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece="<pad>",
        control_symbols=["[CLS]", "[SEP]"],
        user_defined_symbols=["[MASK]"],
        minloglevel=2,
    )
    ours = BertTokenizer.from_pretrained(tmp_path)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    for text in ("the film was good", "people saw it in places"):
        assert ours.encode(text.upper()) == model.encode(text)
    assert ours.encode("café") == ours.encode("cafe")
    number = ours.convert_ids_to_tokens(ours.encode("1990,"))
    assert number[-1] in (",", "##,")
    transformers = pytest.importorskip("transformers")
    if int(transformers.__version__.split(".")[0]) < 5:  # later ones read tokenizer.json alone
        theirs = transformers.AlbertTokenizer(str(tmp_path / "spiece.model"))
        for text in TEXTS:
            if "[SEP]" not in text:
                assert ours.encode(text) == theirs.convert_tokens_to_ids(theirs.tokenize(text))
