"""The packed store, the computed order, and how a step's examples are dealt and padded."""

from __future__ import annotations

import pickle
import threading
import time

import numpy as np
import pytest
import torch

from transformer.files import UserError
from transformer.runtime.ranks import mix_seed
from transformer.training.batches import (
    BatchPlan,
    Permutation,
    collate,
    evaluation_batches,
    prefetch,
    rank_share,
)
from transformer.training.packed import PackedDataset, PackedWriter


@pytest.fixture
def dataset(tmp_path) -> PackedDataset:
    """Pack 203 examples of 2 to 40 tokens with labels and flags; example n begins with token n."""
    rng = np.random.default_rng(5)
    writer = PackedWriter(tmp_path / "store", 1000, labels=True, flags=True, meta={"key": "abc"})
    for number in range(203):
        length = int(rng.integers(2, 41))
        ids = np.concatenate([[number], rng.integers(5, 1000, length - 1)])
        writer.add(ids, int(rng.integers(1, length + 1)), label=number / 7, flag=number % 2)
    return writer.close()


# --- the store ---------------------------------------------------------------------------------


def test_store_gives_back_what_was_written(tmp_path):
    writer = PackedWriter(tmp_path / "store", 1 << 17, labels=True, meta={"key": "abc"})
    writer.add([70000, 5], 1, label=0.5)
    writer.add_packed(
        np.array([1, 2, 3, 4]), np.array([3, 1]), np.array([2, 1]), labels=np.array([1.5, -1.0])
    )
    store = writer.close()
    assert [row.tolist() for row in store.rows(np.arange(3))] == [[70000, 5], [1, 2, 3], [4]]
    assert store.lengths(np.array([2, 0])).tolist() == [1, 2]
    assert store.first_length.tolist() == [1, 2, 1]
    assert store.labels.tolist() == [0.5, 1.5, -1.0]
    assert store.flags is None
    assert (store.tokens, store.square_tokens, store.max_length) == (6, 4 + 9 + 1, 3)
    assert store.meta["key"] == "abc"


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "uint16"), (65537, "int32")])
def test_ids_are_as_narrow_as_the_vocabulary_allows(tmp_path, vocab_size, dtype):
    writer = PackedWriter(tmp_path / "store", vocab_size)
    writer.add([vocab_size - 1], 1)
    store = writer.close()
    assert store.ids.dtype == dtype
    assert store.rows(np.array([0]))[0].tolist() == [vocab_size - 1]


def test_store_appears_only_when_closed(tmp_path):
    writer = PackedWriter(tmp_path / "store", 100)
    writer.add([1], 1)
    with pytest.raises(UserError, match="no packed store"):
        PackedDataset.open(tmp_path / "store")
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_empty_store_can_be_opened(tmp_path):
    assert len(PackedWriter(tmp_path / "store", 100).close()) == 0


def test_damaged_store_is_refused(dataset):
    with open(dataset.path / "ids.bin", "ab") as file:
        file.write(b"xx")
    with pytest.raises(UserError, match="damaged"):
        PackedDataset.open(dataset.path)


def test_store_survives_pickling(dataset):
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.rows(np.array([7]))[0].tolist() == dataset.rows(np.array([7]))[0].tolist()


def test_reading_gives_memory_back(dataset, monkeypatch):
    monkeypatch.setattr("transformer.training.packed.ROWS_BETWEEN_RELEASES", 10)
    before = [row.tolist() for row in dataset.rows(np.arange(203))]
    assert dataset._rows_read == 0
    assert [row.tolist() for row in dataset.rows(np.arange(203))] == before


# --- batches -----------------------------------------------------------------------------------


def test_collate_pads_and_marks(tmp_path):
    writer = PackedWriter(tmp_path / "store", 100, labels=True)
    writer.add([11, 12, 13], 2, label=1)
    writer.add([21], 1, label=0)
    writer.add([31, 32], 0, label=2)
    batch = collate(writer.close(), np.array([2, 0]), pad_token_id=99, multiple=4)
    assert batch.input_ids.tolist() == [[31, 32, 99, 99], [11, 12, 13, 99]]
    assert batch.token_type_ids.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]
    assert batch.attention_mask.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert batch.labels.tolist() == [2, 1]
    assert batch.indices.tolist() == [2, 0]
    assert batch.input_ids.dtype == torch.long


def test_collate_pads_to_a_given_length(dataset):
    batch = collate(dataset, np.array([3]), pad_token_id=0, pad_to=50)
    assert batch.input_ids.shape == (1, 50)


# --- order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*range(1, 40), 63, 64, 65, 1000, 4096, 4097, 65537])
def test_permutation_reaches_every_element_once(size):
    found = Permutation(size, key=9)(np.arange(size))
    assert np.array_equal(np.sort(found), np.arange(size))


def test_permutation_of_a_part_is_part_of_the_permutation():
    permutation = Permutation(10**9, key=3)
    whole = permutation(np.arange(500, 700))
    assert np.array_equal(permutation(np.array([600, 510])), whole[[100, 10]])


def test_permutation_looks_random():
    """Count pairs of (position, element) in an 8 by 8 grid; chi-square, 49 degrees of freedom."""
    size = 64 * 500
    statistics = []
    for key in range(20):
        found = Permutation(size, mix_seed(key))(np.arange(size))
        grid, _, _ = np.histogram2d(np.arange(size), found, bins=8)
        statistics.append(((grid - 500) ** 2 / 500).sum())
    # The mean of 20 has a standard deviation of about 2.2 (a little less: rows have fixed sums).
    assert 38 < np.mean(statistics) < 60
    neighbours = np.abs(np.diff(Permutation(size, 1)(np.arange(size))))
    assert abs(neighbours.mean() / (size / 3) - 1) < 0.05


def test_mix_seed_depends_on_every_integer_and_their_order():
    seeds = {mix_seed(*key) for key in [(1, 2), (2, 1), (1, 3), (1,), (1, 2, 0), (0, 1, 2)]}
    assert len(seeds) == 6


def test_every_example_comes_once_an_epoch(dataset):
    plan = BatchPlan(dataset, 16, seed=1, window=64)
    assert len(plan) == 13
    sizes = []
    for epoch in (0, 1):
        batches = [plan.batch(epoch, step) for step in range(len(plan))]
        assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(203))
        sizes.append(sorted(len(batch) for batch in batches))
    assert sizes == [[11] + [16] * 12] * 2, "the last batch is kept, and no other is smaller"


def test_order_differs_between_epochs_and_seeds(dataset):
    orders = {
        tuple(np.concatenate([BatchPlan(dataset, 16, seed).batch(epoch, s) for s in range(13)]))
        for seed in (1, 2)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_batches_hold_similar_lengths(dataset):
    plan = BatchPlan(dataset, 8, seed=1)
    spreads = [np.ptp(dataset.lengths(plan.batch(0, step))) for step in range(len(plan))]
    assert np.mean(spreads) < 4, "unsorted batches of 8 spread over about 30 tokens"
    means = [dataset.lengths(plan.batch(0, step)).mean() for step in range(len(plan))]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.6, "not from short to long"


def test_held_out_examples_are_left_alone(dataset):
    plan = BatchPlan(dataset, 16, seed=1, examples=150)
    used = np.concatenate([plan.batch(0, step) for step in range(len(plan))])
    assert np.array_equal(np.sort(used), np.arange(150))


def test_plan_does_not_hold_the_order(tmp_path):
    writer = PackedWriter(tmp_path / "store", 100)
    count = 300_000
    writer.add_packed(np.ones(count), np.ones(count, int), np.ones(count))
    plan = BatchPlan(writer.close(), 32, seed=1)
    for step in range(0, len(plan), 97):
        plan.batch(0, step)
    held = plan._window_batches.cache_info().currsize * plan.window
    assert held <= 2 * plan.window < count / 10


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("examples", [1, 2, 7, 16])
def test_shares_of_ranks_are_the_batch(world_size, accumulation, examples):
    indices = np.arange(100, 100 + examples)
    shares = [
        rank_share(indices, rank=rank, world_size=world_size, accumulation=accumulation)
        for rank in range(world_size)
    ]
    assert all(1 <= len(share) <= accumulation for share in shares)
    everything = np.concatenate([piece for share in shares for piece in share])
    assert np.array_equal(np.sort(everything), indices)
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_each_example_once(dataset, world_size):
    batches = [
        batch
        for rank in range(world_size)
        for batch in evaluation_batches(dataset, 10, rank=rank, world_size=world_size, start=3)
    ]
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(3, 203))


# --- prefetch ----------------------------------------------------------------------------------


def test_prefetch_keeps_order_and_runs_ahead_a_little():
    made = []

    def items():
        for number in range(20):
            made.append(number)
            yield number

    stream = prefetch(items(), depth=3)
    assert next(stream) == 0
    time.sleep(0.1)
    assert 2 <= len(made) <= 6, "some are made ahead, but not all"
    assert list(stream) == list(range(1, 20))


def test_prefetch_hands_over_errors():
    def items():
        yield 1
        raise UserError("bad line")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(UserError, match="bad line"):
        next(stream)


def test_prefetch_ends_its_thread_when_left():
    def endless():
        while True:
            yield 1

    before = threading.active_count()
    stream = prefetch(endless())
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
