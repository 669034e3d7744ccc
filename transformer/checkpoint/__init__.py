"""Directories of models: `load_model` and `save_checkpoint` are importable from here."""

from transformer.checkpoint.directory import (
    Checkpoint,
    LoadReport,
    load_model,
    read_config,
    read_weights,
    save_checkpoint,
)

__all__ = [
    "Checkpoint",
    "LoadReport",
    "load_model",
    "read_config",
    "read_weights",
    "save_checkpoint",
]
