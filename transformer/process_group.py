"""Joining the ranks of a job, again after a restart."""

from __future__ import annotations

import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

# Longest wait of one rank for another in a collective; long preparations wait on file locks.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# How long a rank believes in a main rank that does not answer.
ANSWER_TIMEOUT = timedelta(milliseconds=300)


def join_ranks(backend: str) -> None:
    """Start the process group with the ranks of torchrun's environment."""
    store, rank, world_size = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    store.set_timeout(COLLECTIVE_TIMEOUT)
    round_name = agree_on_round(store, rank, world_size)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(round_name, store),
        rank=rank,
        world_size=world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )


def agree_on_round(store: dist.Store, rank: int, world_size: int) -> str:
    """Return a name that the ranks of this start share with no earlier start.

    subtle: when torchrun restarts the ranks, its store still holds what the lost ones wrote, and a
    rank that is quick would connect to a process that is gone. The restart count in the
    environment does not tell starts apart: on several nodes each counts its own. So the main rank
    announces a new name, and the others take it from nobody but a main rank that answers them.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("announced", own)
        others = range(1, world_size)
        store.wait([f"{own}/asks/{other}" for other in others], COLLECTIVE_TIMEOUT)
        for other in others:
            question = store.get(f"{own}/asks/{other}").decode()
            store.set(f"{own}/answers/{question}", "yes")
        return own
    while True:
        announced = store.get("announced").decode()
        store.set(f"{announced}/asks/{rank}", own)
        try:
            store.wait([f"{announced}/answers/{own}"], ANSWER_TIMEOUT)
            return announced
        except dist.DistStoreError:
            continue  # the main rank of an earlier start, or one that still waits for others
