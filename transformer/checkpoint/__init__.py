"""Directories of models: `load_model` and `save_checkpoint` are importable from here."""

from transformer.checkpoint.config_file import read_config
from transformer.checkpoint.directory import LoadReport, load_model, read_weights, save_checkpoint

__all__ = ["LoadReport", "load_model", "read_config", "read_weights", "save_checkpoint"]
