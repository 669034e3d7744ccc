"""Linear layers of frozen models, with weights laid out as the processor reads them.

On a CPU every product with a half-precision weight begins by copying the weight into blocks, unless
it lies in blocks already. Weights that are trained must stay plain, for the optimizer; those of
teachers and of the masked language model of augmentation need not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.modeling import BertLayer, BertTransform


class PackedLinear(nn.Module):
    """A linear layer that cannot be trained, with the activation behind it if one is given.

    Args:
        linear: of a CPU, in bf16.
        activation: "none", or "gelu" (the exact one), which is then applied before rounding.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none"):
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.weight = nn.Parameter(packed, requires_grad=False)  # .to_dense() gives the plain one
        self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, self.activation, [], "none"
        )


def pack_linears(model: nn.Module) -> nn.Module:
    """Replace the linear layers in the encoder of a frozen model by packed ones; return the model.

    Without effect where torch has no such kernels: on a GPU, in fp32, on old processors. Not for
    models that go through torch.compile, which cannot look into them.
    """
    if not _can_pack(next(model.parameters())):
        return model
    for layer in [module for module in model.modules() if isinstance(module, BertLayer)]:
        for parent in list(layer.modules()):
            activation = "none"
            if isinstance(parent, BertTransform) and parent.activation is F.gelu:
                activation, parent.activation = "gelu", nn.Identity()
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear):
                    setattr(parent, name, PackedLinear(child, activation))
    return model


def _can_pack(weight: Tensor) -> bool:
    # subtle: these kernels are not among what torch documents; it compiles models to them itself.
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return (
        weight.is_cpu
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
