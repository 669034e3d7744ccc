"""Shared fixtures: a tiny vocabulary, model configuration, checkpoint factory and corpus."""

from __future__ import annotations

import random
import signal
import string
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import torch
from torch import nn

torch.set_num_threads(1)

# What a shell starts in the background may ignore Ctrl-C, and its children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
COMMON_WORDS = """
the a of and to in is was it for on with as at by this that from or an be are not his her they
film movie story actor good bad great dull plot music people city river war king year time
world house water school book game team played made found called small large old new long
first last many never always man woman child green
""".strip().split()
SUFFIXES = ["##s", "##ed", "##ing", "##er", "##ly", "##est"]


def tiny_vocabulary() -> list[str]:
    """List the entries of the vocabulary that the tests share; it spells any ASCII text."""
    letters = list(string.ascii_lowercase)
    characters = letters + list(string.digits)
    whole_words = [word for word in dict.fromkeys(COMMON_WORDS) if len(word) > 1]
    suffixes = [suffix for suffix in SUFFIXES if len(suffix) > 3]
    continuations = [f"##{character}" for character in characters]
    return (
        SPECIAL_TOKENS + characters + continuations + list(".,;:!?'\"-()") + whole_words + suffixes
    )


def write_vocabulary(directory: Path) -> Path:
    """Write the tiny vocabulary to `vocab.txt` in a new directory."""
    directory.mkdir()
    path = directory / "vocab.txt"
    path.write_text("\n".join(tiny_vocabulary()) + "\n", encoding="utf-8", newline="\n")
    return path


def make_tiny_config():
    """Configure a BERT whose sizes differ pairwise, so that a swapped axis cannot pass."""
    from transformer.configuration import BertConfig

    return BertConfig(
        vocab_size=len(tiny_vocabulary()),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=64,
        # The published 0.02 is meant for width 768; at width 32 it would make all outputs alike.
        initializer_range=0.15,
    )


def checkpoint_maker(place: Path, vocab_file: Path, config) -> Callable[..., Path]:
    """Return `make(name, model_class, **config_changes)`: a random tiny checkpoint in `place`.

    The weights depend on `name` only, so two directories of one name and class hold equal models.
    """
    from transformer.checkpoint.directory import save_checkpoint
    from transformer.tokenization import BertTokenizer

    def make(name: str, model_class: type[nn.Module], **config_changes: object) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(name.encode()))
            model = model_class(replace(config, **config_changes))
        output_dir = place / name
        tokenizer = BertTokenizer(str(vocab_file), do_lower_case=True)
        save_checkpoint(model, tokenizer, output_dir)
        return output_dir

    return make


def write_toy_models(root: Path) -> None:
    """Write random models for runs of seconds: `bert`, and `general`, from which students begin."""
    from transformer.checkpoint.directory import save_checkpoint
    from transformer.modeling import TinyBertForPreTraining
    from transformer.tokenization import BertTokenizer

    tokenizer = BertTokenizer(str(write_vocabulary(root / "vocabulary")), do_lower_case=True)
    torch.manual_seed(0)
    for name, layers, width in (("bert", 4, 32), ("general", 2, 24)):
        config = replace(make_tiny_config(), num_hidden_layers=layers, hidden_size=width)
        save_checkpoint(TinyBertForPreTraining(config), tokenizer, root / name)


def write_corpus(path: Path) -> Path:
    """Write a corpus of 12 documents of 4 to 9 sentences, one sentence a line."""
    rng = random.Random(20)
    documents = []
    for _ in range(12):
        lengths = [rng.randint(4, 14) for _ in range(rng.randint(4, 9))]
        sentences = [" ".join(rng.choices(COMMON_WORDS, k=length)) + " ." for length in lengths]
        documents.append("\n".join(sentences))
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8", newline="\n")
    return path


@pytest.fixture(scope="session", autouse=True)
def no_curves() -> Iterator[None]:
    """Let trainings write a stand-in for training_curves.png: drawing takes longer than they do.

    Runs in processes of their own draw it, and so do the tests of the drawing itself.
    """
    from transformer.training import loop

    def stand_in(metrics_path: Path, image_path: Path, **marks: object) -> bool:
        signature(save_curves).bind(metrics_path, image_path, **marks)
        image_path.write_bytes(b"\x89PNG")
        return True

    save_curves = loop.save_curves
    loop.save_curves = stand_in
    yield
    loop.save_curves = save_curves


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    """Write the tiny vocabulary to `vocab.txt` in a directory of its own."""
    return write_vocabulary(tmp_path / "vocabulary")


@pytest.fixture
def tiny_config():
    """Configure a tiny BERT."""
    return make_tiny_config()


@pytest.fixture
def make_checkpoint(tmp_path: Path, vocab_file: Path, tiny_config) -> Callable[..., Path]:
    """Return `make(name, model_class, **config_changes)`; see `checkpoint_maker`."""
    return checkpoint_maker(tmp_path, vocab_file, tiny_config)


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    """Write a small corpus."""
    return write_corpus(tmp_path / "corpus.txt")


@pytest.fixture
def setting(tmp_path, make_checkpoint, corpus_file) -> dict[str, Path]:
    """Make everything that the four scripts read; see script_runs.py."""
    from script_runs import make_setting

    return make_setting(tmp_path, make_checkpoint, corpus_file)


@pytest.fixture
def run(monkeypatch, capfd) -> Iterator[Callable[..., object]]:
    """Return `run(script, *arguments)`, which runs a script as its own main program."""
    from script_runs import runner

    yield from runner(monkeypatch, capfd)
