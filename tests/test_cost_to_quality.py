"""The clock and the arithmetic of benchmarks/cost_to_quality.py, on made-up runs.

bash tests/run.sh tests/test_cost_to_quality.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cost_to_quality as bench
from transformer.configuration import BertConfig
from transformer.costs import sentence_flops
from transformer.files import UserError

STUDENT = BertConfig(hidden_size=24, num_hidden_layers=2, intermediate_size=48, vocab_size=99)
TEACHER = BertConfig(hidden_size=36, num_hidden_layers=4, intermediate_size=96, vocab_size=99)


def report(step: int, seconds: float = 2.0) -> dict[str, float]:
    """Return a line of metrics.jsonl: 8 sequences of 5 tokens a second."""
    rates = {"sequences_per_second": 8.0, "tokens_per_second": 40.0}
    return {"step": step, "loss": 1.0, "seconds": seconds, **rates}


@pytest.fixture
def timeline() -> bench.Timeline:
    """Make a process of 30 s with three evaluations: of 4 s, 3 s and 2 s."""
    lines = [
        (9.0, {"step": 0, "eval_acc": 0.5}),
        (12.0, report(10)),
        (15.0, {"step": 10, "eval_acc": 0.7}),
        (20.0, report(20)),
        (22.0, {"step": 20, "eval_acc": 0.8}),
    ]
    return bench.Timeline(seconds=30.0, opened=5.0, lines=lines)


def test_evaluations_are_not_on_the_clock(timeline: bench.Timeline) -> None:
    found = [(seconds, line["step"]) for seconds, line in timeline.on_the_clock()]
    assert found == [(5.0, 0), (8.0, 10), (8.0, 10), (13.0, 20), (13.0, 20)]
    assert timeline.cost == 30 - 4 - 3 - 2
    assert bench.Timeline(seconds=7.0).cost == 7.0


def test_stages_add_up(timeline: bench.Timeline) -> None:
    way = bench.Way()
    way.add("corpus", bench.Timeline(seconds=7.0))
    learns = bench.training_flops(STUDENT, TEACHER)
    way.add("predictions", timeline, drawn="eval_acc", flops_before=11.0, flops_of=learns)
    a_report = 16 * (3 * sentence_flops(STUDENT, 5) + sentence_flops(TEACHER, 5))
    assert way.points == [
        {"step": 0, "seconds": 12.0, "flops": 11.0, "value": 0.5},
        {"step": 10, "seconds": 15.0, "flops": 11.0 + a_report, "value": 0.7},
        {"step": 20, "seconds": 20.0, "flops": 11.0 + 2 * a_report, "value": 0.8},
    ]
    assert (way.seconds, way.flops) == (7 + 21, 11.0 + 2 * a_report)
    assert [stage["seconds"] for stage in way.stages] == [7.0, 21.0]
    assert bench.mean_length(timeline) == 5.0


def test_the_summary_compares_costs(timeline: bench.Timeline) -> None:
    chain, short = bench.Way(), bench.Way()
    chain.add("general", bench.Timeline(seconds=100.0))
    for way in (chain, short):
        way.add("predictions", timeline, drawn="eval_acc")
    chain.points = chain.points[:2]  # ends at 0.7
    summary = bench.summarise(chain, short, 0.81)
    assert summary["best"][bench.CHAIN]["value"] == 0.7
    assert summary["best"][bench.CHAIN]["whole_seconds"] == 121.0
    assert summary["as_good_as_the_chain"]["seconds"] == 8.0
    reached = summary["98% of the teacher"]
    assert (reached[bench.CHAIN], reached[bench.SHORT]["step"]) == (None, 20)


def test_the_arithmetic_of_computing_a_student() -> None:
    """Each product counted once more, by its shape."""
    tokens, (d, own_inner), (wide, depth) = 1000, (24, 48), (36, 4)
    rows = [(wide, 0)] * 3  # states of the embeddings and two layers
    rows += [(d, wide)] * 3  # what is explained of each
    for _ in range(2):
        rows += [(d, wide), (d, d), (own_inner, d)]  # reading back, both outputs
    rows += [(d, wide)] * depth  # the middles that neurons read
    expected = sum(2 * tokens * (n * n + n * p) for n, p in rows)
    expected += 100 * (2 * sentence_flops(TEACHER, 10) + sentence_flops(STUDENT, 10))
    assert bench.closed_form_flops(STUDENT, TEACHER, tokens, 10) == pytest.approx(expected)


def test_a_process_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "writes.py"
    script.write_text(
        "import json, sys\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    for step in range(3):\n"
        "        file.write(json.dumps({'step': step}) + '\\n')\n"
        "sys.exit(int(sys.argv[2]))\n"
    )
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    output = tmp_path / "out"
    output.mkdir()
    metrics = output / "metrics.jsonl"
    timeline = bench.run("a stage", "writes.py", [metrics, 0], output)
    assert [line for _, line in timeline.lines] == [{"step": step} for step in range(3)]
    assert 0 < timeline.opened <= timeline.lines[0][0] <= timeline.seconds
    with pytest.raises(UserError, match=r"exit code 3; see .*a_stage.log"):
        bench.run("a stage", "writes.py", [metrics, 3], output)


def arguments(tmp_path: Path, **changes: object) -> list[str]:
    """Return a command line that is right but for the changes."""
    for name in ("train.tsv", "corpus.txt"):
        (tmp_path / name).write_text("a line\n")
    given = {"corpus": tmp_path / "corpus.txt", "data_dir": tmp_path, "task_name": "SST-2"}
    given |= dict.fromkeys(("bert_model", "teacher_model", "student_config"), tmp_path)
    given |= {"output_dir": tmp_path / "new", **changes}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task_name": "SST-3"}, "--task_name SST-3: give one of"),
        ({"rows": 0}, "--rows 0: give 1 or more"),
        ({"corpus": "nowhere.txt"}, "nowhere.txt: no such file"),
        ({"output_dir": "."}, "is not an empty directory"),
    ],
)
def test_mistakes_are_found_first(tmp_path: Path, changes: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        bench.check_args(bench.build_parser().parse_args(arguments(tmp_path, **changes)))
    assert bench.check_args(bench.build_parser().parse_args(arguments(tmp_path))).name == "SST-2"


def test_the_picture_is_drawn(tmp_path: Path, timeline: bench.Timeline) -> None:
    way = bench.Way()
    way.add("predictions", timeline, drawn="eval_acc")
    curve = {"points": way.points}
    results = {
        "metric": "acc",
        "loss": {bench.RANDOM: curve, bench.SHORT: curve},
        "score": {bench.CHAIN: curve, bench.SHORT: curve},
        "summary": bench.summarise(way, way, 0.9),
    }
    json.dumps(results)
    bench.draw(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
