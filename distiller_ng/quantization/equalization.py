"""Cross-layer equalization: channels of similar range, by factors that cancel between layers (layer 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.graph.channel_scaling import ScalingGroup, scaling_groups
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.graph.trace import evaluating
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.quantization.calibration_batches import CalibrationBatches, CalibrationData

__all__ = ["ChannelClip", "EqualizationReport", "equalize_", "replace_relu6_"]

_MOST = 1e4  # a factor, or one over it, is no larger
_PASSES = 20


@dataclass(frozen=True)
class EqualizationReport:
    """What :func:`equalize_` did: each group of layers with the factors ``[C]`` its producers were multiplied by, and
    what was absorbed from biases, ``{layer: [C]}``.
    """

    factors: tuple[tuple[ScalingGroup, Tensor], ...]
    absorbed: dict[str, Tensor]

    def __str__(self) -> str:
        lines = []
        for group, factor in self.factors:
            readers = ", ".join(name for name, _ in group.consumers)
            lines.append(
                f"{', '.join(group.producers)} -> {readers}: {group.channels} channels, factors "
                f"{float(factor.min()):.3g} .. {float(factor.max()):.3g}"
            )
        return "\n".join(lines) or "no layers to equalize"


@torch.no_grad()
def equalize_(
    model: nn.Module,
    example_inputs: ExampleInputsLike,
    calibration_data: CalibrationData | None = None,
    *,
    strength: float = 0.5,
    absorb_bias: bool = False,
    per_channel_weights: bool = True,
) -> EqualizationReport:
    """Give channels similar ranges, in place, in a floating point model that is *not prepared* yet.

    The model computes what it did, up to rounding: where only operators that commute with positive factors are between
    layers (ReLU, pooling, zero padding, residual additions; see :func:`scaling_groups`), channel ``c`` of all layers
    that make a tensor is multiplied by ``f_c`` and divided by it in all that read it. Batch norms may be folded
    (:func:`fold_batch_norms`) or not; their weight and bias, and a layer norm's, take factors as well. Nothing is done
    across ReLU6, whose limit does not scale, unless :func:`replace_relu6_` gave every channel a limit of its own.

    Without ``calibration_data`` the ranges are those of the weights, ``f = r_read^(1 - a) / r_made^a`` with ``r_made``
    the largest ``|w|`` of a channel's rows, ``r_read`` of its columns and ``a`` the ``strength``: 0.5 makes both
    ``sqrt(r_made r_read)``. Passes repeat until nothing changes. With it, ``r_made`` is the largest ``|x|`` that the
    channel takes on the data, so that tensors quantized with one scale lose less in small channels; 1 makes all
    channels' ranges equal. With ``per_channel_weights`` depthwise layers do not count as readers: their columns have
    scales of their own.

    ``absorb_bias`` (needs ``calibration_data``): where there is only a ReLU between a layer and linear layers or
    convolutions without padding, the smallest value of a channel after the ReLU is subtracted from the bias and added,
    through the weights, to the next; exact for inputs within the range of the data.

    Source: M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization
    and Bias Correction", https://arxiv.org/abs/1906.04721, sections 4.1 and 4.1.3; by activations: G. Xiao et al.,
    "SmoothQuant", https://arxiv.org/abs/2211.10438.

    Rows of range ``[1, 4]`` and columns of range ``[16, 1]`` get factors ``[4, 0.5]`` and both become ``[4, 2]``.

    Raises :class:`ArgumentError` for settings that cannot be, :class:`GraphError` when the model cannot be traced,
    :class:`CalibrationError` for NaN; the model is as it was then. ::

        report = equalize_(model, torch.randn(1, 3, 224, 224), calibration_loader)
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise ArgumentError(f"strength is a number from 0 to 1, got {strength!r}", argument=("strength",))
    if absorb_bias and calibration_data is None:
        raise ArgumentError("absorb_bias needs calibration_data to see the ranges", argument=("absorb_bias",))
    batches = None if calibration_data is None else CalibrationBatches.of(calibration_data, model)
    groups = scaling_groups(model, example_inputs)
    modules = {canonical_name(name): module for name, module in unwrap(model).named_modules()}
    ranges = None if batches is None else _observed(model, modules, groups, batches)
    factors = [torch.ones(group.channels, dtype=torch.float64) for group in groups]
    equalizer = _Equalizer(modules, strength, per_channel_weights)
    for _ in range(_PASSES if ranges is None else 1):
        largest = 0.0
        for number, group in enumerate(groups):
            factor = equalizer.factors(group, None if ranges is None else ranges[number][1])
            equalizer.apply_(group, factor)
            factors[number] = factors[number] * factor.cpu()
            largest = max(largest, float((factor - 1).abs().max()))
            if ranges is not None:
                ranges[number] = (ranges[number][0] * factor, ranges[number][1] * factor)
        if largest < 1e-3:
            break
    absorbed: dict[str, Tensor] = {}
    if absorb_bias and ranges is not None:
        for group, (low, _) in zip(groups, ranges, strict=True):
            absorbed |= _absorb_(modules, group, low)
    return EqualizationReport(tuple(zip(groups, factors, strict=True)), absorbed)


class ChannelClip(nn.Module):
    """``min(max(x, 0), limit)`` with a limit for each channel (dimension 1): a ReLU6 that equalization can scale.

    ``ChannelClip(3)`` does what ``nn.ReLU6()`` does for ``[N, 3, ...]``.
    """

    channel_limits: Tensor

    def __init__(self, channels: int, limit: float = 6.0) -> None:
        super().__init__()
        self.register_buffer("channel_limits", torch.full((channels,), float(limit)))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` cut off."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return torch.minimum(torch.relu(x), self.channel_limits.to(x.dtype).reshape(shape))


def replace_relu6_(model: nn.Module, example_inputs: ExampleInputsLike) -> list[str]:
    """Put :class:`ChannelClip` in place of every ``nn.ReLU6`` that is called with one number of channels; their names.

    The model computes the same. A runtime has to compute the limits of channels then, which a plain ReLU6 leaves to
    saturation. Raises :class:`ArgumentError` when the model does not run on ``example_inputs``.
    """
    seen: dict[str, set[int]] = {}
    inner = unwrap(model)
    found = {name: module for name, module in inner.named_modules() if isinstance(module, nn.ReLU6)}
    handles = []
    for name, module in found.items():

        def hook(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            seen.setdefault(name, set()).add(args[0].shape[1] if args[0].dim() > 1 else 0)

        handles.append(module.register_forward_pre_hook(hook))
    try:
        with evaluating(inner), torch.no_grad():
            CalibrationBatches.of([example_inputs], inner).run(inner)
    finally:
        for handle in handles:
            handle.remove()
    replaced = []
    for name, channels in seen.items():
        count = next(iter(channels)) if len(channels) == 1 else 0
        if count:
            device = next((p.device for p in inner.parameters()), torch.device("cpu"))
            inner.set_submodule(name, ChannelClip(count).to(device).train(found[name].training))
            replaced.append(canonical_name(name))
    return replaced


class _Equalizer:
    def __init__(self, modules: dict[str, nn.Module], strength: float, per_channel: bool) -> None:
        self.modules, self.strength, self.per_channel = modules, strength, per_channel

    def factors(self, group: ScalingGroup, made: Tensor | None) -> Tensor:
        """``[C]``, float64; 1 where a channel is never used."""
        rows = self._rows(group) if made is None else made
        read = self._columns(group)
        if read is None:
            read, strength = torch.ones_like(rows), 1.0 if made is not None else 0.0
        else:
            strength = self.strength
        used = (rows > 0) & (read > 0) & rows.isfinite() & read.isfinite()
        factor = read.clamp(min=1e-30) ** (1 - strength) / rows.clamp(min=1e-30) ** strength
        if made is not None and bool(used.any()):  # the largest channel keeps its range
            factor = factor * (rows[used].max() / (rows * factor)[used].max())
        return torch.where(used, factor.clamp(1 / _MOST, _MOST), torch.ones_like(factor))

    def apply_(self, group: ScalingGroup, factor: Tensor) -> None:
        for name in group.producers:
            module = self.modules[name]
            weight, bias = module._parameters["weight"], module._parameters.get("bias")
            if weight is not None:
                _multiply_(weight, factor.reshape(-1, *[1] * (weight.dim() - 1)))
            if bias is not None:
                _multiply_(bias, factor)
        for name, repeat in group.consumers:
            weight = self.modules[name]._parameters["weight"]
            if weight is not None:
                columns = _by_group(self.modules[name], weight)
                inverse = (
                    factor.reciprocal().repeat_interleave(repeat).reshape(columns.shape[0], 1, columns.shape[2], 1)
                )
                _multiply_(columns, inverse)
        for name in group.limits:
            limits: Tensor = self.modules[name].channel_limits  # type: ignore[assignment]
            _multiply_(limits, factor)

    def _rows(self, group: ScalingGroup) -> Tensor:
        found = []
        for name in group.producers:
            weight: Tensor = self.modules[name].weight  # type: ignore[assignment]
            found.append(weight.detach().double().abs().reshape(group.channels, -1).amax(dim=1))
        return torch.stack(found).amax(dim=0)

    def _columns(self, group: ScalingGroup) -> Tensor | None:
        found = []
        for name, repeat in group.consumers:
            module = self.modules[name]
            weight: Tensor = module.weight.detach()  # type: ignore[operator]
            if self.per_channel and weight.dim() > 2 and weight.shape[1] == 1 and getattr(module, "groups", 1) > 1:
                continue
            columns = _by_group(module, weight).double().abs().amax(dim=(1, 3)).reshape(-1)
            found.append(columns.reshape(group.channels, repeat).amax(dim=1))
        return torch.stack(found).amax(dim=0) if found else None


def _multiply_(target: Tensor, factor: Tensor) -> None:
    target.copy_((target.double() * factor.to(target.device)).to(target.dtype))


def _by_group(layer: nn.Module, weight: Tensor) -> Tensor:
    """A view ``[G, outputs of a group, inputs of a group, kernel]``."""
    groups = int(getattr(layer, "groups", 1))
    return weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _observed(
    model: nn.Module, modules: dict[str, nn.Module], groups: list[ScalingGroup], batches: CalibrationBatches
) -> list[tuple[Tensor, Tensor]]:
    """The smallest value and the largest magnitude of every channel of each group's tensors, as they are read."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name in {name for group in groups for name, _ in group.consumers}:

        def hook(layer: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            low, high = _ends(layer, args[0])
            if name in found:
                low, high = torch.minimum(low, found[name][0]), torch.maximum(high, found[name][1])
            found[name] = (low, high)

        handles.append(modules[name].register_forward_pre_hook(hook))
    try:
        with evaluating(model):
            batches.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return [_range_of(group, found) for group in groups]


def _ends(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each input of a layer, float64."""
    axis = x.dim() - 1 if isinstance(layer, nn.Linear) else x.dim() - layer.weight.dim() + 1  # type: ignore[operator]
    rows = x.detach().movedim(axis, 0).flatten(1).double()
    return rows.amin(dim=1), rows.amax(dim=1)


def _range_of(group: ScalingGroup, found: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Smallest value and largest magnitude of each channel."""
    lows, highs = [], []
    for name, repeat in group.consumers:
        if name not in found:
            raise CalibrationError(f"{name} did not run on the calibration data")
        low, high = (end.reshape(group.channels, repeat) for end in found[name])
        lows.append(low.amin(dim=1))
        highs.append(torch.maximum(high.abs(), low.abs()).amax(dim=1))
    low, high = torch.stack(lows).amin(dim=0), torch.stack(highs).amax(dim=0)
    if not bool(high.isfinite().all()):
        raise CalibrationError(f"{group.consumers[0][0]} sees NaN or infinite values on the calibration data")
    return low, high


def _absorb_(modules: dict[str, nn.Module], group: ScalingGroup, low: Tensor) -> dict[str, Tensor]:
    """Move what a channel never falls below from the bias before the ReLU to the biases behind it."""
    bias = modules[group.producers[0]]._parameters.get("bias")
    consumers = [(modules[name], repeat) for name, repeat in group.consumers]
    amount = low.clamp(min=0)
    if not group.only_relu or bias is None or not bool((amount > 0).any()):
        return {}
    for layer, repeat in consumers:
        is_plain = isinstance(layer, nn.Linear) or all(one == 0 for one in getattr(layer, "padding", (1,)))
        if not is_plain or repeat > 1 or layer.bias is None:
            return {}
    bias.copy_((bias.double() - amount.to(bias.device)).to(bias.dtype))
    for layer, _ in consumers:
        weight: Tensor = layer.weight.detach().double()  # type: ignore[operator]
        columns = _by_group(layer, weight).sum(dim=3)  # [G, outputs, inputs]
        shift = (columns @ amount.reshape(columns.shape[0], -1, 1)).reshape(-1)
        target: Tensor = layer.bias  # type: ignore[assignment]
        target.copy_((target.double() + shift).to(target.dtype))
    return {group.producers[0]: amount}
