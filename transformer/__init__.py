"""TinyBERT: distil BERT models into small ones.

The public classes are importable from here. They are looked up when first asked for, so that a
process which only tokenises text (a worker of the corpus stage, `--help`) does not import torch.
"""

from __future__ import annotations

from importlib import import_module

_MODULE_OF = {
    "BasicTokenizer": "tokenization",
    "BertTokenizer": "tokenization",
    "WordpieceTokenizer": "tokenization",
    "BertConfig": "modeling",
    "BertForMaskedLM": "modeling",
    "BertForPreTraining": "modeling",
    "BertModel": "modeling",
    "TinyBertForPreTraining": "modeling",
    "TinyBertForSequenceClassification": "modeling",
    "BertAdam": "optimization",
    "load_model": "checkpoint",
    "save_checkpoint": "checkpoint",
    "EntityTagger": "tasks.text_models",
    "QuestionAnswerer": "tasks.text_models",
    "TextClassifier": "tasks.text_models",
    "UserError": "files",
    "cached_path": "file_utils",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Import the module that holds the public name `name`, and return the object."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
