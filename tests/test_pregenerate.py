"""pregenerate_training_data.py as a user runs it."""

import errno
import gzip
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import pregenerate_training_data as script
from transformer.corpus import blocks as corpus_module
from transformer.corpus import run as pregeneration
from transformer.files import UserError
from transformer.tokenization import BertTokenizer

ROOT = Path(__file__).resolve().parents[1]
KEYS = ["tokens", "segment_ids", "is_random_next", "masked_lm_positions", "masked_lm_labels"]


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """Let a small corpus have several blocks and parts, and save at every occasion."""
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", 700)
    monkeypatch.setattr(script, "PART_TOKENS", 120)
    monkeypatch.setattr(pregeneration, "SECONDS_BETWEEN_SAVES", 0.0)


@pytest.fixture
def run(tmp_path, corpus_file, vocab_file):
    """Return `run(name, *flags)`, which pregenerates into a directory and returns it."""

    def call(name, *flags, corpus=None):
        output_dir = tmp_path / name
        script.main(
            ["--train_corpus", str(corpus or corpus_file), "--bert_model", str(vocab_file.parent)]
            + ["--output_dir", str(output_dir), "--max_seq_len", "32"]
            + [str(flag) for flag in flags]
        )
        return output_dir

    return call


def published(output_dir):
    """Return names and bytes of all epoch files."""
    return {path.name: path.read_bytes() for path in sorted(output_dir.glob("epoch_*"))}


def examples_of(output_dir, epoch=0):
    text = (output_dir / f"epoch_{epoch}.json").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# What is written


def test_published_format(run, vocab_file):
    output_dir = run("out", "--masked_lm_prob", 0.15, "--max_predictions_per_seq", 4)
    names = [f"epoch_{epoch}{end}" for epoch in range(3) for end in (".json", "_metrics.json")]
    assert sorted(published(output_dir)) == sorted(names)
    vocab = BertTokenizer(str(vocab_file)).vocab
    for epoch in range(3):
        examples = examples_of(output_dir, epoch)
        metrics = json.loads((output_dir / f"epoch_{epoch}_metrics.json").read_text())
        assert metrics == {"num_training_examples": len(examples), "max_seq_len": 32}
        for example in examples:
            assert list(example) == KEYS
            assert set(example["tokens"]) <= set(vocab)
            assert len(example["tokens"]) == len(example["segment_ids"]) <= 32
            first_end = example["tokens"].index("[SEP]") + 1
            expected = [0] * first_end + [1] * (len(example["tokens"]) - first_end)
            assert example["segment_ids"] == expected
    assert len(set(map(str, published(output_dir).values()))) > 3  # epochs differ
    args = json.loads((output_dir / "args.json").read_text(encoding="utf-8"))
    assert args["max_predictions_per_seq"] == 4
    left = {path.name for path in output_dir.iterdir()} - set(names)
    assert left <= {"args.json", "pregenerate_state.json", ".lock"}


def test_all_masks_restore_the_corpus(run, corpus_file):
    output_dir = run("out", "--masked_lm_prob", 0.2, "--one_seq", "--epochs_to_generate", 1)
    words = []
    for example in examples_of(output_dir):
        tokens = example["tokens"]
        assert example["masked_lm_positions"]
        for position, label in zip(
            example["masked_lm_positions"], example["masked_lm_labels"], strict=True
        ):
            tokens[position] = label
        assert tokens[0] == "[CLS]"
        assert tokens[-1] == "[SEP]"
        assert set(example["segment_ids"]) == {0}
        words += tokens[1:-1]
    assert " ".join(words).replace(" ##", "") == " ".join(
        corpus_file.read_text(encoding="utf-8").split()
    )


def test_nothing_is_masked_by_default(run):
    text = b"".join(published(run("out")).values())
    assert b"[MASK]" not in text
    assert text.count(b'"masked_lm_positions":[],"masked_lm_labels":[]') == text.count(b"tokens")


def test_long_lines_are_used_to_the_end(run, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", 1 << 20)
    corpus = tmp_path / "paragraphs.txt"
    letters = "abcdefghijklmnopqrstuvwxyz"
    paragraph = " ".join(f"{a} {b}" for a in letters for b in letters)
    corpus.write_text(f"{paragraph}\n\nthe king\n\na war\n", encoding="utf-8")
    caplog.set_level("INFO")
    output_dir = run("out", "--short_seq_prob", 0, "--epochs_to_generate", 1, corpus=corpus)
    found = Counter()
    for example in examples_of(output_dir):
        words = " ".join(example["tokens"]).replace("[SEP]", "")
        found.update(zip(words.split(), words.split()[1:], strict=False))
    pairs = paragraph.split()
    missed = [pair for pair in zip(pairs, pairs[1:], strict=False) if pair not in found]
    assert len(missed) < len(pairs) / 13 + 1  # only where pieces meet
    assert "1 lines split" in caplog.text


def test_split_sentences(run, tmp_path):
    corpus = tmp_path / "paragraphs.txt"
    corpus.write_text("The king was old. The film was 3.5 long.\n\nA war! A year.\n", "utf-8")
    flags = ["--split_sentences", "--one_seq", "--short_seq_prob", 1, "--epochs_to_generate", 40]
    output_dir = run("out", *flags, corpus=corpus)
    ends = {
        " ".join(example["tokens"][-4:-1])
        for epoch in range(40)
        for example in examples_of(output_dir, epoch)
    }
    assert "was old ." in ends
    assert not any(end.endswith("3 .") for end in ends)


# The same bytes


@pytest.mark.parametrize(
    "flags", [["--masked_lm_prob", 0.15, "--do_whole_word_mask"], ["--one_seq"]], ids=str
)
def test_bytes_do_not_depend_on_workers(run, flags):
    alone = published(run("1", *flags))
    assert published(run("2", *flags, "--num_workers", 2, "--reduce_memory")) == alone
    assert published(run("3", *flags, "--num_workers", 3)) == alone
    assert published(run("other", *flags, "--seed", 43)) != alone


def test_bytes_do_not_depend_on_the_form_of_the_corpus(run, tmp_path, corpus_file):
    expected = published(run("plain"))
    halves = corpus_file.read_text(encoding="utf-8").split("\n\n")
    (tmp_path / "part_1.txt").write_text("\n\n".join(halves[:5]), encoding="utf-8")
    with gzip.open(tmp_path / "part_2.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n\n".join(halves[5:]))
    assert published(run("glob", corpus=tmp_path / "part_*")) == expected
    command = [sys.executable, str(ROOT / "pregenerate_training_data.py"), "--train_corpus", "-"]
    command += ["--bert_model", str(tmp_path / "vocabulary"), "--output_dir", "piped"]
    with corpus_file.open("rb") as stdin:
        subprocess.run([*command, "--max_seq_len", "32"], stdin=stdin, cwd=tmp_path, check=True)
    assert published(tmp_path / "piped") == expected


def kill_at(call_number, workers, run):
    """Run in a child process that kills itself at its n-th flush, rename or removal."""
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == call_number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    shutil.rmtree = counted(shutil.rmtree)
    run("killed", "--resume", "--num_workers", workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_step_and_resumed_gives_the_same_bytes(run, tmp_path, workers):
    expected = published(run("whole"))
    context = multiprocessing.get_context("fork")
    kills = 0
    for call_number in [*range(1, 24, 3), 2, 30, 6, 50, 9, 41, 1, 2, 3, 8]:
        child = context.Process(target=kill_at, args=(call_number, workers, run))
        child.start()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        # What has its name is whole, whenever one looks.
        for name, content in published(tmp_path / "killed").items():
            assert name.endswith(".partial") or content == expected[name]
    assert kills > 8
    assert published(run("killed", "--resume")) == expected


def test_killed_between_naming_a_file_and_saving_that(run, monkeypatch):
    expected = published(run("whole"))
    with monkeypatch.context() as patch:
        patch.setattr(pregeneration, "sync_directory", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run("out")
    output_dir = run("out", "--resume")
    assert published(output_dir) == expected


def test_a_pipe_is_read_again_from_its_beginning(run, corpus_file, monkeypatch):
    expected = published(run("whole"))

    def run_piped(*flags):
        with corpus_file.open(encoding="utf-8") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            return run("out", *flags, corpus="-")

    with monkeypatch.context() as patch:
        saves = iter([True, True, True])
        patch.setattr(script.PregenerationRun, "saving_is_due", lambda run: next(saves))
        with pytest.raises(StopIteration):
            run_piped()
    assert published(run_piped("--resume")) == expected


def interrupt(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        '{"content": {}, "sha256": ""}',
    ],
)
def test_damaged_state_is_told_in_one_line(run, content):
    output_dir = run("out")
    (output_dir / "pregenerate_state.json").write_text(content)
    with pytest.raises(UserError, match=r"pregenerate_state\.json: (not|holds no) .*begin anew"):
        run("out", "--resume")


def test_a_state_that_was_changed_is_told(run):
    state = run("out") / "pregenerate_state.json"
    run("out", "--resume")
    held = json.loads(state.read_text())
    held["content"]["state"]["parts"] += 1
    state.write_text(json.dumps(held))
    with pytest.raises(UserError, match="it was changed; begin anew"):
        run("out", "--resume")


def test_resume_makes_only_what_is_missing(run, tmp_path):
    expected = published(run("whole"))
    output_dir = run("more", "--epochs_to_generate", 1)
    (output_dir / "epoch_0.json").touch()
    before = (output_dir / "epoch_0.json").stat().st_mtime_ns
    assert published(run("more", "--resume", "--num_workers", 2)) == expected
    assert (output_dir / "epoch_0.json").stat().st_mtime_ns == before
    assert published(run("more", "--resume")) == expected


def test_tmp_dir_is_used_and_cleared(run, tmp_path, monkeypatch):
    seen = []
    open_partial = pregeneration.PregenerationRun.open_partial

    def spy(self):
        seen.extend(path.name for path in (tmp_path / "fast").rglob("*.bin"))
        return open_partial(self)

    monkeypatch.setattr(pregeneration.PregenerationRun, "open_partial", spy)
    expected = published(run("plain"))
    assert published(run("out", "--tmp_dir", tmp_path / "fast")) == expected
    assert {"ids.bin", "sentences.bin"} <= set(seen)
    assert not list((tmp_path / "fast").iterdir())


def test_results_are_copied_to_data_url(run, tmp_path):
    output_dir = run("out", "--data_url", tmp_path / "copy", "--epochs_to_generate", 1)
    copies = {path.name: path.read_bytes() for path in (tmp_path / "copy").rglob("epoch_*")}
    assert copies == published(output_dir)


# What is refused, before anything is made


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("the king\n", [], "holds 1 document; next-sentence pairs need at least 2.*blank line"),
        ("\n \n", [], "holds no text"),
        ("", ["--one_seq"], "holds no text"),
        (b"the king\n\nthe \xff war\n", [], r"corpus\.txt, line 3: not UTF-8"),
        ("a\n\nb\n", ["--max_seq_len", 4], "--max_seq_len 4: give a number from 5"),
        ("a\n\nb\n", ["--masked_lm_prob", 1.5], "--masked_lm_prob 1.5: give a number from 0"),
        ("a\n\nb\n", ["--num_workers", 0], "--num_workers 0"),
        ("a\n\nb\n", ["--epochs_to_generate", 0], "--epochs_to_generate 0"),
        ("a\n\nb\n", ["--bert_model", "/no/such/model"], "/no/such/model"),
    ],
)
def test_mistakes_are_named(run, tmp_path, content, flags, message):
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message):
        run("out", *flags, corpus=corpus)
    assert not list(tmp_path.glob("out/*"))


def test_one_document_is_enough_for_single_sequences(run, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the king\nthe war\n", encoding="utf-8")
    output_dir = run("out", "--one_seq", corpus=corpus)
    assert examples_of(output_dir)[0]["tokens"][0] == "[CLS]"


def test_too_little_space_is_found_first(run, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(UserError, match="needed, 0.00 GiB free; make room"):
        run("out")


def test_a_disk_that_fills_up_is_named(run, monkeypatch):
    expected = published(run("whole"))

    def fill(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(script, "bring_to_disk", fill)
        with pytest.raises(OSError, match="No space left on device: .*out.* --resume"):
            run("out")
    assert published(run("out", "--resume")) == expected


def test_the_estimate_of_space_is_near_the_truth(run, monkeypatch):
    estimates = []
    check_space = script.check_space

    def spy(state, epochs, sizes):
        estimates.append(sizes)
        check_space(state, epochs, sizes)

    monkeypatch.setattr(script, "check_space", spy)
    output_dir = run("out", "--epochs_to_generate", 1)
    size = (output_dir / "epoch_0.json").stat().st_size
    assert 0.6 * size < estimates[0][1] < 1.6 * size


def test_an_output_directory_with_files_is_refused(run):
    output_dir = run("out", "--epochs_to_generate", 2)
    with pytest.raises(UserError, match="--resume.*--overwrite_output_dir"):
        run("out")
    with pytest.raises(UserError, match="--seed was 42 and is now 43"):
        run("out", "--resume", "--seed", 43)
    run("out", "--overwrite_output_dir", "--epochs_to_generate", 1, "--seed", 43)
    assert sorted(published(output_dir)) == ["epoch_0.json", "epoch_0_metrics.json"]


def test_resume_refuses_another_corpus(run, tmp_path, corpus_file):
    run("out")
    corpus_file.write_text(corpus_file.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    with pytest.raises(UserError, match="train corpus was .* and is now"):
        run("out", "--resume")


def test_resume_refuses_other_settings_of_the_tokenizer(run, tmp_path, vocab_file):
    """The same vocabulary, with accents kept: other tokens."""
    run("out")
    settings = vocab_file.with_name("tokenizer_config.json")
    settings.write_text('{"do_lower_case": true, "strip_accents": false}')
    with pytest.raises(UserError, match="tokenizer was .* and is now"):
        run("out", "--resume")


def test_a_mistake_is_one_line_on_stderr(tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "pregenerate_training_data.py")]
        + ["--train_corpus", "none.txt", "--bert_model", "none", "--output_dir", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "pregenerate_training_data.py: error: --train_corpus none.txt: no such file, and no file "
        "matches it"
    ]
    assert result.stdout == ""
