"""Where and how a process runs: device, precision, torchrun's ranks and how they meet, seeds."""

from __future__ import annotations

import argparse
import logging
import os
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from transformer.files import UserError
from transformer.runtime.allocation import reuse_freed_memory
from transformer.runtime.progress import setup_logging
from transformer.runtime.script import seed_number
from transformer.runtime.waiting import watch_crowding

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

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


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The place of this process: its device, compute precision and rank."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank logs and saves."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in `dtype` where that is safe; weights stay as they are held."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled)

    def barrier(self) -> None:
        """Wait until every rank is here; nothing with a single rank."""
        if self.world_size > 1:
            dist.barrier()

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` summed over all ranks."""
        if self.world_size > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """Return the `value` of the main rank on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def on_main(self, function: Callable[[], Result]) -> Result:
        """Return what `function()` returns on the main rank, on every rank.

        Raises:
            UserError: as the main rank met it, on every rank; none is left waiting.
        """
        if self.world_size == 1:
            return function()
        outcome = None
        if self.is_main:
            try:
                outcome = function(), None
            except UserError as error:
                outcome = None, error
        result, error = self.broadcast_object(outcome)
        if error is not None:
            raise error
        return result


def add_runtime_arguments(parser: argparse.ArgumentParser, *, seed: bool = True) -> None:
    """Add the flags that `setup_runtime` reads, --seed only if asked to."""
    add = parser.add_argument_group("runtime").add_argument
    add("--no_cuda", action="store_true", help="stay on the CPU")
    if seed:
        what = "seed of initialisation, order and dropout"
        add("--seed", type=seed_number, default=42, help=what)
    add(
        "--local_rank",
        "--local-rank",
        type=int,
        default=-1,
        help="given by old launchers; ranks come from torchrun's environment",
    )
    add(
        "--precision",
        choices=["auto", *PRECISIONS],
        default="auto",
        help="auto: bf16 where the hardware multiplies it natively, else fp32",
    )
    add("--fp16", action="store_true", help="the same as --precision fp16")


def native_bf16(device: torch.device) -> bool:
    """Say whether `device` multiplies bf16 in hardware (CUDA sm80 and later, AVX512-BF16, AMX)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_precision(args: argparse.Namespace, device: torch.device) -> torch.dtype:
    """Turn `--precision` and `--fp16` into the dtype to compute in.

    Raises:
        UserError: the two contradict each other, or the device cannot do it.
    """
    name = args.precision
    if args.fp16:
        if name not in ("auto", "fp16"):
            raise UserError(f"--fp16 and --precision {name} contradict each other; give one")
        name = "fp16"
    if name == "auto":
        return torch.bfloat16 if native_bf16(device) else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise UserError("fp16 needs a GPU; on a CPU give --precision auto, bf16 or fp32")
    if name == "bf16" and not native_bf16(device):
        logger.warning("%s has no native bf16: --precision fp32 may be faster", device)
    return PRECISIONS[name]


def _launcher_ranks(args: argparse.Namespace) -> tuple[int, int, int]:
    """Return (rank, local rank, world size) from the launcher's environment."""
    given = args.local_rank
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        if given > 0:
            raise UserError(
                f"--local_rank {given}: no launcher's environment (RANK, WORLD_SIZE) found; "
                "start several processes with torchrun --nproc_per_node=N"
            )
        return 0, 0, 1
    world_size = _from_environment("WORLD_SIZE", 1, 1 << 20)
    rank = _from_environment("RANK", 0, world_size - 1)
    if "LOCAL_RANK" not in os.environ:
        return rank, max(given, 0), world_size
    return rank, _from_environment("LOCAL_RANK", 0, world_size - 1), world_size


def _from_environment(name: str, least: int, most: int) -> int:
    """Return a number that a launcher set."""
    text = os.environ[name]
    if not (text.isdecimal() and least <= int(text) <= most):
        raise UserError(
            f"{name}={text} in the environment: a whole number from {least} to {most} is needed; "
            "start with torchrun, or unset RANK and WORLD_SIZE"
        )
    return int(text)


def _choose_device(args: argparse.Namespace, local_rank: int) -> torch.device:
    """Return this rank's device: its GPU, or the CPU."""
    if args.no_cuda or not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"local rank {local_rank} has no GPU: this machine has {count}; "
            f"give torchrun --nproc_per_node={count} or --no_cuda"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _make_deterministic() -> None:
    """Choose GPU kernels that add up in a fixed order, which exact resume relies on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False


def setup_runtime(args: argparse.Namespace) -> Runtime:
    """Find device, precision and rank, start the process group, seed, and configure logging.

    Raises:
        UserError: flags that contradict each other or the machine.
    """
    rank, local_rank, world_size = _launcher_ranks(args)
    setup_logging(is_main=rank == 0)
    device = _choose_device(args, local_rank)
    if device.type == "cuda":
        _make_deterministic()
    else:
        reuse_freed_memory()
        watch_crowding()
    runtime = Runtime(device, resolve_precision(args, device), rank, local_rank, world_size)
    if world_size > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        join_ranks(backend)
    if isinstance(args.seed, int):  # of several seeds, each run sets its own
        torch.manual_seed(args.seed)
    logger.info(
        "device %s, precision %s, %d rank%s",
        device,
        str(runtime.dtype).removeprefix("torch."),
        world_size,
        "s" if world_size > 1 else "",
    )
    return runtime


def close_runtime(runtime: Runtime) -> None:
    """Leave the process group."""
    if runtime.world_size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch (CPU and GPU) as a pure function of the arguments.

    Called before every optimizer step, it makes dropout independent of what ran before, so that
    no generator has to be saved, and different in each rank.
    """
    torch.manual_seed(mix_seed(seed, step, rank) >> 1)


def mix_seed(*integers: int) -> int:
    """Mix integers into 64 well-spread bits, as a pure function (the splitmix64 finaliser)."""
    state = 0x9E3779B97F4A7C15
    for integer in integers:
        state = (state ^ (integer & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state
