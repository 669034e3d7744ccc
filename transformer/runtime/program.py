"""What a program calls itself, before a mistake of its user's."""

from __future__ import annotations

import sys
from pathlib import Path


def program_name() -> str:
    """Return the name of the script that runs, or of the module that `python -m` runs."""
    program = Path(sys.argv[0])
    # `python -m transformer.checkpoint` runs .../transformer/checkpoint/__main__.py
    return ".".join(program.parts[-3:-1]) if program.name == "__main__.py" else program.name
