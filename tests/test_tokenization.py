"""Tokenisation against google's published cases and the compiled `tokenizers` library."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import string
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from transformer import BasicTokenizer, BertTokenizer, WordpieceTokenizer, tokenization
from transformer.files import UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FULL_CORPUS = "TINYBERT_FULL_CORPUS"  # set it to compare every line of the real corpora

NASTY = [
    "",
    " ",
    "\n\t\r ",
    "a",
    "Hello, World! It's 5 o'clock...",
    "UNwant\u00e9d,running",
    "\u00e0\u00e9\u00ee\u00f5\u00fc \u00c5ngstr\u00f6m \u212bngstr\u00f6m",
    "e\u0301 E\u0301e\u0301 \u0301 \u0301a ,\u0301b",
    "a\u0315\u0300\u05ae\u0300b \u1e69 s\u0307\u0323",
    "\u039f\u0394\u039f\u03a3 \u039f\u0394\u039f\u03a3, \u03a3 \u03a3\u03a3 \u03b1\u03a3",
    "\u0130stanbul I\u0307 \u0131 DI\u0307YARBAKIR",
    "Stra\u00dfe \u1e9e \ufb01n \u01c4 \u01c5",
    "\u4f60\u597d\u4e16\u754cabc\u4e2d\u6587 \u3002\uff0c\uff21\uff22",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c \u30ab\u30bf\u30ab\u30ca \uff76\uff9e",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab \uac01",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f1e9\U0001f1ea",
    "x\U0001f9d1\U0001f3fd\u200d\U0001f680y",
    "a\x00b\x01c\x0bd\x0ce\x1cf\x1dg\x1eh\x1fi\x7fj\x85k\x9fl",
    "a\ufffdb \ufeffc\ufeff d\u00ade\u200bf\u200cg\u200dh\u2060i",
    "a\ue000b \U000f0000c \U000f0001 \U0010fffd",
    "a\u00a0b\u1680c\u2000d\u2001e\u2002f\u2003g\u2009h\u200ai\u2028j\u2029k\u202fl\u205fm\u3000n",
    "\u1ffe\u1fef\u037e\u0387 \u2260 \u226e \u0344 \u0958 \u0f43",
    "\u0915\u094d\u0937\u093f \u0e01\u0e33 \u0ba8\u0bbf",
    "\u0627\u0644\u0639\u064e\u0631\u064e\u0628\u0650\u064a\u064e\u0651\u0629",
    "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "a_b-c/d\\e|f~g`h^i$j+k<l=m>n@o#p%q&r*s(t)u[v]w{x}y",
    "\u00a1\u00bf\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u2030\u20ac\u00a3\u00a7\u00b6\u00b7\u2022",
    "## ##a a## #",
    "w" * 100,
    "w" * 101,
    "\u00e9" * 100,
    "e\u0301" * 100 + " " + "e\u0301" * 101,
    "\ufdfa\u0390\u1f82 \u01d5 \U0001d160 \U0001d400",
    "\U00011938 \U000105c9 \U00016ea0 \ua7cb \u1c89 \U00010d50 \U00010570",
    "\u166d \u1734 \U000111c9 \U0001171e \u05c8 \u2e5d",
    "12,345.67 3.14e-10 \u00bd \u00b2 \u0664\u0665 \u2163",
    "https://example.org/a?b=c&d=\u00e9 user@example.org",
]


def reference(vocab_file: Path, lowercase: bool) -> Any:
    """Build the compiled tokenizer for plain text: special tokens in it are not looked for."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordPiece.from_file(
        str(vocab_file), unk_token="[UNK]", max_input_chars_per_word=100
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return tokenizer


def compiled(tokenizer: BertTokenizer, directory: Path) -> Any:
    """Return what the compiled tokenizer makes of the `tokenizer.json` that is saved."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer.save_pretrained(directory)
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


def reference_words(text: str, lowercase: bool) -> list[str]:
    tokenizers = pytest.importorskip("tokenizers")
    normal = tokenizers.normalizers.BertNormalizer(lowercase=lowercase).normalize_str(text)
    return [
        word for word, _ in tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normal)
    ]


def write_vocab(directory: Path, tokens: Iterable[str]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8", newline="\n")
    return path


@pytest.fixture(scope="module")
def rich_vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a vocabulary that spells most of what `NASTY` holds, in both cases."""
    seen = "".join(NASTY) + string.printable
    seen += (
        unicodedata.normalize("NFD", seen)
        + seen.lower()
        + unicodedata.normalize("NFD", seen).lower()
    )
    letters = sorted({char for char in seen if not char.isspace() and char != "\x85"})
    words = [
        "the",
        "un",
        "##want",
        "##ed",
        "runn",
        "##ing",
        "Hello",
        "hello",
        "##llo",
        "ww",
        "##ww",
    ]
    words += ["\u4f60\u597d", "e\u0301", "##\u0301e", "##f", "stanbul"]
    tokens = SPECIAL + letters + [f"##{char}" for char in letters] + words
    return write_vocab(tmp_path_factory.mktemp("rich"), dict.fromkeys(tokens))


# --- google's published cases ------------------------------------------------------------------


def test_google_basic_tokenizer() -> None:
    lower, cased = BasicTokenizer(do_lower_case=True), BasicTokenizer(do_lower_case=False)
    assert lower.tokenize("ah\u535a\u63a8zz") == ["ah", "\u535a", "\u63a8", "zz"]
    text = " \tHeLLo!how  \n Are yoU?  "
    assert lower.tokenize(text) == ["hello", "!", "how", "are", "you", "?"]
    assert cased.tokenize(text) == ["HeLLo", "!", "how", "Are", "yoU", "?"]
    assert lower.tokenize("H\u00e9llo") == ["hello"]
    assert cased.tokenize("H\u00e9llo") == ["H\u00e9llo"]


def test_google_wordpiece_tokenizer() -> None:
    tokens = ["[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un", "runn", "##ing"]
    tokenizer = WordpieceTokenizer({token: index for index, token in enumerate(tokens)})
    assert tokenizer.tokenize("") == []
    assert tokenizer.tokenize("unwanted running") == ["un", "##want", "##ed", "runn", "##ing"]
    assert tokenizer.tokenize("unwantedX running") == ["[UNK]", "runn", "##ing"]


def test_google_full_tokenizer(tmp_path: Path) -> None:
    tokens = ["[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un", "runn", "##ing", ","]
    tokenizer = BertTokenizer(write_vocab(tmp_path, [*tokens, "[PAD]", "[MASK]"]))
    pieces = tokenizer.tokenize("UNwant\u00e9d,running")
    assert pieces == ["un", "##want", "##ed", ",", "runn", "##ing"]
    assert tokenizer.convert_tokens_to_ids(pieces) == [7, 4, 5, 10, 8, 9]
    assert tokenizer.convert_ids_to_tokens([7, 4, 5, 10, 8, 9]) == pieces
    assert tokenizer.encode("UNwant\u00e9d,running") == [7, 4, 5, 10, 8, 9]


# --- equality with the compiled tokenizer ------------------------------------------------------


@pytest.mark.parametrize("lowercase", [True, False])
def test_nasty_strings(rich_vocab: Path, lowercase: bool) -> None:
    theirs, ours = reference(rich_vocab, lowercase), BertTokenizer(rich_vocab, lowercase)
    basic = BasicTokenizer(lowercase)
    unknown = 0
    for text in [*NASTY, *map("".join, zip(NASTY, NASTY[1:], strict=False)), " ".join(NASTY)]:
        expected = theirs.encode(text, add_special_tokens=False)
        assert basic.tokenize(text) == reference_words(text, lowercase), ascii(text)
        assert ours.encode(text) == expected.ids, ascii(text)
        assert ours.tokenize(text) == expected.tokens, ascii(text)
        assert ours.convert_ids_to_tokens(expected.ids) == expected.tokens
        unknown += expected.ids.count(ours.unk_id)
    assert unknown < 200, "the vocabulary must spell what is compared"


@pytest.mark.parametrize("lowercase", [True, False])
def test_every_character_of_two_planes(lowercase: bool) -> None:
    basic = BasicTokenizer(lowercase)
    extra = [*range(0x20000, 0x110000, 997), 0xE0001, 0xE0100, 0x2FA1D, 0x2CEA1, 0x2A6DF, 0x2A6E0]
    points = [point for point in [*range(0x20000), *extra] if not 0xD800 <= point < 0xE000]
    for start in range(0, len(points), 512):
        text = " ".join(f"a{chr(point)}b" for point in points[start : start + 512])
        words = basic.tokenize(text)
        # The cache relies on it that words are left alone.
        assert all(basic.tokenize(word) == [word] for word in words)
        if words == reference_words(text, lowercase):
            continue
        for chunk in text.split(" "):
            assert basic.tokenize(chunk) == reference_words(chunk, lowercase), ascii(chunk)


def test_random_strings(rich_vocab: Path) -> None:
    """Compare 20,000 different strings that Hypothesis makes, uncased and cased."""
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies

    pairs = [
        (lowercase, BertTokenizer(rich_vocab, lowercase), reference(rich_vocab, lowercase))
        for lowercase in (True, False)
    ]
    nasty_alphabet = sorted(set("".join(NASTY)))
    part = strategies.one_of(
        strategies.text(max_size=6),
        strategies.text(nasty_alphabet, max_size=8),
        strategies.sampled_from([*NASTY[4:], *SPECIAL, "the", "hello", "Hello", " ", "\t"]),
    )
    compared: set[str] = set()

    @hypothesis.settings(
        max_examples=200,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategies.lists(part, min_size=25, max_size=25, unique=True))
    def compare(parts: list[str]) -> None:
        # Each part alone, and what meets where two to six of them are joined.
        neighbours = [parts[i : i + length] for length in range(1, 7) for i in range(25)]
        batch = ["".join(strings) for strings in neighbours]
        compared.update(batch)
        for lowercase, ours, theirs in pairs:
            expected = theirs.encode_batch(batch, add_special_tokens=False)
            assert ours.encode_batch(batch) == [encoding.ids for encoding in expected], lowercase
            tokens = [ours.convert_ids_to_tokens(encoding.ids) for encoding in expected]
            assert tokens == [encoding.tokens for encoding in expected]

    compare()
    assert len(compared) >= 20_000


@pytest.mark.parametrize(
    "name", ["enwiki.20mb", "enwiki.paragraphs.2mb", "zhwiki.1mb", "zh_news.2mb"]
)
@pytest.mark.parametrize("vocab", ["models/bert-6l-384-mlm", "zh"])
def test_real_text(name: str, vocab: str, tmp_path: Path) -> None:
    corpus, vocab_file = DATA / "corpus" / f"{name}.txt", DATA / vocab / "vocab.txt"
    if not corpus.exists() or not vocab_file.exists():
        pytest.skip("needs the corpora beside the checkout")
    lines = corpus.read_text(encoding="utf-8").split("\n")
    if not os.environ.get(FULL_CORPUS):
        lines = random.Random(0).sample(lines, min(600, len(lines)))
    for lowercase in (True, False):
        expected = reference(vocab_file, lowercase).encode_batch(lines, add_special_tokens=False)
        tokenizer = BertTokenizer(vocab_file, lowercase)
        saved = compiled(tokenizer, tmp_path).encode_batch(lines, add_special_tokens=False)
        ours = tokenizer.encode_batch(lines)
        for line, ids, encoding, again in zip(lines, ours, expected, saved, strict=True):
            assert ids == encoding.ids == again.ids, line


@pytest.mark.parametrize("strip_accents", [True, False])
@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_options_of_the_normaliser(strip_accents: bool, chinese: bool, lowercase: bool) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese
    )
    words = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    ours = BasicTokenizer(lowercase, strip_accents=strip_accents, tokenize_chinese_chars=chinese)
    for text in NASTY:
        expected = [word for word, _ in words(normalizer.normalize_str(text))]
        assert ours.tokenize(text) == expected, ascii(text)


def test_lone_surrogates_vanish_like_other_control_characters(rich_vocab: Path) -> None:
    tokenizer = BertTokenizer(rich_vocab)
    assert tokenizer.encode("hel\ud800lo the") == tokenizer.encode("hello the")


# --- special tokens ----------------------------------------------------------------------------


def test_special_tokens_in_text_are_text(rich_vocab: Path) -> None:
    tokenizer = BertTokenizer(rich_vocab, do_lower_case=False)
    specials = {tokenizer.vocab[token] for token in SPECIAL}
    text = "x[SEP]y [MASK] [CLS][PAD] [UNK]"
    assert not specials & set(tokenizer.encode(text))
    assert tokenizer.tokenize("[MASK]") == ["[", "M", "##A", "##S", "##K", "]"]
    expected = ["x", "[SEP]", "y", "[MASK]", "[CLS]", "[PAD]", "[UNK]"]
    assert tokenizer.tokenize(text, special_tokens=True) == expected
    assert tokenizer.tokenize("[mask] [MASK", special_tokens=True)[:2] == ["[", "m"]


def test_special_tokens_when_asked_equal_the_compiled_tokenizer(rich_vocab: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.BertWordPieceTokenizer(str(rich_vocab), lowercase=True)
    ours = BertTokenizer(rich_vocab)
    assert ours.cls_id == theirs.token_to_id("[CLS]")
    assert ours.mask_id == theirs.token_to_id("[MASK]")
    for text in [*NASTY, "a [MASK] b", "[CLS]a[SEP][SEP]b", "[SEP", "x [ MASK ] [mask] [MASK]"]:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, special_tokens=True) == expected, ascii(text)


# --- the cache ---------------------------------------------------------------------------------


def test_cache_is_bounded_and_changes_nothing(
    rich_vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(random.Random(seed).choices(NASTY, k=5)) for seed in range(200)]
    texts += ["x" * length for length in range(90, 110)]
    expected = BertTokenizer(rich_vocab).encode_batch(texts)
    monkeypatch.setattr(tokenization, "MAX_CACHED_CHUNKS", 7)
    small = BertTokenizer(rich_vocab)
    for text, ids in zip(texts, expected, strict=True):
        assert small.encode(text) == ids
        assert len(small._chunk_ids) <= 7
        assert all(
            len(key) + len(value) <= tokenization.MAX_CACHED_LENGTH
            for key, value in small._chunk_ids.items()
        )
    assert small.encode_batch(texts * 2) == expected * 2


def test_callers_cannot_change_the_cache(rich_vocab: Path) -> None:
    tokenizer = BertTokenizer(rich_vocab)
    ids = tokenizer.encode("the hello")
    ids.append(0)
    assert tokenizer.encode("the hello") == ids[:-1]


def test_pickling_leaves_the_caches_behind(rich_vocab: Path) -> None:
    tokenizer = BertTokenizer(rich_vocab, do_lower_case=False)
    empty = len(pickle.dumps(tokenizer))
    expected = tokenizer.encode_batch(NASTY)
    assert len(pickle.dumps(tokenizer)) == empty
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode_batch(NASTY) == expected
    assert pickle.loads(pickle.dumps(BasicTokenizer(False))).tokenize("H\u00e9") == ["H\u00e9"]


# --- vocabulary files --------------------------------------------------------------------------


def test_unicode_blanks_are_tokens_and_ids_are_line_numbers(tmp_path: Path) -> None:
    tokens = [*SPECIAL, "\u00a0", "\u3000", "\u2028", " ", "x", "a", "\x85", "b"]
    path = write_vocab(tmp_path / "in", tokens)
    tokenizer = BertTokenizer(path)
    assert tokenizer.convert_tokens_to_ids(tokens) == list(range(len(tokens)))
    assert tokenizer.convert_ids_to_tokens(range(len(tokens))) == tokens
    tokenizer.save_vocabulary(tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == path.read_bytes()
    assert tokenizer.save_vocabulary(tmp_path / "v.txt") == (str(tmp_path / "v.txt"),)


def test_windows_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*SPECIAL, "a"]).encode())
    tokenizer = BertTokenizer(path)
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "a"]) == [0, 5]
    tokenizer.save_vocabulary(tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[PAD]\n[UNK]\n\na\n", "line 3: blank line"),
        ("[PAD]\n[UNK]\na\n\nb\n\n", "line 4: blank line"),
        ("[PAD]\n[UNK]\na\nb\na\n", "line 5: 'a' is already on line 3"),
        ("[PAD]\n[UNK]\na\nb\n[SEP]", r"none of its 5 lines is \[CLS\], \[MASK\]"),
        ("", r"none of its 0 lines is \[PAD\]"),
    ],
)
def test_bad_vocabulary_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        BertTokenizer(path)


def test_vocabulary_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n[UNK]\nab\xff\n")
    with pytest.raises(UserError, match="vocab.txt, line 3: not UTF-8"):
        BertTokenizer(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="cannot read the vocabulary: No such file"):
        BertTokenizer(tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no vocab.txt and no tokenizer.json"):
        BertTokenizer.from_pretrained(tmp_path / "empty")


def test_unknown_words_and_tokens(tmp_path: Path) -> None:
    tokenizer = BertTokenizer(write_vocab(tmp_path, [*SPECIAL, "a"]))
    assert tokenizer.tokenize("a b") == ["a", "[UNK]"]
    assert tokenizer.convert_tokens_to_ids(["b"]) == [tokenizer.unk_id]


def test_tokenizer_json_alone(tmp_path: Path, rich_vocab: Path) -> None:
    pytest.importorskip("tokenizers")
    theirs = reference(rich_vocab, lowercase=False)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = BertTokenizer.from_pretrained(tmp_path)
    assert ours.do_lower_case is False
    for text in NASTY:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    ours.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == rich_vocab.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "holds no JSON object"),
        ('{"model": {"type": "BPE", "vocab": {}}}', "holds a BPE model; BERT needs WordPiece"),
        ('{"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 2}}}', "'b' has id 2 where 1"),
    ],
)
def test_bad_tokenizer_json(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message):
        BertTokenizer.from_pretrained(tmp_path)


# --- lower case --------------------------------------------------------------------------------


def directory(path: Path, words: list[str], stored: bool | None) -> Path:
    write_vocab(path, [*SPECIAL, *words])
    if stored is not None:
        (path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": stored}))
    return path


@pytest.mark.parametrize(
    ("words", "stored", "flag", "expected", "warning"),
    [
        (["a"], None, None, True, ""),
        (["a", "[X1]", "<S>"], None, None, True, ""),
        (["a", "B"], None, None, False, ""),
        (["a", "B"], True, None, True, ""),
        (["a"], True, True, True, ""),
        (["a", "B"], False, None, False, ""),
        (["a", "B"], True, False, False, "do_lower_case is True in the tokenizer's settings"),
        (["a", "B"], False, True, True, "do_lower_case is False in the tokenizer's settings"),
        (["a"], None, False, False, "no capital letter, but text is not lower-cased"),
        (["a"], False, None, False, "no capital letter, but text is not lower-cased"),
    ],
)
def test_who_decides_about_lower_case(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    words: list[str],
    stored: bool | None,
    flag: bool | None,
    expected: bool,
    warning: str,
) -> None:
    caplog.set_level(logging.WARNING)
    tokenizer = BertTokenizer.from_pretrained(directory(tmp_path / "m", words, stored), flag)
    assert tokenizer.do_lower_case is expected
    assert tokenizer.tokenize("A") == (["a"] if expected else ["[UNK]"])
    assert warning in caplog.text
    assert bool(caplog.text) == bool(warning)


def test_inferred_case_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    BertTokenizer.from_pretrained(directory(tmp_path / "m", ["a"], None))
    assert "no capital letter: text is lower-cased" in caplog.text


# --- writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lowercase", [True, False])
def test_saved_directory_opens_here_and_in_hugging_face(
    tmp_path: Path, rich_vocab: Path, lowercase: bool
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").write_text('{"model": "what another model left"}')
    BertTokenizer(rich_vocab, lowercase, model_max_length=77).save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == rich_vocab.read_bytes()
    again = BertTokenizer.from_pretrained(tmp_path / "out")
    assert again.do_lower_case is lowercase
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.model_max_length == 77
    for text in NASTY:
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert again.encode(text) == expected, ascii(text)
    assert theirs.mask_token_id == again.mask_id and theirs.pad_token_id == again.pad_id


@pytest.mark.parametrize("strip_accents", [None, True, False])
@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_tokenizer_json_gives_the_same_ids(
    strip_accents: bool | None, chinese: bool, lowercase: bool, rich_vocab: Path, tmp_path: Path
) -> None:
    ours = BertTokenizer(
        rich_vocab, lowercase, strip_accents=strip_accents, tokenize_chinese_chars=chinese
    )
    theirs = compiled(ours, tmp_path)
    for text in NASTY:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == expected, ascii(text)
    pair = theirs.encode("the hello", "runn")
    assert pair.tokens == ["[CLS]", "the", "hello", "[SEP]", "runn", "[SEP]"]
    assert pair.type_ids == [0, 0, 0, 0, 1, 1]
    assert theirs.encode("the").tokens == ["[CLS]", "the", "[SEP]"]


@pytest.mark.parametrize("task", ["CoLA", "SST-2", "STS-B", "RTE", "MNLI"])
def test_tokenizer_json_gives_the_same_ids_for_rows_of_glue(task: str, tmp_path: Path) -> None:
    vocab_file = DATA / "models" / "bert-6l-384-mlm" / "vocab.txt"
    file = next(iter(sorted((DATA / "glue" / task).glob("dev*.tsv"))), None)
    if file is None or not vocab_file.exists():
        pytest.skip("needs the GLUE data beside the checkout")
    lines = file.read_text(encoding="utf-8").split("\n")[:400]
    ours = BertTokenizer(vocab_file)
    theirs = compiled(ours, tmp_path).encode_batch(lines, add_special_tokens=False)
    assert [encoding.ids for encoding in theirs] == ours.encode_batch(lines)


def test_words_that_are_never_split(rich_vocab: Path, tmp_path: Path) -> None:
    """Worked by hand from the first release's rules: blanks first, then `never_split`."""
    plain = BertTokenizer(rich_vocab)
    words = ["[MASK]", "[SEP]", "Hello", "stan-bul"]
    tokenizer = BertTokenizer(rich_vocab, True, None, True, words)
    assert tokenizer.tokenize("HELLO [MASK] Hello, (Hello the\u4f60Hello Hello") == [
        *("hello", "[MASK]", "hello", ",", "(", "hello", "the", "\u4f60", "Hello", "Hello")
    ]
    assert tokenizer.tokenize("stan-bul") == ["s", "##t", "##a", "##n", "##-", "##b", "##u", "##l"]
    for text in NASTY:
        assert tokenizer.encode(text) == plain.encode(text.replace("Hello", "hello")), ascii(text)
    tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()  # which could not say it
    again = BertTokenizer.from_pretrained(tmp_path)
    assert again.tokenize("[MASK] HELLO") == ["[MASK]", "hello"]
    assert pickle.loads(pickle.dumps(again)).tokenize("x [MASK]!") == plain.tokenize("x [MASK]!")


def test_arguments_of_the_first_release(rich_vocab: Path) -> None:
    tokenizer = BertTokenizer(rich_vocab, do_lower_case=True, max_len=64, do_basic_tokenize=False)
    assert tokenizer.tokenize("Hello the\tTHE, hello") == [
        *("Hello", "the", "T", "##H", "##E", "##,", "hello")
    ]
    theirs = WordpieceTokenizer(tokenizer.vocab)
    for text in NASTY:
        assert tokenizer.tokenize(text) == theirs.tokenize(text), ascii(text)
    assert BasicTokenizer(True, ["[SEP]"]).tokenize("A[SEP] [SEP]") == [
        *("a", "[", "sep", "]", "[SEP]")
    ]


def test_settings_survive_saving(tmp_path: Path, rich_vocab: Path) -> None:
    source = BertTokenizer(rich_vocab, True, strip_accents=False, tokenize_chinese_chars=False)
    source.save_pretrained(tmp_path)
    again = BertTokenizer.from_pretrained(tmp_path)
    assert again.tokenize("\u00c9") == ["\u00e9"] == source.tokenize("\u00c9")
    assert again.tokenize("\u4f60\u597d") == ["\u4f60\u597d"]
