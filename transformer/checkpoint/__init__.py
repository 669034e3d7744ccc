"""Directories of models: `load_model` and `save_checkpoint` are importable from here.

They are looked up when first asked for: `python -m transformer.checkpoint` imports this file first,
and listens to Ctrl-C before it imports torch.
"""

from __future__ import annotations

from importlib import import_module

__all__ = [
    "Checkpoint",
    "LoadReport",
    "load_model",
    "read_config",
    "read_weights",
    "save_checkpoint",
]


def __getattr__(name: str) -> object:
    """Import the module that holds the public name `name`, and return the object."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("transformer.checkpoint.directory"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
