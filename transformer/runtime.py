"""Where and how a script runs: device, precision, torchrun's ranks, seeds, output directory, exit code."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from .data import mix_seed
from .file_utils import UserError, atomic_write
from .reporting import setup_logging

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Longest wait of one rank for another in a collective; long preparations wait on file locks.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# What our scripts write at the top of an output directory, and --overwrite_output_dir removes.
RUN_FILES = (
    "args.json",
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "pytorch_model.bin",
    "training_curves.png",
    "training_state.pt",
)


class RunError(RuntimeError):
    """A run that cannot go on, told in one line; the exit code is 1."""


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


def add_runtime_arguments(
    parser: argparse.ArgumentParser,
    *,
    distributed: bool = True,
    precision: bool = True,
    seed: bool = True,
) -> None:
    """Add the flags that `setup_runtime` reads; a keyword leaves a group of them out."""
    group = parser.add_argument_group("runtime")
    group.add_argument("--no_cuda", action="store_true", help="stay on the CPU")
    if seed:
        group.add_argument(
            "--seed", type=int, default=42, help="of initialisation, order and dropout"
        )
    if distributed:
        group.add_argument(
            "--local_rank",
            "--local-rank",
            type=int,
            default=-1,
            help="given by old launchers; ranks come from torchrun's environment",
        )
    if precision:
        group.add_argument(
            "--precision",
            choices=["auto", *PRECISIONS],
            default="auto",
            help="auto: bf16 where the hardware multiplies it natively, else fp32",
        )
        group.add_argument("--fp16", action="store_true", help="the same as --precision fp16")


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
    name = getattr(args, "precision", "fp32")
    if getattr(args, "fp16", False):
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
    given = getattr(args, "local_rank", -1)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        if given > 0:
            raise UserError(
                f"--local_rank {given}: no launcher's environment (RANK, WORLD_SIZE) found; "
                "start several processes with torchrun --nproc_per_node=N"
            )
        return 0, 0, 1
    local_rank = int(os.environ.get("LOCAL_RANK", max(given, 0)))
    return int(os.environ["RANK"]), local_rank, int(os.environ["WORLD_SIZE"])


def _choose_device(args: argparse.Namespace, local_rank: int) -> torch.device:
    """Return this rank's device: its GPU, or the CPU."""
    if getattr(args, "no_cuda", False) or not torch.cuda.is_available():
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
    runtime = Runtime(device, resolve_precision(args, device), rank, local_rank, world_size)
    if world_size > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    seed = getattr(args, "seed", None)
    if isinstance(seed, int):
        torch.manual_seed(seed)
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


def restarted() -> bool:
    """Say whether torchrun started this process again after a rank was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def prepare_output_dir(
    output_dir: str | Path, *, resume: bool, overwrite: bool, is_main: bool = True
) -> Path:
    """Make `output_dir`, or check that what it holds may be gone on with or replaced.

    Only the main rank looks and writes. Without a run in it, `resume` begins one.

    Raises:
        UserError: the directory holds files and neither flag is given, or it cannot be written.
    """
    path = Path(output_dir)
    if not is_main:
        return path
    if resume and overwrite and not restarted():
        raise UserError("--resume and --overwrite_output_dir contradict each other; give one")
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path} is a file; give a directory")
    held = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if held and not resume and not overwrite:
        raise UserError(
            f"--output_dir {path} holds files ({held[0]}, ...): give --resume to go on with the "
            "run in it, --overwrite_output_dir to replace it, or another directory"
        )
    if held and resume and "args.json" not in held:
        raise UserError(
            f"--resume: {path} holds files but no run (no args.json); give another directory"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {path} cannot be made: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--output_dir {path} cannot be written: no permission")
    _remove_stale(path, remove_run=overwrite and not resume)
    return path


def _remove_stale(path: Path, *, remove_run: bool) -> None:
    """Remove what a killed run left unfinished and, if asked, the former run itself."""
    for leftover in path.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    if remove_run:
        for name in RUN_FILES:
            (path / name).unlink(missing_ok=True)


def save_args(args: argparse.Namespace, output_dir: str | Path) -> None:
    """Write everything the run was started with to `output_dir`/args.json."""
    with atomic_write(Path(output_dir) / "args.json") as file:
        json.dump(vars(args), file, indent=2, default=str, ensure_ascii=False)
        file.write("\n")


@contextmanager
def file_lock(path: str | Path, waiting_for: str) -> Iterator[None]:
    """Hold the lock file `path`; others, in any process that sees the file, wait.

    Ranks wait here, and not in a collective, while one of them prepares data for hours. The
    system releases the lock of a process that dies.
    """
    import fcntl  # subtle: POSIX only, so imported where it is needed

    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process: %s", waiting_for)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _is_lost_rank(error: RuntimeError) -> bool:
    """Say whether `error` comes from a collective whose partner is gone."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return dist.is_initialized() and any(word in text for word in ("gloo", "nccl", "connection"))


def _tell(message: str) -> None:
    rank = int(os.environ.get("RANK", "0"))
    prefix = f"rank {rank}: " if rank else ""
    print(f"{Path(sys.argv[0]).name}: error: {prefix}{message}", file=sys.stderr, flush=True)


def run_script(main: Callable[[], Any]) -> int:
    """Call `main` and return the exit code; a user's mistake becomes one line on stderr.

    0: done. 1: the run failed. 2: the user's mistake. 130, 143: interrupted, terminated.
    """
    # subtle: a signal that arrives outside the training loop still cleans up and says its code.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except UserError as error:
        # Every rank finds the same mistake; the others leave the main one time to say it.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(2)
        _tell(str(error))
        return 2
    except BrokenPipeError:
        # The reader of our stdout has left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (RunError, OSError) as error:
        _tell(str(error))
        is_users = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError)
        return 2 if is_users else 1
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130
    except RuntimeError as error:
        if not _is_lost_rank(error):
            raise
        _tell(f"lost contact with another rank, so the job stops ({str(error).splitlines()[0]})")
        return 1
    return 0
