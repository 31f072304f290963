"""Putting a quantizer's parts into its model: replacements, parameters, the optimizer's groups (layer 2)."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from distiller_ng.ops.modules import has_parts
from distiller_ng.quantization._activations import set_bypass
from distiller_ng.quantization._configuration import QuantizerConfig, mark
from distiller_ng.quantization._control import QuantizerControl
from distiller_ng.quantization._replacement import ReplaceFn, Replacements
from distiller_ng.quantization._weights import ParamToQuantize, QuantizedLayer, is_quantizable
from distiller_ng.quantization.q_utils import FP_BKP_PREFIX, QBits

__all__ = ["QuantizerPreparation"]


class QuantizerPreparation(QuantizerControl):
    """The part of :class:`Quantizer` that changes the model, once everything was checked."""

    optimizer: Optimizer | None
    train_with_fp_copy: bool
    module_qbits_map: OrderedDict[str, QBits]
    module_overrides_map: OrderedDict[str, dict[str, Any]]
    modules_processed: OrderedDict[nn.Module, tuple[str, nn.Module | None]]
    replacement_factory: dict[type[nn.Module], ReplaceFn | None]
    replacement_blacklist: list[type[nn.Module]]
    default_repalcement_fn: ReplaceFn | None

    @property
    def config(self) -> QuantizerConfig:
        """What a checkpoint must hold to prepare a fresh model in the same way."""
        return QuantizerConfig(type(self).__name__, None)

    def _add_qbits_entry(self, name: str, module: nn.Module, qbits: QBits) -> None:
        self.module_qbits_map[name] = qbits if is_quantizable(module) else QBits(qbits.acts, None, None)

    def replacement_for(self, module: nn.Module) -> ReplaceFn | None:
        """The function that replaces modules of this one's class, or of the nearest class it inherits from."""
        for kind in type(module).__mro__:
            if kind in self.replacement_factory:
                return self.replacement_factory[kind]
        return self.default_repalcement_fn

    def _replace_modules(self) -> None:
        changes = Replacements(self._replacement, self.replacement_blacklist)
        changes.visit(self.model)
        for change in changes:
            if not has_parts(change.original):
                change.module.train(change.original.training)
            self._place(change.module)
        changes.apply_()
        for second, first in changes.shared:
            warnings.warn(
                f"Module '{second}' references to same module as '{first}'. Replacing with reference the same wrapper.",
                UserWarning,
                stacklevel=5,
            )
        for change in changes:
            if change.original in self.modules_processed:
                continue  # the second name of a shared module
            self.modules_processed[change.original] = (change.name, change.module)
            mark(change.module, self.config)
            set_bypass(change.module, change.original)
            if not has_parts(change.original) and any(change.module.children()):
                bits = self.module_qbits_map[change.name]
                for inside, module in change.module.named_modules():
                    self._add_qbits_entry(f"{change.name}.{inside}" if inside else change.name, module, bits)
                self.module_qbits_map[change.name] = QBits(bits.acts, None, None)

    def _place(self, module: nn.Module) -> None:
        """Move a new module to where the model is, if that is one place; in a model of float64 it is that, too."""
        parameters = list(self.model.parameters())
        if len({parameter.device for parameter in parameters}) == 1:
            module.to(parameters[0].device)
        if parameters and all(parameter.dtype == torch.float64 for parameter in parameters):
            module.double()

    def _replacement(self, module: nn.Module, name: str) -> nn.Module:
        """What stands in place of ``module``: itself, or what the replacement function makes of it."""
        bits, settings = self.module_qbits_map[name], self.module_overrides_map[name]
        function = self.replacement_for(module)
        if function is None or (bits.acts is None and bits.wts is None and not settings):
            return module
        return function(module, name, self.module_qbits_map, **settings)

    def _parameters(self) -> list[tuple[nn.Module, str, str, int]]:
        """``(module, its name, parameter, bits)`` of every parameter that gets bits."""
        found = []
        for name, module in self.model.named_modules():
            bits = self.module_qbits_map.get(name, QBits(None, None, None))
            for parameter, wanted in (("weight", bits.wts), ("bias", bits.bias)):
                folds = isinstance(module, QuantizedLayer) and module.folded(parameter) is not None
                if wanted is not None and (folds or module._parameters.get(parameter) is not None):
                    found.append((module, name, parameter, wanted))
        return found

    def _find_parameters(self) -> None:
        """Fill ``params_to_quantize`` from the prepared model."""
        if not self.train_with_fp_copy:
            self.params_to_quantize = [ParamToQuantize(m, n, p, p, bits) for m, n, p, bits in self._parameters()]
            return
        self.params_to_quantize = [
            ParamToQuantize(layer, name, FP_BKP_PREFIX + parameter, parameter, how.num_bits)
            for name, layer in self.quantized_layers().items()
            for parameter, how in layer.quantized_parameters.items()
            if layer.full_precision(parameter) is not None
        ]

    def _extend_optimizer(self) -> None:
        if self.optimizer is None:
            return
        groups = self.optimizer.param_groups
        known = {id(parameter) for group in groups for parameter in group["params"]}
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in self._get_new_optimizer_params_groups():
            missing: list[Any] = [parameter for parameter in group["params"] if id(parameter) not in known]
            if groups and "param_names" in groups[0]:  # made with model.named_parameters()
                missing = [(names[id(parameter)], parameter) for parameter in missing]
            if missing:
                self.optimizer.add_param_group({**group, "params": missing})

    def _get_new_optimizer_params_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer with the parameters this quantizer brought into the model."""
        return []
