"""Post-training linear quantization of a whole model (layer 2)."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from distiller_ng.errors import ArgumentError, ScheduleWarning, listed
from distiller_ng.graph.bn_folding import fold_batch_norms, foldable_pairs
from distiller_ng.graph.summary_graph import SummaryGraph
from distiller_ng.names import canonical_name
from distiller_ng.ops.linear_quantization import LinearQuantMode
from distiller_ng.quantization._configuration import constructor_arguments, quantization_of
from distiller_ng.quantization._functions import isolate_, release_
from distiller_ng.quantization._plan import QuantPlan
from distiller_ng.quantization._planning import Planner
from distiller_ng.quantization._replacement import ReplaceFn
from distiller_ng.quantization.base import QUANTIZERS, Quantizer
from distiller_ng.quantization.ptq_arguments import quantizer_from_args
from distiller_ng.quantization.ptq_fusion import (
    Fusion,
    clip_statistics,
    fold_statistics_,
    functional_operations,
    fusions,
)
from distiller_ng.quantization.ptq_layout import dummy_input_of, layout_of, stats_of
from distiller_ng.quantization.ptq_notes import plan_notes
from distiller_ng.quantization.ptq_older_order import older_order
from distiller_ng.quantization.ptq_parameters import LinearQuantParameters
from distiller_ng.quantization.ptq_parts import ModelParts, check_statistics, given_statistics
from distiller_ng.quantization.ptq_replacing import (
    NO_STATISTICS,
    WrapperFactory,
    is_wrappable,
    needs_no_statistics,
)
from distiller_ng.quantization.ptq_settings import Clip, Mode, ModuleQuantMode, QuantSettings, parse_clip
from distiller_ng.quantization.ptq_undo import Undo, leave_fast_paths_
from distiller_ng.quantization.quant_params import ClipMode
from distiller_ng.quantization.range_linear_fake import precision_of
from distiller_ng.quantization.range_linear_output import OutputGrid

__all__ = ["PostTrainLinearQuantizer"]


@QUANTIZERS.register("PostTrainLinearQuantizer", injected=("model",))
class PostTrainLinearQuantizer(LinearQuantParameters, Quantizer):
    """Quantizes a trained model; ``model_activation_stats`` (a calibration file or its content) give the ranges.

    Without statistics, ranges are found in each batch, and only convolutions, linear layers, matrix products and
    embeddings are quantized. ``bits_activations=None`` quantizes weights only, ``bits_parameters=None`` activations
    only. In the model, functions that ``forward`` calls become modules (``layer1.0.add``) and ``nn.LSTM`` or ``nn.GRU``
    those they are made of, batch norms are folded into the layers before them, a ReLU is taken into the module before
    it, and every module becomes a wrapper (``model.conv1.wrapped_module``). The model must be in eval mode to run.
    ``bits_parameters``: of weights. ``bits_accum``: of accumulators and biases. ``fp16``: deprecated, write
    ``fpq_module: 16``. ``overrides`` set for single modules the bits and ``mode``, ``per_channel_wts``, ``clip_acts``,
    ``clip_n_stds``, ``clip_half_range``, ``scale_approx_mult_bits``, ``input_overrides``,
    ``inputs_quant_auto_fallback``, ``fpq_module``, ``fake``, ``make_identity``, ``quantize_inputs``,
    ``save_fp_weights``, ``also_clip_weights``::

        quantizers:
          post_train:
            class: PostTrainLinearQuantizer
            bits_activations: 8
            bits_parameters: 8
            mode: {activations: ASYMMETRIC_UNSIGNED, weights: SYMMETRIC}
            per_channel_wts: true
            model_activation_stats: quantization_stats.yaml
            overrides:
              fc: {clip_acts: NONE, input_overrides: {0: {from_output: true}}}

    A linear layer with weight 1, statistics ``-1 .. 1`` for input and output, 8 bits: input 0.3 gives ``38 / 127.5``.
    Source: R. Krishnamoorthi, https://arxiv.org/abs/1806.08342; clipping: https://arxiv.org/abs/1810.05723.

    Raises :class:`ArgumentError` for settings that cannot be, :class:`CalibrationError` for statistics of another
    model; :meth:`prepare_model` leaves the model as it was when it raises.
    """

    def __init__(
        self,
        model: nn.Module,
        bits_activations: int | None = 8,
        bits_parameters: int | None = 8,
        bits_accum: int = 32,
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
        mode: Mode = LinearQuantMode.SYMMETRIC,
        clip_acts: Clip = ClipMode.NONE,
        per_channel_wts: bool = False,
        model_activation_stats: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        fp16: bool = False,
        clip_n_stds: float | None = None,
        clip_half_range: bool = False,
        scale_approx_mult_bits: int | None = None,
        inputs_quant_auto_fallback: bool = True,
        fpq_module: int | str | bool | None = None,
        save_fp_weights: bool = False,
        also_clip_weights: bool = False,
    ) -> None:
        if not isinstance(per_channel_wts, bool):
            overrides, per_channel_wts, model_activation_stats = older_order(
                overrides, per_channel_wts, model_activation_stats, fp16
            )
            fp16 = False
            given = {"overrides": overrides, "per_channel_wts": per_channel_wts, "mode": mode, "clip_acts": clip_acts}
            bits = (bits_activations, bits_parameters, bits_accum)
            self._arguments = constructor_arguments(type(self), (model, *bits), given)
        if not isinstance(fp16, bool):
            raise ArgumentError(f"fp16 must be true or false, got {fp16!r}", argument=("fp16",))
        if fp16:
            warnings.warn("fp16 is deprecated: use fpq_module=16", DeprecationWarning, stacklevel=2)
        self.mode, self.clip_acts = ModuleQuantMode.parse(mode), parse_clip(clip_acts)
        for bits, one in ((bits_activations, self.mode.activations), (bits_parameters, self.mode.weights)):
            QuantSettings(bits, one, self.clip_acts, clip_n_stds, clip_half_range)
        defaults = {
            "mode": self.mode,
            "per_channel_wts": per_channel_wts,
            "clip_acts": self.clip_acts,
            "clip_n_stds": clip_n_stds,
            "clip_half_range": clip_half_range,
            "scale_approx_mult_bits": scale_approx_mult_bits,
            "input_overrides": None,
            "inputs_quant_auto_fallback": inputs_quant_auto_fallback,
            "fp16": False,
            "fpq_module": precision_of(16 if fp16 else fpq_module),
            "fake": False,
            "make_identity": False,
            "quantize_inputs": True,
            "save_fp_weights": save_fp_weights,
            "also_clip_weights": also_clip_weights,
        }
        self._factory = WrapperFactory(defaults, bits_accum)
        self.model_activation_stats: dict[str, dict[str, Any]] | None = None
        if isinstance(model, nn.Module):
            if model_activation_stats is not None:
                self.model_activation_stats = given_statistics(model_activation_stats, model)
            self._parts = ModelParts(model, self.model_activation_stats, overrides)
        super().__init__(model, None, bits_activations, bits_parameters, bits_accum, overrides)

    @classmethod
    def from_args(cls, model: nn.Module, args: argparse.Namespace) -> PostTrainLinearQuantizer:
        """The quantizer that command-line arguments of ``add_post_train_quant_args`` describe.

        Raises :class:`ArgumentError` for flags that cannot go together, and what the constructor raises.
        """
        return quantizer_from_args(cls, model, args)

    # -- plan ----------------------------------------------------------------------------------------------------------

    def _assign_overrides(self) -> Planner:
        """Functions that the statistics name are there to be matched; without statistics, any that may exist."""
        if self.model_activation_stats is not None:
            with self._parts.shown():
                return super()._assign_overrides()
        possible = self._parts.possible(self._overrides.settings)
        with self._parts.shown(possible):
            planner = super()._assign_overrides()
        for name in possible:
            del self.module_qbits_map[name], self.module_overrides_map[name]
        return planner

    def plan(self, model: nn.Module | None = None) -> QuantPlan:
        """As every quantizer's; functions that the model calls and the parts of its recurrent layers are among the
        modules, as far as they are known.

        Functions are those that the statistics name; once the model is prepared, all. What stays in floating point has
        a note that says why.
        """
        with self._parts.shown():
            plan = super().plan(model)
        return plan.with_left(self._factory.left).with_notes(self._parts.notes())

    @property
    def quantizes_parameters(self) -> bool:
        """True: weights are quantized when the model is prepared."""
        return True

    def replacement_for(self, module: nn.Module) -> ReplaceFn | None:
        """The wrapper factory for everything that computes; without statistics for layers with weights and products."""
        if not is_wrappable(module) or isinstance(module, OutputGrid):
            return None
        if self.model_activation_stats is None and not needs_no_statistics(module):
            return None
        return self._factory

    def extra_notes(self) -> list[str]:
        """What stays in floating point because there are no statistics, and accumulators that are too narrow."""
        stats, bits = self.model_activation_stats, self._factory.num_bits_accum
        return plan_notes(self.model, self.module_qbits_map, self.mode, bits, has_stats=stats is not None)

    def _find_parameters(self) -> None:
        """Nothing is left to quantize once the model is prepared."""
        self.params_to_quantize = []

    @torch.no_grad()
    def prepare_model(self, dummy_input: Any = None) -> nn.Module:
        """Put the quantization into the model and return it; ``dummy_input`` (what the model is called with) is needed
        to trace it; ``model.input_shape`` serves where it is left out.

        Raises :class:`ArgumentError` without ``dummy_input`` (models with a bidirectional DistillerLSTM, which cannot
        be traced, excepted: no batch norm is folded then), :class:`GraphError` when tracing fails,
        :class:`LifecycleError` when called twice.
        """
        if self.layout and self.model_activation_stats is None:  # a checkpoint's
            self.model_activation_stats = stats_of(self.layout)
            self._parts = ModelParts(self.model, self.model_activation_stats, self.overrides)
        if dummy_input is None and not self._parts.cannot_be_traced:
            dummy_input = dummy_input_of(self.model, self.layout)
        if dummy_input is None and not self.is_prepared and not self._parts.cannot_be_traced:
            text = "what the model is called with, to see which module follows which: prepare_model(images)"
            raise ArgumentError(f"prepare_model needs dummy_input, {text}", argument=("dummy_input",))
        if is_wrappable(self.model):
            text = f"the model is a single {type(self.model).__name__}, which cannot be replaced in itself"
            raise ArgumentError(f"{text}: quantize nn.Sequential(model)", argument=("model",))
        if self.is_prepared or quantization_of(self.model) is not None:
            return super().prepare_model(dummy_input)
        undo = Undo(self.model)
        stats, layout = self.model_activation_stats, self.layout
        self.layout = layout_of(dummy_input, stats)
        try:
            self._place_parts(dummy_input)
            return super().prepare_model(dummy_input)
        except BaseException:
            undo()
            self._parts.forget()
            self.model_activation_stats, self.layout = stats, layout
            raise

    def _place_parts(self, dummy_input: Any) -> None:
        """Make the functions that the model calls its modules, with the bits and settings that overrides give them."""
        self._parts.place_(dummy_input)
        self._planner = planner = Planner.of(self.model, self._overrides)
        for name, module in self._parts.functions.items():
            key = planner.rules.get(name)
            bits, rest = ({}, {}) if key is None else self._split(key, self.overrides[key])
            self._add_qbits_entry(name, module, self.default_qbits._replace(**bits))
            self.module_overrides_map[name] = dict(rest)

    def _pre_prepare_model(self, dummy_input: Any) -> None:
        stats = self.model_activation_stats
        self._factory.stats = stats = None if stats is None else {name: dict(entry) for name, entry in stats.items()}
        self.model_activation_stats = stats
        if dummy_input is None:
            check_statistics(self.model, stats or {}, self.module_qbits_map if stats else {}, None)
            return
        adjacency = SummaryGraph(self.model, dummy_input).adjacency_map()
        pairs = [chain.names for chain in foldable_pairs(self.model, adjacency_map=adjacency)]
        fold_batch_norms(self.model, adjacency_map=adjacency)
        if pairs:
            adjacency = SummaryGraph(self.model, dummy_input).adjacency_map()
        self.adjacency_map = adjacency
        release_(self.model)
        computed = {canonical_name(entry.module) for entry in adjacency.values()}
        self._factory.constant = self._parts.called - computed
        self._factory.left.update(dict.fromkeys(functional_operations(self.model, adjacency), "not a module"))
        if stats is None:
            return
        check_statistics(self.model, stats, self.module_qbits_map, computed)
        fold_statistics_(stats, [(canonical_name(layer), canonical_name(norm)) for layer, norm in pairs])
        found = list(fusions(self.model, adjacency))
        clip_statistics(stats, found)
        self._factory.fused = {
            fusion.follower: fusion.producer for fusion in found if fusion.follower and self._takes_relu(fusion)
        }

    def _takes_relu(self, fusion: Fusion) -> bool:
        """Whether the producer becomes a wrapper that can do what the ``nn.ReLU`` module behind it does."""
        modules = {canonical_name(name): (name, module) for name, module in self.model.named_modules()}
        if fusion.kind != "Relu" or fusion.follower not in modules or fusion.producer not in modules:
            return False
        full, producer = modules[fusion.producer]
        settings = {**self._factory.defaults, **self.module_overrides_map[full]}
        return (
            isinstance(modules[fusion.follower][1], nn.ReLU)
            and self.module_qbits_map[full].acts is not None
            and self.replacement_for(producer) is not None
            and bool((self._factory.stats or {}).get(fusion.producer, {}).get("output"))
            and not isinstance(producer, nn.Embedding)
            and (settings["fake"] or not (settings["fp16"] or settings["fpq_module"]))
        )

    def _quantize_flows(self) -> None:
        leave_fast_paths_(self.model)
        if self._parts.functions:
            isolate_(self.model)
        missing = [name for name, why in self._factory.left.items() if why == NO_STATISTICS]
        if missing:
            warnings.warn(
                f"no statistics of {listed(missing, limit=4)}, which stay in floating point: they did not run during "
                "calibration, or the statistics are of a version that did not collect those of functions",
                ScheduleWarning,
                stacklevel=5,
            )
