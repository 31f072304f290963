"""Initial weights (layer 5)."""

from __future__ import annotations

from typing import Literal

from torch import nn

__all__ = ["he_init_"]


def he_init_(model: nn.Module, *, fan: Literal["fan_in", "fan_out"] = "fan_out") -> None:
    """Draw the weights of every convolution from a normal distribution of variance 2 / fan, in place.

    fan_out is ``C_o * k_h * k_w``, fan_in ``C_i * k_h * k_w``; biases become 0. It keeps the variance of activations
    (fan_in) or gradients (fan_out) through layers that end in a ReLU. Kaiming He et al., "Delving Deep into
    Rectifiers", https://arxiv.org/abs/1502.01852. Example: 16 filters of 3 x 3 have fan_out 144, so a standard
    deviation of 0.118.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
