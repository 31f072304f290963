"""Greedy search of post-training quantization: layer by layer, the way of clipping that keeps the score highest
(layer 2).

In the order the model runs them, each layer is quantized in every way that is tried, behind the layers that were
decided before and with the rest in floating point. What scored highest is kept, and the statistics of the layers to
come are collected again, now behind quantized ones.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from distiller_ng.data_loggers.collecting import collect_quant_stats
from distiller_ng.data_loggers.quant_stats_file import QuantStats, load_quant_stats
from distiller_ng.errors import ArgumentError, CalibrationError, did_you_mean
from distiller_ng.graph.bn_folding import fold_batch_norms, foldable_pairs
from distiller_ng.graph.inputs import as_example_inputs
from distiller_ng.graph.summary_graph import SummaryGraph
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.modules import make_non_parallel_copy
from distiller_ng.quantization.post_train import PostTrainLinearQuantizer
from distiller_ng.quantization.ptq_fusion import fold_statistics_
from distiller_ng.quantization.ptq_overrides_file import Override, load_overrides, save_overrides
from distiller_ng.quantization.ptq_undo import Undo
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper
from distiller_ng.quantization.range_linear_wrappers import RangeLinearQuantWrapper

__all__ = [
    "input_override_generator",
    "layers_quant_order",
    "load_overrides",
    "module_override_generator",
    "ptq_greedy_search",
    "save_overrides",
]

logger = logging.getLogger(__name__)

OverrideFn: TypeAlias = "Callable[[nn.Module], Iterator[Mapping[str, Any]]]"
EvalFn: TypeAlias = "Callable[[nn.Module], Any]"

_CLIP_MODES = ("NONE", "AVG", "GAUSS", "LAPLACE")
_WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def layers_quant_order(model: nn.Module, dummy_input: Any, recurrent: bool = False) -> list[str]:
    """Names of the modules of ``model`` in the order they run; raises :class:`GraphError` when it cannot be traced."""
    return SummaryGraph(model, dummy_input).layers_topological_order(recurrent)


def module_override_generator(module: nn.Module) -> Iterator[Override]:
    """What is tried for a layer: 8 bits and each way of clipping its output."""
    for clip in _CLIP_MODES:
        override: Override = {"clip_acts": clip, "bits_weights": 8, "bits_activations": 8}
        if isinstance(module, _WEIGHT_LAYERS):
            override["bits_bias"] = 32
        yield override


def input_override_generator(module: nn.Module) -> Iterator[Override]:
    """What is tried for the input of a layer that reads the model's own input: each way of clipping it."""
    for clip in _CLIP_MODES:
        yield {"clip_acts": clip}


def ptq_greedy_search(
    model: nn.Module,
    dummy_input: Any,
    eval_fn: EvalFn,
    calib_eval_fn: EvalFn | None = None,
    recurrent: bool = False,
    act_stats: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    args: argparse.Namespace | Mapping[str, Any] | None = None,
    module_override_gen_fn: OverrideFn | None = None,
    input_override_gen_fn: OverrideFn | None = None,
    fold_sequences: bool = True,
    *,
    save_dir: str | os.PathLike[str] | None = None,
) -> tuple[nn.Module, OrderedDict[str, Override]]:
    """Quantize ``model`` with the overrides that make ``eval_fn(model)`` highest, found layer by layer.

    Args:
        model: quantized in place.
        dummy_input: what the model is called with, to trace it.
        eval_fn: the score of a model in eval mode, such as its top-1.
        calib_eval_fn: runs a model on the calibration data; ``eval_fn`` if it is left out.
        recurrent: accepted from Distiller's callers: a traced graph has no loops.
        act_stats: calibration statistics of ``model``; collected if they are left out.
        args: of ``add_post_train_quant_args``: ``arch`` names the file, ``qe_no_quant_layers`` are left out,
            ``qe_per_channel``, ``qe_mode_acts`` and ``qe_mode_wts`` (``ASYMMETRIC_SIGNED``) are used.
        module_override_gen_fn: yields what to try for a module: entries of a quantizer's ``overrides``.
        input_override_gen_fn: the same for the inputs of layers that read the model's input.
        fold_sequences: fold batch norms first.
        save_dir: folder of ``<arch>.ptq_greedy_search.yaml``; without one it is written into the working directory
            where ``args`` name an architecture, else not at all.

    Layers that are not tried stay in floating point. The result is the quantized model and its overrides::

        model, overrides = ptq_greedy_search(model, images[:1], top1, save_dir="results")
        quantizer = PostTrainLinearQuantizer(fresh, bits_activations=None, bits_parameters=None,
                                             overrides=load_overrides("results/model.ptq_greedy_search.yaml"), ...)

    Raises :class:`ArgumentError` for an ``eval_fn`` that returns no number, names of layers there are not, and
    overrides that cannot be; the model is as it was then.
    """
    options = dict(args if isinstance(args, Mapping) else vars(args) if args is not None else {})
    undo, quantized = Undo(unwrap(model)), None
    try:
        search = _Greedy(model, dummy_input, eval_fn, calib_eval_fn or eval_fn, options)
        search.begin(act_stats, fold_sequences)
        for name in search.order():
            search.decide(name, module_override_gen_fn, input_override_gen_fn)
        quantized = search.finish()
    finally:
        if quantized is None:
            undo()
    arch = options.get("arch")
    if save_dir is not None or arch:
        path = Path(save_dir or ".") / f"{arch or 'model'}.ptq_greedy_search.yaml"
        logger.info("overrides: %s", save_overrides(path, search.best))
    return quantized, search.best


class _Greedy:
    """What was decided, and the statistics as they are behind it."""

    def __init__(
        self, model: nn.Module, dummy_input: Any, eval_fn: EvalFn, calib_eval_fn: EvalFn, options: dict[str, Any]
    ) -> None:
        if not callable(eval_fn) or not callable(calib_eval_fn):
            raise ArgumentError("eval_fn must be a function of the model", argument=("eval_fn",))
        self.model, self.dummy_input = model, dummy_input
        self.eval_fn, self.calib_eval_fn, self.options = eval_fn, calib_eval_fn, options
        self.stats: QuantStats = {}
        self.best: OrderedDict[str, Override] = OrderedDict()
        self.undecided: list[str] = []
        self.wrappers: dict[str, RangeLinearQuantWrapper] = {}
        self.running: list[str] = []
        self.firsts: set[str] = set()

    def begin(self, act_stats: Any, fold_sequences: bool) -> None:
        """Fold batch norms, get statistics, and find out what can be quantized."""
        self.model.eval()
        pairs = []
        if act_stats is not None:
            self.stats = load_quant_stats(act_stats)
        if fold_sequences:
            chains = foldable_pairs(self.model, self.dummy_input)
            pairs = [(canonical_name(chain.names[0]), canonical_name(chain.names[1])) for chain in chains]
            fold_batch_norms(self.model, self.dummy_input)
        fold_statistics_(self.stats, pairs)
        logger.info("score in floating point: %.4f", self._score(self.model))
        if not self.stats:
            logger.info("collecting calibration statistics")
            self.stats = self._collected(self.model)
        probe = self._prepared({}, everything=True)
        found = ((canonical_name(name), module) for name, module in probe.model.named_modules())
        self.wrappers = {name: module for name, module in found if isinstance(module, RangeLinearQuantWrapper)}
        self.running = self._running_order(probe.model)
        adjacency = SummaryGraph(self.model, self.dummy_input).adjacency_map()
        self.firsts = {canonical_name(name) for name, entry in adjacency.items() if not entry.predecessors}

    def _running_order(self, model: nn.Module) -> list[str]:
        """The wrappers that run, functions among them, in the order of their first calls."""
        called: dict[str, None] = {}
        handles = [
            wrapper.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
            for name, wrapper in self.wrappers.items()
        ]
        inputs = as_example_inputs(self.dummy_input)
        with torch.no_grad():
            model(*inputs.args, **inputs.kwargs)
        for handle in handles:
            handle.remove()
        return list(called)

    def order(self) -> list[str]:
        """Layers to decide on, in the order they run; raises :class:`ArgumentError` for unknown layers to leave out."""
        left_out = [canonical_name(name) for name in self.options.get("qe_no_quant_layers") or ()]
        for name in left_out:
            if name not in self.wrappers:
                message = f"{name!r} is no layer that can be quantized. {did_you_mean(name, self.wrappers)}"
                raise ArgumentError(message, argument=("qe_no_quant_layers",))
        self.undecided = [name for name in self.running if name not in left_out]
        return list(self.undecided)

    def decide(self, name: str, modules_fn: OverrideFn | None, inputs_fn: OverrideFn | None) -> None:
        """Try every override for one layer and keep the best."""
        module = self.wrappers[name].wrapped_module
        candidates = [dict(one) for one in (modules_fn or module_override_generator)(module)]
        override, score = self._best_of(name, candidates)
        if (
            name in self.firsts
            and override is not None
            and isinstance(self.wrappers[name], RangeLinearQuantParamLayerWrapper)
        ):
            inputs = [{**override, "input_overrides": {0: dict(one)}}
                      for one in (inputs_fn or input_override_generator)(module)]  # fmt: skip
            override, score = self._best_of(name, inputs, override, score)
        self.undecided.remove(name)
        if override is None:
            logger.info("%s: nothing to try, stays in floating point", name)
            return
        self.best[name] = override
        logger.info("%s: %s, score %.4f", name, override, score)
        self._recalibrate()

    def _best_of(
        self, name: str, candidates: list[Override], best: Override | None = None, best_score: float = -math.inf
    ) -> tuple[Override | None, float]:
        for candidate in candidates:
            try:
                prepared = self._prepared({**self.best, name: candidate})
            except CalibrationError as error:
                logger.info("%s cannot be quantized with %s: %s", name, candidate, error)
                continue
            score = self._score(prepared.model)
            logger.debug("%s with %s: %.4f", name, candidate, score)
            if best is None or score > best_score:
                best, best_score = candidate, score
        return best, best_score

    def _recalibrate(self) -> None:
        """Statistics of the layers to come, as they are behind those that are quantized now."""
        known = [name for name in self.undecided if name in self.stats]
        if known:
            current = self._prepared(self.best).model
            self.stats |= self._collected(current, known)

    def finish(self) -> nn.Module:
        """Quantize the model itself."""
        quantizer = self._quantizer(self.model, self.best)
        quantized = quantizer.prepare_model(self.dummy_input).eval()
        logger.info("score quantized: %.4f", self._score(quantized))
        return quantized

    def _collected(self, model: nn.Module, names: list[str] | None = None) -> QuantStats:
        with torch.no_grad():
            alone = make_non_parallel_copy(model).eval()
            return collect_quant_stats(alone, lambda model: self.calib_eval_fn(model), modules_to_collect=names)

    def _prepared(
        self, overrides: Mapping[str, Mapping[str, Any]], *, everything: bool = False
    ) -> PostTrainLinearQuantizer:
        quantizer = self._quantizer(copy.deepcopy(self.model), overrides, everything=everything)
        quantizer.prepare_model(self.dummy_input).eval()
        return quantizer

    def _quantizer(
        self, model: nn.Module, overrides: Mapping[str, Mapping[str, Any]], *, everything: bool = False
    ) -> PostTrainLinearQuantizer:
        bits, value = 8 if everything else None, self.options.get
        return PostTrainLinearQuantizer(
            model,
            bits_activations=bits,
            bits_parameters=bits,
            bits_accum=value("qe_bits_accum") or 32,
            overrides=copy.deepcopy(dict(overrides)) or None,
            mode={
                "activations": value("qe_mode_acts") or "ASYMMETRIC_SIGNED",
                "weights": value("qe_mode_wts") or "ASYMMETRIC_SIGNED",
            },
            per_channel_wts=bool(value("qe_per_channel")),
            model_activation_stats=copy.deepcopy(self.stats),
        )

    def _score(self, model: nn.Module) -> float:
        with torch.no_grad():
            result = self.eval_fn(model)
        try:
            value = float(result)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(
                f"eval_fn must return one number, the score to make large; it returned {type(result).__name__}",
                argument=("eval_fn",),
            ) from error
        return -math.inf if math.isnan(value) else value
