"""Reading corpora: files, formats, blocks, damage; tokens and where they are kept."""

import gzip
import io
import json
from collections import Counter

import numpy as np
import pytest

from transformer.corpus import blocks as corpus_module
from transformer.corpus import token_store as token_store_module
from transformer.corpus.blocks import Corpus, find_corpus_files
from transformer.corpus.token_store import StoreState, TokenStore, TokenStoreWriter
from transformer.corpus.tokens import BlockTokenizer, TokenBlock
from transformer.files import UserError
from transformer.tokenization import BertTokenizer

LONG = 1000


@pytest.fixture
def tokenizer(vocab_file):
    return BertTokenizer(str(vocab_file), do_lower_case=True)


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="corpus.txt"):
        path = tmp_path / name
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write_file


def make_store(directory, files, tokenizer, pieces=(LONG,), **options):
    """Tokenise files into a store and return it with its state."""
    tokenize = BlockTokenizer(tokenizer, pieces, **options)
    writer = TokenStoreWriter(directory, np.uint16, StoreState())
    for block in Corpus(tuple(files)).blocks():
        writer.append(tokenize(block))
    writer.finish()
    writer.close()
    return TokenStore.from_state(directory, np.uint16, writer.state), writer.state


def documents_of(store, tokenizer):
    """Return the documents of a store as lists of sentences as text."""
    marks = store.sentence_marks(0, store.sentences + 1).tolist()
    documents = []
    for mark, following in zip(marks, marks[1:], strict=False):
        ids = store.ids(mark >> 1, (following >> 1) - (mark >> 1)).tolist()
        if mark & 1:
            documents.append([])
        documents[-1].append(" ".join(tokenizer.convert_ids_to_tokens(ids)))
    return documents


def read(tmp_path, tokenizer, files, **options):
    store, state = make_store(tmp_path / "store", files, tokenizer, **options)
    return documents_of(store, tokenizer), state


# Which files


def test_files_globs_and_what_is_not_there(tmp_path, write):
    first, second = write("a", "a.txt"), write("b", "b.txt")
    (tmp_path / "deep").mkdir()
    third = write("c", "deep/c.txt")
    assert find_corpus_files([second, first]) == [second, first]
    assert find_corpus_files([str(tmp_path / "*.txt")]) == [first, second]
    assert find_corpus_files([str(tmp_path / "**" / "*.txt")]) == [first, second, third]
    with pytest.raises(UserError, match=r"none\*: no such file"):
        find_corpus_files([str(tmp_path / "none*")])
    with pytest.raises(UserError, match="is a directory"):
        find_corpus_files([str(tmp_path)])
    with pytest.raises(UserError, match="only once"):
        find_corpus_files(["-", "-"])


# Blocks


@pytest.mark.parametrize("block_bytes", [7, 64, 1 << 20])
def test_blocks_hold_every_byte_and_know_their_lines(monkeypatch, write, block_bytes):
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", block_bytes)
    text = "".join(f"the year {number} was good\n" for number in range(40)) + "no end of line"
    blocks = list(Corpus((write(text),)).blocks())
    assert b"".join(block.data for block in blocks).decode() == text
    assert [block.begins_file for block in blocks] == [True] + [False] * (len(blocks) - 1)
    place = 0
    for block in blocks:
        assert block.line == text[:place].count("\n") + 1
        assert block.continues_line == (place > 0 and text[place - 1] != "\n")
        place += len(block.data)


@pytest.mark.parametrize("text", ["word " * 900, "数学" * 900])
def test_a_long_line_is_cut_at_blanks_or_at_characters(monkeypatch, write, text):
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", 100)
    blocks = list(Corpus((write(text),)).blocks())
    assert len(blocks) > 10
    assert "".join(block.data.decode() for block in blocks) == text
    if " " in text:
        assert all(block.data.endswith(b" ") for block in blocks)


def test_block_size_does_not_change_the_tokens(monkeypatch, tmp_path, corpus_file, tokenizer):
    stores = []
    for block_bytes in (100, 333, 1 << 20):
        monkeypatch.setattr(corpus_module, "BLOCK_BYTES", block_bytes)
        directory = tmp_path / str(block_bytes)
        store, _ = make_store(directory, [str(corpus_file)], tokenizer)
        stores.append(documents_of(store, tokenizer))
    assert stores[0] == stores[1] == stores[2]
    text = corpus_file.read_text(encoding="utf-8")
    assert stores[0] == [document.strip().split("\n") for document in text.split("\n\n")]


# Formats


def test_gzip_stdin_and_windows_line_ends_read_the_same(tmp_path, write, tokenizer, monkeypatch):
    text = "a good film .\nthe war\n\n \t\u3000\nking of the river\n"
    expected = [["a good film .", "the war"], ["king of the river"]]
    files = {
        "plain": write(text),
        "bom": write(b"\xef\xbb\xbf" + text.encode(), "bom.txt"),
        "windows": write(text.replace("\n", "\r\n"), "windows.txt"),
        "gz": write(text, "corpus.txt.gz"),
        "-": "-",
    }
    for name, path in files.items():
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert read(tmp_path / name, tokenizer, [path])[0] == expected, name


def test_the_end_of_a_file_ends_a_document(tmp_path, write, tokenizer):
    files = [write("the film", "a.txt"), write("the king\n", "b.txt"), write("a war\n", "c.txt")]
    assert read(tmp_path, tokenizer, files)[0] == [["the film"], ["the king"], ["a war"]]


def test_wikiextractor_json_lines(tmp_path, write, tokenizer):
    articles = [
        {"id": "1", "title": "River", "text": "River\n\nThe river is long. It is old.\nA city"},
        {"id": "2", "title": "None", "text": ""},
        {"id": "3", "title": "King", "text": "The king\u2028lived ."},
    ]
    path = write("".join(json.dumps(article) + "\n" for article in articles), "wiki_00")
    documents, state = read(tmp_path, tokenizer, [path], split_paragraphs=True)
    assert documents[0] == ["river", "the river is long .", "it is old .", "a city"]
    assert len(documents) == state.documents == 2
    survey = Corpus((path,)).survey("strict")
    assert survey.has_two_documents

    damaged = write(json.dumps(articles[0]) + "\n\n{broken\n", "wiki_01")
    with pytest.raises(UserError, match="wiki_01, line 3: no JSON object"):
        read(tmp_path / "again", tokenizer, [damaged])
    documents, state = read(tmp_path / "skip", tokenizer, [damaged], errors="skip")
    assert len(documents) == 1
    assert state.counts["lines dropped"] == 1


def test_an_endless_json_line_is_refused(monkeypatch, write):
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", 100)
    monkeypatch.setattr(corpus_module, "LONGEST_JSON_LINE", 1000)
    path = write(json.dumps({"text": "a" * 5000}), "wiki_00")
    with pytest.raises(UserError, match="wiki_00, line 1: a JSON line of over"):
        list(Corpus((path,)).blocks())


def test_a_cut_gzip_file_is_named(tmp_path, write):
    content = gzip.compress(b"the king\n" * 1000)
    path = tmp_path / "cut.gz"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.gz: damaged or cut-off gzip"):
        Corpus((str(path),)).survey("strict")
    path.write_bytes(b"this is not gzip")
    with pytest.raises(UserError, match=r"cut\.gz: damaged"):
        Corpus((str(path),)).survey("strict")


# Damage


@pytest.mark.parametrize("block_bytes", [20, 1 << 20])
def test_bytes_that_are_not_utf8(monkeypatch, tmp_path, write, tokenizer, block_bytes):
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", block_bytes)
    path = write(b"the film\n\nthe king\nthe ci\xe9ty\nthe war\n")
    with pytest.raises(UserError, match=r"corpus\.txt, line 4: not UTF-8.*--errors replace"):
        Corpus((path,)).survey("strict")
    with pytest.raises(UserError, match=r"corpus\.txt, line 4: not UTF-8"):
        read(tmp_path / "strict", tokenizer, [path])
    Corpus((path,)).survey("replace")
    documents, state = read(tmp_path / "replace", tokenizer, [path], errors="replace")
    assert documents == [["the film"], ["the king", "the city", "the war"]]
    assert state.counts == {"lines not UTF-8": 1}
    documents, state = read(tmp_path / "skip", tokenizer, [path], errors="skip")
    assert documents == [["the film"], ["the king", "the war"]]
    assert state.counts["lines not UTF-8"] == 1


def test_utf16_is_recognised(write):
    with pytest.raises(UserError, match="line 1: .*UTF-16"):
        Corpus((write("the film\n".encode("utf-16")),)).survey("strict")


def test_nul_and_control_characters(tmp_path, write, tokenizer):
    path = write("the\0film\n\0\n\x01\x02\nthe king\n\n\0\n\nthe war\n")
    documents, state = read(tmp_path, tokenizer, [path])
    # They are no text, and a line of nothing else is no blank line.
    assert documents == [["thefilm".replace("thefilm", documents[0][0]), "the king"], ["the war"]]
    assert documents[0][0].replace(" ##", "") == "thefilm"
    assert state.counts == {"NUL characters": 3}


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("\n\n \n", 0), ("a\nb\n", 1), ("\n\na\n\n\n", 1), ("a\n\nb", 2), ("a\n \t\r\nb", 2)],
)
@pytest.mark.parametrize("block_bytes", [1, 3, 1 << 20])
def test_documents_are_counted_before_they_are_read(monkeypatch, write, text, count, block_bytes):
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", block_bytes)
    survey = Corpus((write(text),)).survey("strict")
    assert (survey.has_text, survey.has_two_documents) == (count > 0, count > 1)


def test_the_fingerprint_follows_the_content(write):
    survey = Corpus((write("the film\n\nthe king\n"),)).survey("strict")
    same = Corpus((write("the film\n\n", "1"), write("the king\n", "2"))).survey("strict")
    other = Corpus((write("the film\n\nthe ring\n"),)).survey("strict")
    assert survey.fingerprint != other.fingerprint
    assert survey.size == same.size == 19


# Long lines and long documents


@pytest.mark.parametrize("length", [10, 11, 25, 300])
def test_long_lines_are_cut_into_pieces_without_a_rest(tmp_path, write, tokenizer, length):
    words = [f"{number % 10}" for number in range(length)]
    path = write(" ".join(words) + "\nthe war\n")
    store, state = make_store(tmp_path / "store", [path], tokenizer, pieces=(6, 4))
    sentences = documents_of(store, tokenizer)[0]
    assert " ".join(sentences[:-1]).split() == words
    assert state.counts == ({"lines split": 1} if length > 10 else {})
    if length > 10:
        lengths = [len(sentence.split()) for sentence in sentences[:-1]]
        assert lengths[:-1] == [(6, 4)[number % 2] for number in range(len(lengths) - 1)]


def test_an_enormous_document_is_treated_as_several(monkeypatch, tmp_path, write, tokenizer):
    monkeypatch.setattr(token_store_module, "LONGEST_DOCUMENT", 50)
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", 64)
    path = write("the king\n" + "a good old war\n" * 100 + "\nthe film\n")
    documents, state = read(tmp_path, tokenizer, [path])
    lengths = [sum(len(sentence.split()) for sentence in document) for document in documents]
    assert sum(lengths) == 2 + 400 + 2
    assert max(lengths) <= 50
    assert min(lengths[:-2]) > 46
    assert state.documents == 2  # as the user counts them
    assert state.counts["documents cut"] == len(documents) - 2


# The store


def token_block(*documents, break_after=True):
    """Make a block of documents given as lists of sentence lengths."""
    lengths = [length for document in documents for length in document]
    begins = [number == 0 for document in documents for number in range(len(document))]
    ids = np.arange(sum(lengths), dtype=np.uint16)
    return TokenBlock(ids, np.array(lengths), np.array(begins), break_after, Counter(lines=1))


def test_store_goes_on_behind_its_last_state(tmp_path):
    blocks = [token_block([3, 2], [4]), token_block([1, 1, 1], break_after=False)]
    blocks += [token_block([5]), token_block([2, 2])]
    whole = TokenStoreWriter(tmp_path / "whole", np.uint16, StoreState())
    for block in blocks:
        whole.append(block)
    final = whole.finish()
    whole.close()

    for kept in range(len(blocks)):
        first = TokenStoreWriter(tmp_path / "cut", np.uint16, StoreState())
        for block in blocks[:kept]:
            first.append(block)
        state = json.loads(json.dumps(first.flush()))
        first.append(blocks[kept])  # written, but not in the state
        first.close()
        second = TokenStoreWriter(tmp_path / "cut", np.uint16, StoreState(**state))
        for block in blocks[kept:]:
            second.append(block)
        assert second.finish() == final
        second.close()
        for name in ("ids.bin", "sentences.bin"):
            assert (tmp_path / "cut" / name).read_bytes() == (
                tmp_path / "whole" / name
            ).read_bytes()


def test_parts_begin_at_documents_and_have_about_their_size(tmp_path):
    writer = TokenStoreWriter(tmp_path, np.uint16, StoreState(), part_tokens=20)
    for _ in range(30):
        writer.append(token_block([3, 4], [2]))
    writer.finish()
    writer.close()
    store = TokenStore.from_state(tmp_path, np.uint16, writer.state)
    assert store.part_starts[0] == 0
    assert store.part_starts[-1] == store.sentences == 90
    marks = store.sentence_marks(0, 91)
    for begin, end in zip(store.part_starts, store.part_starts[1:], strict=False):
        assert marks[begin] & 1
        tokens = (marks[end] >> 1) - (marks[begin] >> 1)
        assert 20 <= tokens < 20 + 7 or end == 90
