"""Loss-aware post-training quantization: a search for the scales of all layers together (layer 2).

Scales that are best for each layer alone are not best for the model, whose loss depends on how their errors add up.
Starting from good scales for each layer, a numeric method moves all of them so that the model's loss falls. Source: Y.
Nahshan et al., *Loss Aware Post-training Quantization*, https://arxiv.org/abs/1911.07190.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from distiller_ng.data_loggers.collecting import collect_quant_stats
from distiller_ng.data_loggers.quant_stats_file import load_quant_stats
from distiller_ng.errors import ArgumentError, listed
from distiller_ng.graph.bn_folding import fold_batch_norms
from distiller_ng.names import unwrap
from distiller_ng.ops.modules import make_non_parallel_copy
from distiller_ng.quantization.post_train import PostTrainLinearQuantizer
from distiller_ng.quantization.ptq_search_inputs import get_input_for_layer
from distiller_ng.quantization.ptq_search_layers import (
    InitMode,
    init_layer_linear_quant_params,
    init_linear_quant_params,
    l1_loss,
    l2_loss,
    l3_loss,
    lp_loss,
    optimize_for_layer,
    parse_init_mode,
)
from distiller_ng.quantization.ptq_search_loop import EvalFn, Score, Search, minimizer_arguments
from distiller_ng.quantization.ptq_search_vector import SearchSpace, quant_params_dict2vec, quant_params_vec2dict
from distiller_ng.quantization.ptq_undo import Undo
from distiller_ng.quantization.quant_params import ClipMode
from distiller_ng.quantization.range_linear_output import OutputGrid, range_of

__all__ = [
    "cmdline_args_to_dict",
    "get_input_for_layer",
    "init_layer_linear_quant_params",
    "init_linear_quant_params",
    "l1_loss",
    "l2_loss",
    "l3_loss",
    "lp_loss",
    "optimize_for_layer",
    "ptq_coordinate_search",
    "quant_params_dict2vec",
    "quant_params_vec2dict",
    "validate_quantization_settings",
]

logger = logging.getLogger(__name__)

_ARGUMENTS = (
    *("method", "maxiter", "maxfev", "basinhopping", "basinhopping_niter", "init_mode", "init_method"),
    "search_clipping",
)


def cmdline_args_to_dict(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :func:`ptq_coordinate_search` that ``--lapq-...`` flags set.

    >>> cmdline_args_to_dict(argparse.Namespace(lapq_maxiter=2, lapq_eval_size=0.5))
    {'maxiter': 2}
    """
    return {name: getattr(args, f"lapq_{name}") for name in _ARGUMENTS if hasattr(args, f"lapq_{name}")}


def ptq_coordinate_search(
    quantizer: PostTrainLinearQuantizer,
    dummy_input: Any,
    eval_fn: EvalFn,
    test_fn: Callable[[nn.Module], Mapping[str, float]] | None = None,
    method: str | Callable[..., Any] = "Powell",
    maxiter: int | None = None,
    maxfev: int | None = None,
    basinhopping: bool = False,
    basinhopping_niter: int = 100,
    init_mode: InitMode = ClipMode.NONE,
    init_method: str | Callable[..., Any] | None = None,
    search_clipping: bool = False,
    minimizer_kwargs: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> tuple[nn.Module, OrderedDict[str, Any]]:
    """Quantize the quantizer's model with the scales that make ``eval_fn(model)`` lowest; ``(model, scales by name)``.

    Args:
        quantizer: not prepared yet. Its ``clip_acts`` is ignored; without calibration statistics they are collected
            while ``eval_fn`` runs the model in floating point.
        dummy_input: what the model is called with, to trace it.
        eval_fn: the loss of a model, a number; it is called with the model in eval mode, often.
        test_fn: figures to log whenever a step found something better, ``{"top1": 91.2}``.
        method: of ``scipy.optimize.minimize``: its name, or a function as it takes them.
        maxiter: steps at most; one step of Powell's method moves every scale once.
        maxfev: calls of ``eval_fn`` by the search at most; with ``basinhopping`` in each hop, where the method knows
            ``maxfev``.
        basinhopping: restart from random places near the best, ``basinhopping_niter`` times.
        init_mode: where the search begins: ``NONE``, ``AVG``, ``LAPLACE``, ``GAUSS`` (clippings), ``L1``, ``L2``,
            ``L3`` (each layer's output differs least in that norm), or a function of two outputs.
        init_method: the method that finds ``L1``, ``L2`` and ``L3`` starts; None is Powell.
        search_clipping: search both ends of each range instead of scales. Needed for asymmetric weights, and for
            asymmetric activations whose range does not begin at 0.
        minimizer_kwargs: more arguments of ``scipy.optimize.minimize``, over the others.
        seed: of basin hopping.

    The best of everything that was evaluated is kept, so the result is never worse than the start. Per-channel scales
    of a weight move together, by one factor. The result by name goes into ``quantizer.update_linear_quant_params`` or,
    with ``search_clipping``, ``update_clipping_parameters``. Example::

        quantizer = PostTrainLinearQuantizer(model, bits_activations=4, bits_parameters=4)
        model, scales = ptq_coordinate_search(quantizer, images[:1], lambda model: loss(model), init_mode="L3")

    Raises :class:`ArgumentError` for a quantizer that is prepared already, settings that cannot be searched, and an
    ``eval_fn`` that returns no number; the model is as it was then.
    """
    _check(quantizer, dummy_input, eval_fn, init_mode)
    score = Score(eval_fn)
    original = _folded_copy(quantizer.model, dummy_input)
    logger.info("loss in floating point: %.4f", score(original))
    _collect_missing_stats(quantizer, score)
    keeps_weights = _configure(quantizer)
    undo, best = Undo(quantizer.model), None
    try:
        model = quantizer.prepare_model(dummy_input).eval()
        validate_quantization_settings(quantizer, search_clipping)
        logger.info("loss quantized, not initialized: %.4f", score(model))
        init_linear_quant_params(quantizer, original, score, dummy_input, init_mode, init_method, search_clipping)
        space = _space(quantizer, search_clipping)
        search = Search(space, score, model, test_fn, None if basinhopping else maxfev)
        search.start()
        wanted = minimizer_arguments(method, maxiter, maxfev if basinhopping else None, len(space), minimizer_kwargs)
        search.run(wanted, basinhopping_niter if basinhopping else None, seed)
        best = space.set(search.best)
    finally:
        if best is None:
            undo()
    for _, wrapper in quantizer._wrappers():
        _settle(wrapper, drop_weights=not keeps_weights)
    logger.info("loss after %d evaluations: %.4f", search.evaluations, search.best_score)
    return model, best


def validate_quantization_settings(quantizer: PostTrainLinearQuantizer, search_clipping: bool) -> None:
    """Refuse settings of a prepared model that a search of scales alone cannot move.

    Raises :class:`ArgumentError` for asymmetric weights, and for asymmetric activations whose range does not begin or
    end at 0 (as it does where a ReLU is fused), unless ``search_clipping``.
    """
    if search_clipping:
        return
    weights, activations = [], []
    for name, wrapper in quantizer._wrappers():
        settings = getattr(wrapper, "wts_quant_settings", None)
        if settings is not None and settings.num_bits is not None and not settings.quant_mode.is_symmetric:
            weights.append(name)
        output = wrapper.output_quant_settings
        if wrapper.preset_act_stats and not output.quant_mode.is_symmetric and not wrapper.fuses_relu:
            ends = range_of(output, wrapper.output_scale, wrapper.output_zero_point)
            if not bool((ends == 0).any()):
                activations.append(name)
    for what, names in (("weights", weights), ("activations without a ReLU", activations)):
        if names:
            raise ArgumentError(
                f"asymmetric {what} have two ends to search ({listed(names, limit=4)}): use a symmetric mode for them, "
                "or search_clipping=True",
                argument=("search_clipping",),
            )


# -- preparing ---------------------------------------------------------------------------------------------------------


def _check(quantizer: Any, dummy_input: Any, eval_fn: Any, init_mode: InitMode) -> None:
    if not isinstance(quantizer, PostTrainLinearQuantizer):
        raise ArgumentError(
            f"quantizer must be a PostTrainLinearQuantizer, got {type(quantizer).__name__}", argument=("quantizer",)
        )
    if quantizer.is_prepared:
        raise ArgumentError(
            "the quantizer's model is prepared already: give a quantizer whose prepare_model was not called",
            argument=("quantizer",),
        )
    if dummy_input is None:
        raise ArgumentError("dummy_input is needed: what the model is called with", argument=("dummy_input",))
    if not callable(eval_fn):
        raise ArgumentError(f"eval_fn must be a function of the model, got {eval_fn!r}", argument=("eval_fn",))
    parse_init_mode(init_mode)


def _folded_copy(model: nn.Module, dummy_input: Any) -> nn.Module:
    return fold_batch_norms(copy.deepcopy(unwrap(model)).eval(), dummy_input)


def _collect_missing_stats(quantizer: PostTrainLinearQuantizer, score: Score) -> None:
    if quantizer.model_activation_stats is not None or not _quantizes_activations(quantizer):
        return
    logger.info("collecting calibration statistics")
    stats = collect_quant_stats(make_non_parallel_copy(quantizer.model).eval(), score)
    quantizer.model_activation_stats = load_quant_stats(stats)


def _quantizes_activations(quantizer: PostTrainLinearQuantizer) -> bool:
    return any(bits.acts is not None for bits in quantizer.module_qbits_map.values())


def _configure(quantizer: PostTrainLinearQuantizer) -> bool:
    """Let the wrappers keep weights in floating point and not clip; whether the user wanted such weights, too."""
    defaults = quantizer._factory.defaults
    keeps = bool(defaults["save_fp_weights"])
    defaults |= {"save_fp_weights": True, "also_clip_weights": True, "clip_acts": ClipMode.NONE, "clip_n_stds": None}
    for settings in quantizer.module_overrides_map.values():
        if "save_fp_weights" in settings:
            settings["save_fp_weights"] = True
    return keeps


def _settle(wrapper: OutputGrid, *, drop_weights: bool) -> None:
    """Put the weight on its final grid and forget the weight in floating point, unless the user wants it."""
    readjust = getattr(wrapper, "_readjust", None)
    if readjust is not None and bool(wrapper.force_readjust):
        readjust()
    if drop_weights and "float_weight" in wrapper._buffers:
        del wrapper._buffers["float_weight"]
        vars(wrapper)["save_fp_weights"] = False


def _space(quantizer: PostTrainLinearQuantizer, search_clipping: bool) -> SearchSpace:
    space = SearchSpace(dict(quantizer._wrappers()), search_clipping)
    if not len(space):
        raise ArgumentError("there is nothing to search: no layer has a scale that calibration or weights gave")
    return space
