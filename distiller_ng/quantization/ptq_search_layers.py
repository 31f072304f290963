"""Where a search of quantization parameters starts: scales that are good for each layer on its own (layer 2).

A layer's scales are chosen by a clipping, or so that its output differs least, in an Lp norm, from what the layer
computes in floating point. Source: Y. Nahshan et al., *Loss Aware Post-training Quantization*,
https://arxiv.org/abs/1911.07190, section 4.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, CalibrationError, DistillerError, TargetError, did_you_mean, listed
from distiller_ng.names import canonical_name
from distiller_ng.quantization.post_train import PostTrainLinearQuantizer
from distiller_ng.quantization.ptq_search_inputs import LayerInputs
from distiller_ng.quantization.ptq_search_vector import SearchSpace
from distiller_ng.quantization.ptq_settings import QuantSettings
from distiller_ng.quantization.quant_params import ClipMode
from distiller_ng.quantization.range_linear_fake import RangeLinearEmbeddingWrapper
from distiller_ng.quantization.range_linear_output import OutputGrid
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper
from distiller_ng.quantization.range_linear_wrappers import RangeLinearQuantWrapper

__all__ = [
    "InitMode",
    "init_layer_linear_quant_params",
    "init_linear_quant_params",
    "l1_loss",
    "l2_loss",
    "l3_loss",
    "lp_loss",
    "minimize_",
    "optimize_for_layer",
    "parse_init_mode",
]

logger = logging.getLogger(__name__)

LossFn: TypeAlias = "Callable[[Tensor, Tensor], Tensor | float]"
InitMode: TypeAlias = "ClipMode | str | LossFn"
Method: TypeAlias = "str | Callable[..., Any]"


def lp_loss(x: Tensor, y: Tensor, p: float) -> Tensor:
    """``sum(abs(x - y) ** p) / n`` over all ``n`` elements, a scalar: ``[0, 2]`` and ``[1, 0]`` with p = 2 give 2.5.

    Raises :class:`ArgumentError` for tensors of different shapes.
    """
    if x.shape != y.shape:
        raise ArgumentError(f"the tensors to compare have the shapes {tuple(x.shape)} and {tuple(y.shape)}")
    return (x - y).abs().pow(p).sum() / max(x.numel(), 1)


def l1_loss(x: Tensor, y: Tensor) -> Tensor:
    """:func:`lp_loss` with p = 1."""
    return lp_loss(x, y, 1)


def l2_loss(x: Tensor, y: Tensor) -> Tensor:
    """:func:`lp_loss` with p = 2."""
    return lp_loss(x, y, 2)


def l3_loss(x: Tensor, y: Tensor) -> Tensor:
    """:func:`lp_loss` with p = 3."""
    return lp_loss(x, y, 3)


_LOSSES: dict[str, LossFn] = {"L1": l1_loss, "L2": l2_loss, "L3": l3_loss}
_CLIPPINGS = ("NONE", "AVG", "LAPLACE", "GAUSS")


def parse_init_mode(init_mode: InitMode) -> ClipMode | LossFn:
    """A clipping, or the loss between outputs that is minimised layer by layer.

    Names: ``NONE``, ``AVG``, ``LAPLACE``, ``GAUSS``, ``L1``, ``L2``, ``L3``. Raises :class:`ArgumentError` for others.
    """
    if isinstance(init_mode, ClipMode):
        name = init_mode.name
    elif callable(init_mode):
        return init_mode
    else:
        name = str(init_mode).upper()
    if name in _LOSSES:
        return _LOSSES[name]
    if name not in _CLIPPINGS:
        allowed = (*_CLIPPINGS, *_LOSSES)
        raise ArgumentError(
            f"init_mode must be one of {listed(allowed)}, or a function of two outputs, got {init_mode!r}. "
            f"{did_you_mean(name, allowed)}",
            argument=("init_mode",),
        )
    return ClipMode[name]


def init_linear_quant_params(
    quantizer: PostTrainLinearQuantizer,
    original_model: nn.Module,
    eval_fn: Callable[[nn.Module], Any] | None,
    dummy_input: Any = None,
    init_mode: InitMode = ClipMode.NONE,
    init_mode_method: Method | None = None,
    search_clipping: bool = False,
) -> OrderedDict[str, Any]:
    """Set the scales (or ranges) of every layer of a prepared model as ``init_mode`` says; all of them by name.

    ``original_model`` is the model in floating point, batch norms folded; ``eval_fn(model)`` runs it, once, to see the
    layers' inputs where ``init_mode`` is a loss. ``init_mode_method``: of ``scipy.optimize.minimize`` (Powell).
    Layers whose inputs are no tensors keep their ranges. Raises :class:`ArgumentError` as :func:`parse_init_mode`.
    """
    mode, inputs = parse_init_mode(init_mode), None
    names = [name for name, _ in quantizer._wrappers()]
    if not isinstance(mode, ClipMode):
        inputs = LayerInputs.collect(original_model, quantizer.model, names, eval_fn, dummy_input)
    found: OrderedDict[str, Any] = OrderedDict()
    for number, name in enumerate(names):
        try:
            found |= init_layer_linear_quant_params(
                quantizer, original_model, name, mode, init_mode_method, eval_fn, search_clipping, inputs=inputs
            )
        except CalibrationError as error:
            logger.info("%s keeps its range: %s", name, error)
        logger.debug("layer %d of %d (%s) is initialized", number + 1, len(names), name)
    return found


def init_layer_linear_quant_params(
    quantizer: PostTrainLinearQuantizer,
    original_model: nn.Module,
    layer_name: str,
    init_mode: InitMode = ClipMode.NONE,
    init_mode_method: Method | None = None,
    eval_fn: Callable[[nn.Module], Any] | None = None,
    search_clipping: bool = False,
    *,
    inputs: LayerInputs | None = None,
) -> OrderedDict[str, Any]:
    """Set the scales (or ranges) of one layer of a prepared model as ``init_mode`` says; they, by name.

    ``inputs`` are the layers' inputs where they were collected already; see :func:`init_linear_quant_params` for the
    rest. Raises :class:`TargetError` for a layer that is not quantized, :class:`CalibrationError` where the layer's
    inputs are not known.
    """
    mode, name = parse_init_mode(init_mode), canonical_name(layer_name)
    wrappers = dict(quantizer._wrappers())
    if name not in wrappers:
        raise TargetError(f"{layer_name!r} is no quantized layer. {did_you_mean(name, wrappers)}")
    layer = wrappers[name]
    if isinstance(mode, ClipMode):
        _clip_(quantizer, name, layer, mode)
        space = SearchSpace({name: layer}, search_clipping)
        return space.as_dict(space.origin)
    space = SearchSpace({name: layer}, search_clipping)
    if not len(space):
        return OrderedDict()
    if inputs is None:
        inputs = LayerInputs.collect(original_model, quantizer.model, [name], eval_fn)
    loss = _OutputLoss(layer, inputs, name, mode)
    return optimize_for_layer(layer, loss, space, init_mode_method, search_clipping)


def optimize_for_layer(
    layer: OutputGrid,
    quantized_layer_loss_fn: Callable[[OutputGrid], float],
    init_qp_dict: SearchSpace | Mapping[str, Any] | None = None,
    init_mode_method: Method | None = None,
    search_clipping: bool = False,
) -> OrderedDict[str, Any]:
    """Set the scales (or ranges) of ``layer`` so that ``quantized_layer_loss_fn(layer)`` is lowest; they, by name.

    ``init_qp_dict`` are scales or ranges to start from, by the layer's own names (``output_scale``, ``w_scale``); the
    layer's present ones if it is left out. The result is never worse than the start. Raises :class:`ArgumentError` for
    names the layer does not have.
    """
    space = init_qp_dict if isinstance(init_qp_dict, SearchSpace) else _space_of(layer, init_qp_dict, search_clipping)

    def objective(vector: Any) -> float:
        space.set(vector)
        return float(quantized_layer_loss_fn(layer))

    options = {"xtol": 1e-2, "ftol": 1e-3, "maxiter": 5} if _is_powell(init_mode_method) else {}
    best = minimize_(objective, space.origin, init_mode_method, options)
    return space.set(best)


def _space_of(layer: OutputGrid, start: Mapping[str, Any] | None, search_clipping: bool) -> SearchSpace:
    for own, value in (start or {}).items():
        if search_clipping and not own.endswith("_scale"):
            low, high = torch.as_tensor(value).reshape(-1).tolist()
            layer.set_clipping(own, low, high)
        else:
            layer.set_linear_quant_param(own, value)
    return SearchSpace({"": layer}, search_clipping)


def _is_powell(method: Method | None) -> bool:
    return method is None or (isinstance(method, str) and method.lower() == "powell")


def minimize_(objective: Callable[[Any], float], start: Any, method: Method | None, options: Mapping[str, Any]) -> Any:
    """The best vector that ``scipy.optimize.minimize`` looked at; ``start`` if none was better."""
    from scipy import optimize

    best_score, best = objective(start), start

    def watched(vector: Any) -> float:
        nonlocal best_score, best
        score = objective(vector)
        if score < best_score:
            best_score, best = score, vector.copy()
        return score

    try:
        optimize.minimize(watched, start, method=method or "Powell", options=dict(options))
    except ValueError as error:
        if isinstance(error, DistillerError):
            raise
        raise ArgumentError(f"scipy.optimize.minimize: {error}", argument=("method",)) from error
    return best


class _OutputLoss:
    """How far a wrapper's output is from what its module computes in floating point, on inputs that are not quantized.

    What quantizes the inputs belongs to the layers before.
    """

    def __init__(self, layer: OutputGrid, inputs: LayerInputs, name: str, loss: LossFn) -> None:
        self._kept, self._settings, self._loss = inputs.of(name), inputs.settings(name), loss
        self._in_place = any(getattr(module, "inplace", False) for module in layer.modules())
        reference = inputs.reference(name)
        module = layer.wrapped_module if reference is None else reference
        with torch.no_grad():
            expected = module(*self._inputs(), **self._settings)
        if not isinstance(expected, Tensor) or not expected.is_floating_point():
            raise CalibrationError(f"the output of {type(module).__name__} is no tensor")
        self._expected = expected.clamp(min=0) if layer.fuses_relu else expected

    def _inputs(self) -> tuple[Any, ...]:
        return tuple(one.clone() for one in self._kept) if self._in_place else self._kept

    def __call__(self, layer: OutputGrid) -> float:
        wrapper = layer if isinstance(layer, RangeLinearQuantWrapper) else None
        before = wrapper is not None and wrapper.quantize_inputs
        if wrapper is not None:
            wrapper.quantize_inputs = False
        try:
            with torch.no_grad():
                output = layer(*self._inputs(), **self._settings)
        finally:
            if wrapper is not None:
                wrapper.quantize_inputs = before
        return float(self._loss(output.as_subclass(Tensor).to(self._expected.dtype), self._expected))


def _clip_(quantizer: PostTrainLinearQuantizer, name: str, layer: OutputGrid, mode: ClipMode) -> None:
    """Give the layer the scales of a clipping; NONE leaves those it was prepared with."""
    if mode is ClipMode.NONE:
        return
    entry = (quantizer.model_activation_stats or {}).get(name)
    if layer.preset_act_stats and entry:
        settings = replace(layer.output_quant_settings, clip_mode=mode, clip_half_range=layer.fuses_relu)
        scale, zero_point = settings.of_stats(entry["output"], layer.scale_approx_mult_bits)
        layer.set_linear_quant_param("output_scale", scale)
        layer.set_linear_quant_param("output_zero_point", zero_point)
    weights = _weight_settings(layer)
    if weights is None:
        return
    if mode is ClipMode.AVG and weights.per_channel:
        return  # a single channel has no average over a batch
    clipped = replace(weights, clip_mode=mode, clip_half_range=False)
    kept = layer.get_buffer("float_weight")
    scale, zero_point = clipped.of_tensor(kept, channel_dim=getattr(layer, "channel_dim", 0))
    layer.set_linear_quant_param("w_scale", scale)
    layer.set_linear_quant_param("w_zero_point", zero_point)


def _weight_settings(layer: OutputGrid) -> QuantSettings | None:
    if not isinstance(layer, RangeLinearQuantParamLayerWrapper | RangeLinearEmbeddingWrapper):
        return None
    if "float_weight" not in layer._buffers or layer.wts_quant_settings.num_bits is None:
        return None
    return layer.wts_quant_settings
