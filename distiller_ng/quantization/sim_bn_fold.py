"""Training with the batch norm folded into the layer before it, as it will be at inference (layer 2).

Source: R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A whitepaper",
https://arxiv.org/abs/1806.08342, section 3.2.2. A deployed model computes with ``W * gamma / sigma``; quantization
aware training must quantize that product, or it trains for weights that will never be used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.snapshot import snapshot
from distiller_ng.quantization._folding import check_foldable, correction, is_frozen_norm, run_layer, scaled_weight

__all__ = ["FREEZE_BN_DELAY_DEFAULT", "SimulatedFoldedBatchNorm"]

FREEZE_BN_DELAY_DEFAULT = 200000
ParamQuantization: TypeAlias = Callable[[Tensor], Tensor]


class SimulatedFoldedBatchNorm(nn.Module):
    """``bn(param_module(x))`` computed with folded, quantized weights.

    With ``mu_B``, ``sigma_B`` of the batch (of ``x * W``, without the bias) and the running ``mu``, ``sigma``::

        training:    y = (x * q(W gamma / sigma)) * (sigma / sigma_B) + q(beta - gamma mu_B / sigma_B)
        evaluation:  y = x * q(W gamma / sigma) + q(beta - gamma (mu - b) / sigma)

    so that weights do not jump with every batch, while the output is that of batch statistics. Running statistics
    update as in the batch norm itself (bias included in the mean, unbiased variance, momentum None averages over all
    batches). The layer's own bias cancels out in training and gets no gradient. After ``freeze_bn_delay`` training
    batches, or with :meth:`freeze`, the batch norm is folded into weight and bias for good. A batch norm in evaluation
    mode inside a training module uses its running statistics (and the bias then gets a gradient).

    ``param_module`` and ``bn``: Linear, Conv1d or ConvTranspose1d with BatchNorm1d; the same in 2 and 3 dimensions;
    Conv2d with torchvision's FrozenBatchNorm2d, which is folded at once. ``param_quantization_fn`` (tensor to tensor of
    the same shape, differentiable) quantizes the folded weight and bias.

    ``SimulatedFoldedBatchNorm(nn.Linear(2, 3), nn.BatchNorm1d(3))`` equals ``nn.Sequential`` of the two, in training
    and evaluation, gradients included.

    Raises :class:`TypeError` for another pair, :class:`ArgumentError` (a ``ValueError``) for a batch norm without
    running statistics or of another width.
    """

    folded: Tensor

    def __init__(
        self,
        param_module: nn.Module,
        bn: nn.Module,
        freeze_bn_delay: int = FREEZE_BN_DELAY_DEFAULT,
        param_quantization_fn: ParamQuantization | None = None,
    ) -> None:
        check_foldable(param_module, bn)
        if isinstance(freeze_bn_delay, bool) or not isinstance(freeze_bn_delay, int) or freeze_bn_delay < 0:
            message = f"freeze_bn_delay is a number of training batches, 0 or more; got {freeze_bn_delay!r}"
            raise ArgumentError(message, argument=("freeze_bn_delay",))
        super().__init__()
        self.param_module = param_module
        self.bn = bn
        self.freeze_bn_delay = freeze_bn_delay
        self.param_quant_fn = param_quantization_fn
        self.frozen = False
        # The same in the state, for resuming: folding twice would be wrong.
        self.register_buffer("folded", torch.zeros((), dtype=torch.bool))
        self._batches = 0 if is_frozen_norm(bn) else int(bn.num_batches_tracked)  # type: ignore[arg-type]
        if is_frozen_norm(bn):
            self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """The normalized output of the layer, for a batch ``[N, C_i, *spatial]``.

        Raises :class:`ArgumentError` for another number of dimensions, and in training when a channel has a single
        value (there is no variance).
        """
        if x.dim() != self._weight().dim():
            kind = type(self.param_module).__name__
            hint = (
                " (in more, batch norm would normalize dimension 1)" if isinstance(self.param_module, nn.Linear) else ""
            )
            raise ArgumentError(
                f"a batch norm folded into {kind} takes inputs of {self._weight().dim()} dimensions, the first one the "
                f"batch{hint}; got shape {tuple(x.shape)}"
            )
        by_batch = self.training and self.bn.training and not self.frozen
        if by_batch and self._batches >= self.freeze_bn_delay:
            self.freeze()
        if by_batch and not self.frozen:
            return self._by_batch_statistics(x)
        return run_layer(self.param_module, x, *self.deployed())

    def deployed(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that evaluation computes with: folded, for good or with running statistics, and quantized."""
        weight, bias = (self._weight(), self.param_module.bias) if self.frozen else self._running_fold()
        return self._quantized(weight), self._quantized(bias)

    @torch.no_grad()
    def freeze(self) -> None:
        """Fold the running statistics into weight and bias, in place and for good; a second call does nothing.

        A layer without bias gets the batch norm's ``beta`` as its bias (the same parameter, with the folded value), so
        an optimizer that trains ``beta`` trains it on; without either it gets a new parameter.
        """
        if self.frozen:
            return
        weight, bias = self._running_fold()
        self._weight().copy_(weight)
        own = self.param_module.bias
        target = own if own is not None else self.bn.bias
        if not isinstance(target, nn.Parameter):
            target = nn.Parameter(torch.empty_like(bias))
        target.copy_(bias)
        self.param_module.bias = target
        self.folded.fill_(True)
        self.frozen = True

    def _by_batch_statistics(self, x: Tensor) -> Tensor:
        weight, gamma, beta = self._weight(), self._gamma(), self._beta()
        plain = run_layer(self.param_module, x, weight, None)
        # In float32 at least, as batch norm itself computes under autocast.
        values = plain if plain.dtype == torch.float64 else plain.float()
        dims = [dim for dim in range(values.dim()) if dim != 1]
        count = values.numel() // max(values.shape[1], 1)
        if count < 2:
            raise ArgumentError(
                f"batch norm needs more than one value per channel in training, got {tuple(plain.shape)}: use larger "
                "batches (drop_last=True), or freeze the batch norm"
            )
        variance, mean = torch.var_mean(values, dim=dims, correction=0)
        self._update_running(mean.detach(), variance.detach() * (count / (count - 1)))
        if self.param_quant_fn is None:  # then the fold is exact, and this is the same in half the time and rounding
            return F.batch_norm(plain, None, None, self.bn.weight, self.bn.bias, training=True, eps=self.bn.eps)  # type: ignore[arg-type]
        sigma_running = snapshot(self._sigma())  # the next batch updates it in place, maybe before backward
        reciprocal = torch.rsqrt(variance + float(self.bn.eps))  # type: ignore[arg-type]
        folded = self._quantized(scaled_weight(self.param_module, weight, gamma / sigma_running))
        bias = self._quantized(beta - gamma * mean * reciprocal)
        y = run_layer(self.param_module, x, folded, None)
        y = y * correction(sigma_running * reciprocal, y) + correction(bias, y)
        return y.to(plain.dtype)

    def _running_fold(self) -> tuple[Tensor, Tensor]:
        """Weight and bias with the running statistics folded in."""
        factor = self._gamma() / self._sigma()
        mean: Any = self.bn.running_mean
        own = self.param_module.bias
        centre = mean if own is None else mean - own
        return scaled_weight(self.param_module, self._weight(), factor), self._beta() - centre * factor

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        bn: Any = self.bn
        bn.num_batches_tracked.add_(1)
        self._batches += 1
        own: Any = self.param_module.bias
        shifted = mean if own is None else mean + own
        # Momentum None: the average over all batches.
        momentum = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
        bn.running_mean.mul_(1 - momentum).add_(momentum * shifted)
        bn.running_var.mul_(1 - momentum).add_(momentum * variance)

    def _weight(self) -> Tensor:
        return self.param_module.weight  # type: ignore[return-value]

    def _gamma(self) -> Any:
        return self.bn.weight if self.bn.weight is not None else 1.0

    def _beta(self) -> Any:
        return self.bn.bias if self.bn.bias is not None else 0.0

    def _sigma(self) -> Tensor:
        variance: Any = self.bn.running_var
        return torch.sqrt(variance.detach() + self.bn.eps)

    def _quantized(self, parameter: Any) -> Any:
        return parameter if self.param_quant_fn is None or parameter is None else self.param_quant_fn(parameter)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        own = self.param_module
        if f"{prefix}param_module.bias" in state_dict and own.bias is None and bool(self.folded):
            # The saved model was folded: its bias must find a place here.
            beta = self.bn.bias
            fresh = nn.Parameter(torch.zeros_like(self.bn.running_mean))
            own.bias = beta if isinstance(beta, nn.Parameter) else fresh
        self.frozen = bool(self.folded)
        tracked = state_dict.get(f"{prefix}bn.num_batches_tracked")
        if tracked is not None:
            self._batches = int(tracked)

    def extra_repr(self) -> str:
        """When the batch norm is frozen."""
        return "frozen" if self.frozen else f"freeze_bn_delay={self.freeze_bn_delay}"
