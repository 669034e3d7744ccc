"""What a model costs without measuring it: its parameters and its arithmetic."""

from __future__ import annotations

from torch import nn

from transformer.configuration import BertConfig


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the parameters that inference uses: all, and all but the three embedding tables.

    The projection to a teacher's width, which only training uses, is left out.
    """
    counts = [
        (name, parameter.numel())
        for name, parameter in model.named_parameters()
        if not name.startswith("fit_dense")
    ]
    tables = sum(count for name, count in counts if name.endswith("_embeddings.weight"))
    total = sum(count for _, count in counts)
    return total, total - tables


def sentence_flops(config: BertConfig, length: float) -> float:
    """Count the floating-point operations of one classified sentence of `length` tokens.

    With T tokens, width D, inner width I, L layers and C labels, a multiplication and an addition
    counted as two operations as in the paper's table 1:

        L * (8 T D^2 + 4 T^2 D + 4 T D I) + 2 D^2 + 2 D C

    that is query, key, value and output; scores and context; feed-forward; pooler; classifier.
    NEZHA's queries meet R relative positions beside the T keys: 4 T (T + R) D for its 4 T^2 D.
    Biases, softmax, activations and normalisation, below 2 %, are left out. It is the usual count:
    the last layer, of which a classifier reads one token, is in it like the others.

    >>> round(sentence_flops(BertConfig(), 128) / 1e9, 1)
    22.3
    """
    width, inner = config.hidden_size, config.intermediate_size
    keys = length + config.relative_positions
    layer = 8 * length * width**2 + 4 * length * keys * width + 4 * length * width * inner
    return config.num_hidden_layers * layer + 2 * width**2 + 2 * width * config.num_labels
