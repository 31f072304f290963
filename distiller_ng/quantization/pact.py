"""PACT: activations clipped at a value that is learned (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from distiller_ng.quantization._numbers import number_above, number_from
from distiller_ng.quantization.activations import LearnedClippedLinearQuantization
from distiller_ng.quantization.base import QUANTIZERS, Quantizer
from distiller_ng.quantization.q_utils import QBits
from distiller_ng.quantization.weight_functions import dorefa_quantize_param

__all__ = ["PACTQuantizer"]


@QUANTIZERS.register("PACTQuantizer", injected=("model", "optimizer"))
class PACTQuantizer(Quantizer):
    """PACT training: every ReLU learns where to clip; weights as in DoReFa.

    Source: J. Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks",
    https://arxiv.org/abs/1805.06085. ``y = round_b(clamp(x, 0, alpha) / alpha) * alpha`` with one learned ``alpha``
    (the parameter ``clip_val`` ``[1]``) for each ReLU, whose gradient is 1 where ``x >= alpha``. With 2 bits and
    ``alpha = 3`` ``x = [-1, 1.2, 5]`` becomes ``[0, 1, 3]``.

    ``act_clip_init_val``: where ``alpha`` starts; an override may set it for some modules. ``act_clip_decay``: weight
    decay of the ``clip_val`` parameters, which are a parameter group of their own (None: the optimizer's default)::

        quantizers:
          pact:
            class: PACTQuantizer
            bits_activations: 4
            bits_weights: 4
            act_clip_init_val: 8.0
            act_clip_decay: 0.001
            overrides:
              conv1: {bits_weights: null}
    """

    restores_zeros: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        bits_activations: int | None = 32,
        bits_weights: int | None = 32,
        bits_bias: int | None = None,
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
        act_clip_init_val: float = 8.0,
        act_clip_decay: float | None = None,
    ) -> None:
        super().__init__(
            model, optimizer, bits_activations, bits_weights, bits_bias, overrides, train_with_fp_copy=True
        )
        self.act_clip_init_val = number_above("act_clip_init_val", act_clip_init_val, 0)
        self.act_clip_decay = None if act_clip_decay is None else number_from("act_clip_decay", act_clip_decay, 0)
        for key, settings in self.overrides.items():
            if "act_clip_init_val" in settings:
                number_above("act_clip_init_val", settings["act_clip_init_val"], 0, below=("overrides", key))
        self.param_quantization_fn = dorefa_quantize_param
        self.replacement_factory.update({nn.ReLU: self._learned_clip, nn.ReLU6: self._learned_clip})

    def _learned_clip(
        self, module: nn.Module, name: str, qbits_map: Mapping[str, QBits], act_clip_init_val: float | None = None
    ) -> nn.Module:
        bits = qbits_map[name].acts
        if bits is None:
            return module
        start = self.act_clip_init_val if act_clip_init_val is None else act_clip_init_val
        inplace = bool(getattr(module, "inplace", False))
        return LearnedClippedLinearQuantization(bits, start, dequantize=True, inplace=inplace)

    def _get_new_optimizer_params_groups(self) -> list[dict[str, Any]]:
        clips = list(self.parameters_called("clip_val").values())
        decay = {} if self.act_clip_decay is None else {"weight_decay": self.act_clip_decay}
        return [{"params": clips, **decay}] if clips else []

    @torch.no_grad()
    def _start_learning(self) -> None:
        for name, clip in self.parameters_called("clip_val").items():
            settings = self.module_overrides_map.get(name.rpartition(".")[0], {})
            clip.fill_(float(settings.get("act_clip_init_val", self.act_clip_init_val)))
