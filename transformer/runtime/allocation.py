"""How the C library deals with memory that Python and torch free on a CPU."""

from __future__ import annotations

import ctypes
import sys

# mallopt()'s numbers for: give freed memory back from this size on; map blocks from this size on.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# Blocks up to the first size are kept: the gradient of BERT's word embeddings is 90 MiB. Older
# releases of glibc allow no more than the second.
_KEPT_BYTES = (128 << 20, 32 << 20)


def reuse_freed_memory() -> None:
    """Let this process, and those it forks, keep freed blocks for the next ones of their size.

    Otherwise every large block goes back to the system, to be mapped and zeroed anew a moment
    later, page by page. Without effect elsewhere than with glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and any(mallopt(_M_MMAP_THRESHOLD, size) for size in _KEPT_BYTES):
        mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES[0])
