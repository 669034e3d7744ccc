"""What a person sees of a run: log lines, one progress bar, a summary."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tqdm import tqdm

from transformer.files import without_secrets

logger = logging.getLogger(__name__)

# subtle: tqdm's own lock is shared with forked processes, and one that is killed while it holds the
# lock would stop all the others. Each of our processes writes for itself.
tqdm.set_lock(threading.RLock())

# Fields of metrics.jsonl that depend on the clock; two runs of one seed differ in nothing else.
TIMING_FIELDS = ("seconds", "sequences_per_second", "tokens_per_second")

# Without a terminal a loop that is not told when to speak speaks this often.
SECONDS_BETWEEN_LINES = 15.0

LONG_SILENCE_SECONDS = 60.0

# Nearly the start of the process: scripts import this before anything that takes time.
STARTED = time.monotonic()


# What moves a cursor, colours or rings: control characters other than line ends and tabs, and those
# that turn the direction of text.
_CONTROLS = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return `text` with its control characters as escapes, so that data cannot steer a terminal.

    >>> printable("red \\x1b[31m")
    'red \\\\x1b[31m'
    """
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


class _BarSafeHandler(logging.Handler):
    """Write log lines to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None:  # closed by whoever started us; tqdm would write to stdout instead
            return
        text = printable(without_secrets(self.format(record)))
        # No line that cannot be written (stderr is closed or full, the terminal gone) ends a run.
        with suppress(OSError, ValueError, AttributeError):
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()


def setup_logging(*, is_main: bool = True) -> None:
    """Send INFO and above to stderr on the main rank, only errors on the others."""
    handler = _BarSafeHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    for old in [held for held in root.handlers if isinstance(held, _BarSafeHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO if is_main else logging.ERROR)
    for chatty in ("matplotlib", "botocore", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def format_seconds(seconds: float) -> str:
    """Write a duration for people.

    >>> format_seconds(3725)
    '1:02:05'
    """
    whole = int(max(seconds, 0) + 0.5)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def format_value(value: Any) -> str:
    """Write one field of a report: four significant digits, plain integers."""
    if isinstance(value, float):
        return f"{value:.3e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
    return str(value)


def columns_of(text: str) -> int:
    """Return the columns of a terminal that a text takes; Chinese characters take two."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def table_lines(rows: Sequence[Sequence[Any]], *, names: int = 1) -> list[str]:
    """Return rows as aligned text, a line each.

    Args:
        names: so many columns begin at the left, the others end at the right.

    >>> table_lines([["", "acc"], ["student", 0.5]])
    ['         acc', 'student  0.5']
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(columns_of, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        blanks = [" " * (width - columns_of(cell)) for cell, width in zip(row, widths, strict=True)]
        padded = [
            cell + blank if place < names else blank + cell
            for place, (cell, blank) in enumerate(zip(row, blanks, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


# A terminal of fewer columns gets a shorter bar, so that the loss and its terms are seen.
WIDE_COLUMNS = 120

NARROW_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} <{remaining}{postfix}"

SHORT_NAMES = {
    "attention": "att",
    "hidden": "hid",
    "embedding": "emb",
    "prediction": "pred",
    "prediction_gold": "gold",
}


def fit(fields: Mapping[str, Any], columns: int, text: str) -> str:
    """Return `text`, what is said of `fields`, or so much of it as so many columns hold.

    Names and digits are shortened first, then fields are left out from the end, but the first.

    >>> fit({"loss": 1.2345, "hidden": 0.5678}, 20, "loss 1.234 | hidden 0.5678")
    'loss 1.23 hid 0.568'
    """
    if len(text) <= columns:
        return text
    brief = ""
    for count in range(len(fields), 0, -1):
        for digits in (3, 2):
            brief = " ".join(
                f"{SHORT_NAMES.get(name, name)} "
                + (f"{value:.{digits}g}" if isinstance(value, float) else str(value))
                for name, value in list(fields.items())[:count]
            )
            if len(brief) <= columns:
                return brief
    return brief


def _is_terminal(stream: IO[str] | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


class Progress:
    """One loop's progress: a bar on a terminal, a plain line now and then elsewhere.

    Example:
        with Progress(total=len(rows), description="augment", unit="rows") as progress:
            for row in rows:
                progress.update(1, variants=made)

    Args:
        total: how many units there are, None if unknown.
        unit: what is counted, as a plural ("rows").
        initial: units done by an earlier process; they do not count in the rate.
        enabled: False on ranks that do not speak.
        log_every: units between two plain lines; None: by time; 0: `report` speaks, and a line
            without fields breaks a long silence.
    """

    def __init__(
        self,
        total: int | None,
        *,
        description: str,
        unit: str = "steps",
        initial: int = 0,
        enabled: bool = True,
        log_every: int | None = None,
    ) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.initial = self.done = initial
        self.enabled, self.log_every = enabled, log_every
        self.started = self.last_line = time.monotonic()
        self.on_terminal = enabled and _is_terminal(sys.stderr)
        self._bar = None
        if self.on_terminal:
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=description,
                unit=f" {unit}",
                dynamic_ncols=True,
                smoothing=0.05,
            )

    def update(self, count: int = 1, **fields: Any) -> None:
        """Move on by `count` units; `fields` are shown when it is time to speak."""
        before = self.done
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            if fields:
                self._show(fields, refresh=False)
            return
        if self.enabled and self._is_due(before):
            self.report(**fields)

    def report(self, **fields: Any) -> None:
        """Show `fields` now."""
        if self._bar is not None:
            self._show(fields, refresh=True)
        elif self.enabled:
            self.last_line = time.monotonic()
            logger.info("%s", self._line(fields))

    def seconds_left(self) -> float | None:
        """Estimate the time to the end from the rate of this process."""
        made = self.done - self.initial
        if self.total is None or made <= 0:
            return None
        return (time.monotonic() - self.started) / made * (self.total - self.done)

    def close(self) -> None:
        """Take the bar off the terminal's live line."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _is_due(self, before: int) -> bool:
        silence = time.monotonic() - self.last_line
        if self.log_every == 0:
            return silence >= LONG_SILENCE_SECONDS and self.done != self.total
        if self.done == self.total:
            return True
        if self.log_every is not None:
            return before // self.log_every != self.done // self.log_every
        return silence >= SECONDS_BETWEEN_LINES

    def _show(self, fields: Mapping[str, Any], *, refresh: bool) -> None:
        """Put `fields` behind the bar; on a narrow terminal both are made shorter."""
        shape = self._bar.format_dict  # which asks the terminal for its width
        columns = shape["ncols"]
        text = self._join(fields)
        if columns:
            narrow = columns < WIDE_COLUMNS and self.total
            self._bar.bar_format = NARROW_BAR if narrow else None
            self._bar.desc = self.description.split()[0] if narrow else f"{self.description}: "
            changed = {"bar_format": self._bar.bar_format, "prefix": self._bar.desc}
            bare = tqdm.format_meter(**{**shape, **changed, "ncols": None, "postfix": None})
            # Without a width a bar is ten wide; it may shrink to one. ", " comes before the text.
            text = fit(fields, columns - len(bare) + 9 - len(", "), text)
        self._bar.set_postfix_str(text, refresh=refresh)

    @staticmethod
    def _join(fields: Mapping[str, Any]) -> str:
        return " | ".join(f"{name} {format_value(value)}" for name, value in fields.items())

    def _line(self, fields: Mapping[str, Any]) -> str:
        width = len(str(self.total)) if self.total else 1
        place = f"{self.description} {self.done:0{width}d}"
        if self.total:
            place += f"/{self.total} {self.unit} ({100 * self.done / self.total:.1f}%)"
        else:
            place += f" {self.unit}"
        left = self.seconds_left()
        tail = f" | {format_seconds(left)} left" if left else ""
        return " | ".join(filter(None, [place, self._join(fields)])) + tail


class Speed:
    """Sequences and real tokens a second since the last reading."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, for instance after an evaluation, which is no training time."""
        self.started = time.monotonic()
        self.sequences = self.tokens = 0

    def add(self, sequences: int, tokens: int) -> None:
        """Count a step."""
        self.sequences += sequences
        self.tokens += tokens

    def read(self) -> dict[str, float]:
        """Return the `TIMING_FIELDS` since the last reading and begin anew."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        values = seconds, self.sequences / seconds, self.tokens / seconds
        self.reset()
        return dict(zip(TIMING_FIELDS, values, strict=True))


def spent() -> str:
    """Return what this process has taken so far, as "0:02:13, at most 765 MiB of memory".

    Memory is what was resident, without worker processes and a GPU's.
    """
    import resource  # no such thing on Windows, whose users are told at the start

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    seconds = format_seconds(time.monotonic() - STARTED)
    return f"{seconds}, at most {peak / (1 << 20):.0f} MiB of memory"


def closing_summary(title: str, written: Iterable[tuple[Path, str]], facts: Iterable[str]) -> None:
    """Say at the end what the run did, what it took and what was written where."""
    logger.info("%s", title)
    for fact in (*facts, f"took {spent()}"):
        logger.info("  %s", fact)
    for path, what in written:
        if path.exists():
            logger.info("  %s: %s", path, what)
