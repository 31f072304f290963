"""AdaRound: whether each weight is rounded up or down is learned from calibration data (layer 2)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, CalibrationError, LifecycleError, listed
from distiller_ng.quantization.calibration_batches import CalibrationBatches, CalibrationData
from distiller_ng.quantization.input_moments import InputMoments, moments_size
from distiller_ng.quantization.ptq_layers import dequantized_weight, quantized_input, quantized_layers, set_bias_
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper

__all__ = ["AdaRoundReport", "adaptive_rounding", "adaround_"]

logger = logging.getLogger(__name__)

_GAMMA, _ZETA = -0.1, 1.1  # the stretch of the sigmoid, so that it reaches 0 and 1
_BETAS = (20.0, 2.0)  # how sharply decisions are pushed apart, at the start and the end
_REGULARIZATION = 3.0  # relative to the error of rounding to nearest
_MEMORY = 1 << 29  # bytes of moments that are gathered in one pass over the data
_GROUPS = 4  # passes at least, so that later layers see what earlier ones became
_DAMPING = 1e-3  # of the mean squared input, added to each


@dataclass(frozen=True)
class AdaRoundReport:
    """What :func:`adaround_` did. ``ratio``: for each layer the error of its output on the calibration data, as a
    fraction of that of rounding to nearest. ``skipped``: ``{layer: reason}``.
    """

    ratio: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: {ratio:.3f} of the error of rounding to nearest" for name, ratio in self.ratio.items()]
        return "\n".join(lines + [f"{name}: rounded to nearest, {why}" for name, why in self.skipped.items()])


def adaround_(
    model: nn.Module,
    calibration_data: CalibrationData,
    *,
    layers: Iterable[str] | None = None,
    iterations: int = 500,
    learning_rate: float = 0.02,
    warm_up: float = 0.2,
    correct_bias: bool = True,
    samples: int | None = 256,
    time_limit_s: float | None = None,
    seed: int = 0,
) -> AdaRoundReport:
    """Choose for every weight of a *prepared* model whether it is rounded up or down, layer by layer; in place.

    ``model``: prepared by :class:`PostTrainLinearQuantizer` with ``save_fp_weights=True``. ``calibration_data``: a
    loader or a list of batches, of which the first ``samples`` are used; no labels are needed. ``layers`` names the
    layers to treat (all). ``warm_up``: the fraction of ``iterations`` before decisions are pushed to 0 or 1.
    ``correct_bias`` lets the layer's bias make good for the change of its mean output, and then only the variance of
    the error counts. ``time_limit_s``: layers whose turn comes later stay rounded to nearest. ``seed`` breaks ties.

    Rounding to nearest minimises the change of the weights, not that of the output. Here ``w = s * (floor(w / s) + h)``
    with ``h = clip(1.2 * sigmoid(v) - 0.1, 0, 1)`` minimises ``|X w - X w_fp|^2 + lambda * sum(1 - |2 h - 1|^beta)``
    with beta annealed from 20 to 2, and ends with ``h`` 0 or 1. The squared error is computed from the second moments
    of the layer's quantized input, which do not grow with the data: memory is ``4 k^2`` bytes a layer, with at most
    512 MiB at a time (layers that need more wait for the next pass over the data).

    Source: M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort, "Up or Down? Adaptive Rounding for
    Post-Training Quantization", https://arxiv.org/abs/2004.10568. The activation behind the layer is not part of the
    objective, and the error is that on the quantized input.

    Weights 0.5 and 0.5, step 1, inputs that are always equal: one goes up, the other down, and the output is exact.

    Raises :class:`LifecycleError` for a model that is not prepared or did not keep its floating point weights,
    :class:`ArgumentError` for settings that cannot be, :class:`TargetError` for names of ``layers`` that are none,
    :class:`CalibrationError` for NaN. Running it again starts from the weights as they are rounded then. ::

        quantizer = PostTrainLinearQuantizer(model, ..., save_fp_weights=True)
        quantizer.prepare_model(example)
        print(adaround_(quantizer.model, calibration_loader))
    """
    _check(iterations, learning_rate, warm_up)
    chosen = quantized_layers(model, layers)
    batches = CalibrationBatches.of(calibration_data, model, limit=samples)
    report = AdaRoundReport()
    wanted = {name: one for name, one in chosen.items() if _has_floats(name, one) and _can_round(name, one, report)}
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    generator = torch.Generator().manual_seed(seed)
    for group in _groups(wanted):
        if deadline is not None and time.monotonic() > deadline:
            report.skipped.update(dict.fromkeys(group, "the time was up"))
            continue
        moments = _gathered(model, group, batches)
        for name, wrapper in group.items():
            if moments[name].is_empty:
                report.skipped[name] = "it did not run on the calibration data"
            elif deadline is not None and time.monotonic() > deadline:
                report.skipped[name] = "the time was up"
            else:
                settings = (iterations, learning_rate, warm_up, correct_bias)
                report.ratio[name] = _round_layer_(name, wrapper, moments.pop(name), settings, generator)
                logger.debug("%s: %.3f of the error of rounding to nearest", name, report.ratio[name])
    return report


def adaptive_rounding(
    weight: Tensor,
    moments: Tensor,
    scale: Tensor,
    qmin: int,
    qmax: int,
    *,
    iterations: int = 500,
    learning_rate: float = 0.02,
    warm_up: float = 0.2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Integers ``qmin .. qmax``, each the floor or the ceiling of ``weight / scale``, with a small ``d H d``.

    ``weight``: ``[G, C, k]``. ``moments``: ``H``, ``[G, k, k]``. ``scale``: the step, ``[G, C, 1]``. Never worse than
    rounding to nearest by that measure: where the search is, a row keeps that.
    """
    place = weight / scale
    floor = torch.floor(place)
    nearest = torch.round(place).clamp(qmin, qmax)
    before = _row_errors(nearest * scale - weight, moments)
    normal = weight.numel() / before.sum().clamp(min=1e-30)
    fraction = (place - floor).clamp(1e-4, 1 - 1e-4)
    v = -torch.log((_ZETA - _GAMMA) / (fraction - _GAMMA) - 1)
    if generator is not None:  # equal weights with equal inputs would move alike for ever
        v += 1e-3 * torch.randn(v.shape, generator=generator).to(v)
    first, second = torch.zeros_like(v), torch.zeros_like(v)
    for step in range(iterations):
        gradient = _gradient(v, weight, floor, scale, moments, (qmin, qmax), normal)
        progress = (step / iterations - warm_up) / (1 - warm_up)
        if progress > 0:
            gradient += _push(v, _BETAS[1] + (_BETAS[0] - _BETAS[1]) * 0.5 * (1 + math.cos(math.pi * progress)))
        gradient *= _slope(v)
        first.mul_(0.9).add_(gradient, alpha=0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = learning_rate / (1 - 0.9 ** (step + 1))
        v.addcdiv_(first, (second / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8), value=-size)
    rounded = (floor + (_soft(v) >= 0.5)).clamp(qmin, qmax)
    better = _row_errors(rounded * scale - weight, moments) < before
    return torch.where(better[:, :, None], rounded, nearest)


def _soft(v: Tensor) -> Tensor:
    return torch.sigmoid(v).mul_(_ZETA - _GAMMA).add_(_GAMMA).clamp_(0, 1)


def _slope(v: Tensor) -> Tensor:
    """Derivative of :func:`_soft`."""
    s = torch.sigmoid(v)
    stretched = s * (_ZETA - _GAMMA) + _GAMMA
    return (_ZETA - _GAMMA) * s * (1 - s) * ((stretched > 0) & (stretched < 1))


def _gradient(
    v: Tensor, weight: Tensor, floor: Tensor, scale: Tensor, moments: Tensor, limits: tuple[int, int], normal: Tensor
) -> Tensor:
    """Of the normalized squared error, with respect to ``h``."""
    integers = floor + _soft(v)
    inside = (integers >= limits[0]) & (integers <= limits[1])
    change = integers.clamp_(*limits) * scale - weight
    return torch.matmul(change, moments).mul_(scale * inside).mul_(2 * normal)


def _push(v: Tensor, beta: float) -> Tensor:
    """Gradient of the regularizer with respect to ``h``."""
    u = 2 * _soft(v) - 1
    return u.abs().pow_(beta - 1).mul_(u.sign()).mul_(-2 * beta * _REGULARIZATION)


def _row_errors(change: Tensor, moments: Tensor) -> Tensor:
    """``d H d`` of each row: ``[G, C]``."""
    return (torch.matmul(change, moments) * change).sum(dim=2)


@torch.no_grad()
def _round_layer_(
    name: str,
    wrapper: RangeLinearQuantParamLayerWrapper,
    moments: InputMoments,
    settings: tuple[int, float, float, bool],
    generator: torch.Generator,
) -> float:
    iterations, learning_rate, warm_up, correct_bias = settings
    layer = wrapper.wrapped_module
    original: Tensor = wrapper._buffers["float_weight"]  # type: ignore[assignment]
    groups = int(getattr(layer, "groups", 1))
    h = moments.covariance if correct_bias else moments.second
    if not bool(h.isfinite().all()):
        raise CalibrationError(f"{name} sees NaN or infinite values on the calibration data")
    h = h + torch.eye(h.shape[1], dtype=h.dtype, device=h.device) * h.diagonal(dim1=1, dim2=2).mean() * _DAMPING
    weight = original.reshape(groups, -1, h.shape[1]).to(h.dtype)
    step = wrapper.w_scale.to(h).reciprocal()
    scale = (
        step.reshape(groups, -1, 1) if step.numel() > 1 else step.reshape(1, 1, 1).expand(groups, weight.shape[1], 1)
    )
    # Distiller's zero point is subtracted: integers are stored without it, so the limits move.
    shift = float(wrapper.w_zero_point.reshape(-1)[0])
    low, high = (int(limit + shift) for limit in wrapper.wts_quant_settings.q_range)
    before = _row_errors(dequantized_weight(wrapper).reshape_as(weight).to(weight) - weight, h).sum()
    integers = adaptive_rounding(
        weight, h, scale, low, high, iterations=iterations, learning_rate=learning_rate, warm_up=warm_up,
        generator=generator,
    )  # fmt: skip
    values = integers * scale
    after = _row_errors(values - weight, h).sum()
    moved = ((values - weight) * moments.mean[:, None, :].to(weight)).sum(dim=2).reshape(-1)
    old: Tensor = layer.weight  # type: ignore[assignment]
    old.data.copy_((integers if wrapper.quantizes_activations else values).reshape(old.shape))
    original.copy_(values.reshape(original.shape))  # what the integers are derived from when scales are set again
    if correct_bias:
        bias = layer.bias
        set_bias_(wrapper, -moved if bias is None else bias.detach() - moved)  # type: ignore[operator]
    return float(after / before.clamp(min=1e-30)) if float(before) > 0 else 1.0


# -- gathering --------------------------------------------------------------------------------------------------------


def _groups(
    wanted: dict[str, RangeLinearQuantParamLayerWrapper],
) -> list[dict[str, RangeLinearQuantParamLayerWrapper]]:
    """Layers whose moments are gathered together: several groups, none above the memory."""
    most = max(1, math.ceil(len(wanted) / _GROUPS))
    groups: list[dict[str, RangeLinearQuantParamLayerWrapper]] = []
    size = 0
    for name, wrapper in wanted.items():
        needed = moments_size(wrapper.wrapped_module)
        if not groups or len(groups[-1]) >= most or size + needed > _MEMORY:
            groups.append({})
            size = 0
        groups[-1][name] = wrapper
        size += needed
    return groups


def _gathered(
    model: nn.Module, group: dict[str, RangeLinearQuantParamLayerWrapper], batches: CalibrationBatches
) -> dict[str, InputMoments]:
    moments = {name: InputMoments() for name in group}
    handles = []
    for name, wrapper in group.items():

        def hook(
            module: nn.Module,
            args: tuple[Tensor, ...],
            name: str = name,
            wrapper: RangeLinearQuantParamLayerWrapper = wrapper,
        ) -> None:
            moments[name].add(wrapper.wrapped_module, quantized_input(wrapper, args[0]))

        handles.append(wrapper.register_forward_pre_hook(hook))
    try:
        batches.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return moments


# -- checks -----------------------------------------------------------------------------------------------------------


def _check(iterations: int, learning_rate: float, warm_up: float) -> None:
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ArgumentError(
            f"iterations must be a whole number from 1 on, got {iterations!r}", argument=("iterations",)
        )
    if not 0 < learning_rate < math.inf:
        raise ArgumentError(f"learning_rate must be above 0, got {learning_rate!r}", argument=("learning_rate",))
    if not 0 <= warm_up < 1:
        raise ArgumentError(f"warm_up is a fraction from 0 to below 1, got {warm_up!r}", argument=("warm_up",))


def _has_floats(name: str, wrapper: RangeLinearQuantParamLayerWrapper) -> bool:
    if "float_weight" not in wrapper._buffers:
        raise LifecycleError(
            f"{listed([name])} did not keep its floating point weight: prepare the model with "
            "PostTrainLinearQuantizer(..., save_fp_weights=True)"
        )
    return True


def _can_round(name: str, wrapper: RangeLinearQuantParamLayerWrapper, report: AdaRoundReport) -> bool:
    layer = wrapper.wrapped_module
    why = ""
    if not InputMoments.supports(layer):
        why = f"{type(layer).__name__} is not covered"
    elif not bool((wrapper.w_zero_point == wrapper.w_zero_point.reshape(-1)[0]).all()):
        why = "its channels have different zero points"
    elif moments_size(layer) > _MEMORY:
        why = f"its {layer.weight[0].numel()} inputs would need {moments_size(layer) >> 20} MiB"  # type: ignore[index]
    elif "base_b_q" in wrapper._buffers:
        why = "it was quantized without calibration statistics"
    if why:
        report.skipped[name] = why
    return not why
