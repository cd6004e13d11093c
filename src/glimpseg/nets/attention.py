"""Self-attention and perceptron of a vision transformer (Dosovitskiy et al., arXiv 2010.11929).

Parameter names, order of creation and arithmetic are those of MONAI 1.6's `SABlock` and `MLPBlock`
(`tests/test_monai_parts.py`).
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head attention of each token to all tokens.

    Args:
        width: features of a token; a multiple of `heads`.
        heads: heads that share the features.
        dropout: probability, for the attention and for the output.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.out_proj = nn.Linear(width, width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.drop_output = nn.Dropout(dropout)
        self.drop_weights = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "b n c"], keys: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n c"]:
        """Return mixed tokens.

        Args:
            tokens: tokens of each sample.
            keys: True for tokens that may be attended to, at least one in each sample; None for all.
        """
        query, key, value = rearrange(self.qkv(tokens), "b n (three h c) -> three b h n c", three=3, h=self.heads)
        attention = torch.einsum("bhnc,bhmc->bhnm", query, key) * self.scale
        if keys is not None:
            attention = attention.masked_fill(~keys[:, None, None], -torch.inf)
        attention = self.drop_weights(attention.softmax(-1))
        mixed = torch.einsum("bhnm,bhmc->bhnc", attention, value)
        return self.drop_output(self.out_proj(rearrange(mixed, "b h n c -> b n (h c)")))


class Perceptron(nn.Module):
    """Two linear layers with a GELU between; dropout after the GELU and after the second layer.

    Args:
        width: features of a token.
        hidden: units between the layers.
        dropout: probability.
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.activation = nn.GELU()
        self.drop1 = nn.Dropout(dropout)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Return tokens of the same width."""
        return self.drop2(self.linear2(self.drop1(self.activation(self.linear1(tokens)))))
