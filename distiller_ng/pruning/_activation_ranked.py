"""Base of the pruners that rank filters by the activations they produce (layer 2)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import CalibrationError, TargetError
from distiller_ng.graph.module_flow import FlowRecorder, leaf_modules, observe_module_flow
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.statistics import RunningMean
from distiller_ng.pruning._activation_points import ActivationPoint, point_by_flow, point_by_name
from distiller_ng.pruning._observing import ObservingPruner, Store, channels_second, forget_compiled_code, uncompiled
from distiller_ng.pruning._ranked import FilterScorePruner, GroupDependency
from distiller_ng.pruning._structures import FilterGroup
from distiller_ng.pruning.base import Scope, Target
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["ActivationRankedFilterPruner"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class ActivationRankedFilterPruner(ObservingPruner, FilterScorePruner):
    """Ranks filters by a statistic of the feature map each produces, averaged over an epoch, every element alike.

    The activation of the weight ``layer1.0.conv1.weight`` is read from the module ``layer1.0.relu1`` if there is one;
    else from the first activation module behind the layer (through norms and dropout), found by following the tensors
    of one forward pass; else from the ReLU of what the layer, or the last norm behind it, returns.
    """

    def __init__(
        self,
        name: str,
        group_type: FilterGroup,
        desired_sparsity: float | None = None,
        weights: str | Sequence[str] = (),
        group_dependency: GroupDependency | None = None,
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        arguments = (group_type, desired_sparsity, weights, group_dependency)
        super().__init__(name, *arguments, schedule=schedule, scope=scope, pattern=pattern)
        self._points: dict[str, ActivationPoint] = {}

    @abstractmethod
    def statistic(self, activation: Tensor) -> Tensor:
        """One value for each channel ``[C]`` of an activation ``[N, C, ...]``."""

    @abstractmethod
    def score(self, statistic: Tensor) -> Tensor:
        """What the mean statistic ``[C]`` says about each filter: the lowest are pruned."""

    def check_parameter(self, name: str, parameter: Tensor, target: Target) -> None:
        """Only weights have filters that make feature maps."""
        super().check_parameter(name, parameter, target)
        if not name.endswith(".weight") and name != "weight":
            message = f"{type(self).__name__} needs the weight of a convolution or linear layer, {name!r} is none"
            raise TargetError(message, argument=target.argument)

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Every target must be the weight of a convolution or linear layer."""
        super().check(window, parameters)
        self._check_layers(leaf_modules(parameters.model))

    def _check_layers(self, modules: Mapping[str, nn.Module]) -> None:
        for name in self.names:
            if not isinstance(modules.get(_layer_of(name)), _LAYERS):
                message = f"{_layer_of(name)!r} is no convolution or linear layer, and {type(self).__name__} needs one"
                raise TargetError(message, argument=self._bound[name].argument)

    def bind(self, parameters: ParameterIndex, *, strict: bool = True) -> list[str]:
        """As every pruner's; where to look is found again."""
        self._points = {}
        return super().bind(parameters, strict=strict)

    def scores(self, name: str, ctx: StepContext) -> Tensor | None:
        """From the last observed epoch."""
        store = self.observed(name, ctx)
        if store is None:
            return None
        mean = store.value  # type: ignore[attr-defined]
        filters = ctx.parameters[name].shape[0]
        if mean.numel() != filters:
            point = self._points.get(name)
            raise CalibrationError(
                f"{name!r} has {filters} filters, but the activation watched for it"
                f"{f' ({point.module})' if point else ''} has {mean.numel()} channels"
            )
        return self.score(mean).to(ctx.parameters[name].device)

    # -- observing --------------------------------------------------------------------------------------------------

    def new_store(self) -> Store:
        """A mean over all elements."""
        return RunningMean()

    def watch(self, model: nn.Module, example_inputs: tuple[Any, ...] | None) -> None:
        """Hook each activation; where its place is not known yet, the first forward pass (or one now) shows it."""
        modules = leaf_modules(model)
        self._check_layers(modules)
        for name in self.names:
            known = self._points.pop(name, None)
            still_there = known is not None and known.module in modules
            point = known if still_there else point_by_name(_layer_of(name), modules)
            if point is not None:
                self._points[name] = point
        unknown = [name for name in self.names if name not in self._points]
        if unknown and example_inputs is not None:
            flow = observe_module_flow(model, example_inputs)
            self._points.update({name: point_by_flow(_layer_of(name), modules, flow) for name in unknown})
            unknown = []
        for name, point in self._points.items():
            self._hook_point(name, point, modules)
        if unknown:
            self._learn(unknown, model, modules)

    def _hook_point(self, name: str, point: ActivationPoint, modules: Mapping[str, nn.Module]) -> None:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._record(name, module.training, point.value(output), modules)

        self.hook(modules[point.module], record)

    def _record(self, name: str, training: bool, activation: Tensor, modules: Mapping[str, nn.Module]) -> None:
        store = self.entry(name, training)
        if isinstance(store, RunningMean):
            with torch.no_grad():
                last = isinstance(modules[_layer_of(name)], nn.Linear)
                values = channels_second(activation, channels_last=last)
                store.update(self.statistic(values), values.numel())

    def _learn(self, names: Sequence[str], model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        """Follow the next forward pass, count its activations, and hook the places found."""
        recorder = FlowRecorder(model, keep_outputs=True)
        recorder.start()

        def finish(module: nn.Module, args: Any, output: Any) -> None:
            handle.remove()
            flow = recorder.stop()
            for name in names:
                point = self._points[name] = point_by_flow(_layer_of(name), modules, flow)
                for value in recorder.outputs.get(point.module, ()):
                    self._record(name, modules[point.module].training, point.value(value), modules)
                self._hook_point(name, point, modules)
            recorder.outputs.clear()
            forget_compiled_code()

        handle = model.register_forward_hook(uncompiled(finish))
        self.when_stopped(handle.remove)
        self.when_stopped(recorder.remove)


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]
