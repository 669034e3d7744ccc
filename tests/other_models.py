"""Random small models of other architectures, by Hugging Face's classes, for the tests."""

from __future__ import annotations

import pytest
import torch

from transformer.architectures.table import ARCHITECTURES

BATCH, LENGTH, LAYERS = 13, 7, 5
LENGTHS = torch.tensor([7, 1, 2, 3, 4, 5, 6, 7, 3, 2, 5, 1, 6])
# Sizes differ pairwise, so that a swapped axis cannot pass; the initializer_range is large, so that
# attention is not uniform nor any activation linear.
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 11,
    "initializer_range": 0.2,
}
DISTILBERT_SIZES = {
    "vocab_size": 99,
    "dim": 32,
    "n_layers": LAYERS,
    "n_heads": 4,
    "hidden_dim": 37,
    "max_position_embeddings": 11,
    "initializer_range": 0.2,
}
VARIANTS = {
    "albert": ("albert", {**SIZES, "embedding_size": 19}),
    "albert with three groups": (
        "albert",
        {**SIZES, "embedding_size": 32, "num_hidden_groups": 3, "hidden_act": "gelu"},
    ),
    "electra": ("electra", {**SIZES, "embedding_size": 19}),
    "wide electra": ("electra", {**SIZES, "embedding_size": 32}),
    "distilbert": ("distilbert", DISTILBERT_SIZES),
    "distilbert with relu": ("distilbert", {**DISTILBERT_SIZES, "activation": "relu"}),
    "nezha": ("nezha", {**SIZES, "max_relative_position": 3}),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def make_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, segments and the boolean mask of 13 sequences of 1 to 7 tokens."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 99, (BATCH, LENGTH), generator=generator)
    segments = torch.randint(0, 2, (BATCH, LENGTH), generator=generator)
    mask = torch.arange(LENGTH)[None, :] < LENGTHS[:, None]
    return ids * mask, segments, mask


def make_theirs(variant: str, head: str):
    """Return a random Hugging Face model in eval mode and its model_type."""
    transformers = pytest.importorskip("transformers")
    model_type, sizes = VARIANTS[variant]
    prefix = ARCHITECTURES[model_type].class_prefix
    if not hasattr(transformers, f"{prefix}Config"):
        pytest.skip(f"this transformers has no {prefix}Config")
    config = getattr(transformers, f"{prefix}Config")(**sizes, num_labels=3)
    config._attn_implementation = "eager"
    torch.manual_seed(11)
    model = getattr(transformers, prefix + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # whatever the class initialises, 0 and 1 included
            parameter.copy_(0.2 * torch.randn_like(parameter))
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return model, model_type


def run_theirs(model, ids, segments, mask, **options):
    if model.config.model_type != "distilbert":
        options["token_type_ids"] = segments
    return model(ids, attention_mask=mask.long(), **options)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)
