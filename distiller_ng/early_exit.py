"""Early exits: classifiers on the way through a network, and stopping at the first that is sure enough (layer 5).

Source: S. Teerapittayanon, B. McDanel, H. T. Kung, "BranchyNet: Fast Inference via Early Exiting from Deep Neural
Networks", https://arxiv.org/abs/1709.01686.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, LifecycleError, TargetError, did_you_mean, listed
from distiller_ng.modules import BranchPoint
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.modules import model_setattr

__all__ = ["EarlyExitMgr", "ExitChoice", "Measure", "choose_exits", "early_exit_loss", "run_with_exits"]

Measure: TypeAlias = Literal["entropy", "confidence"]
_MEASURES = ("entropy", "confidence")


class EarlyExitMgr:
    """Puts exits into a model: small classifiers that read what a module inside it computes.

    The exits' results are ready after each forward pass of the model, which itself returns what it always did::

        manager = EarlyExitMgr()
        branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
        manager.attach_exits(model, [("layer1", branch)])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # after it: the exits have parameters
        for images, labels in loader:
            final = model(images)
            outputs = [*manager.get_exits_outputs(model), final]
            early_exit_loss(outputs, labels, criterion, [0.3]).backward()

    The manager holds nothing: the exits are :class:`~distiller_ng.modules.BranchPoint` modules of the model, found
    again in its copies.
    """

    def attach_exits(self, model: nn.Module, exits_def: Iterable[tuple[str, nn.Module]]) -> None:
        """Let each ``branch`` of the pairs ``(module name, branch)`` read the output of the module of that name.

        Parameters of the module get the prefix ``branched_module``: attach before loading a checkpoint with exits.
        Raises :class:`TargetError` for a name the model does not have, :class:`ArgumentError` for a branch that is no
        module and for a second exit in one place; the model is unchanged then.
        """
        bare, pairs = unwrap(model), list(exits_def)
        if not pairs:
            raise ArgumentError("no exits were given: [(module name, branch), ...]", argument=("exits_def",))
        modules = {canonical_name(name): module for name, module in bare.named_modules() if name}
        places: dict[str, nn.Module] = {}
        for position, (name, branch) in enumerate(pairs):
            place = canonical_name(name)
            if place not in modules:
                message = f"the model has no module {name!r}. {did_you_mean(place, modules)}"
                raise TargetError(message, argument=("exits_def", position))
            if not isinstance(branch, nn.Module):
                raise ArgumentError(f"the exit at {name!r} must be a module, got {branch!r}", argument=("exits_def",))
            if place in places or isinstance(modules[place], BranchPoint):
                raise ArgumentError(f"{name!r} has an exit already", argument=("exits_def", position))
            places[place] = branch
        # The deepest first: what lies inside a module must be found before the module moves into its branch point.
        for place in sorted(places, key=lambda one: -one.count(".")):
            point = BranchPoint(modules[place], places[place]).train(modules[place].training)
            model_setattr(bare, place, point)

    def exit_points(self, model: nn.Module) -> list[str]:
        """Names of the modules with an exit, in the model's order."""
        return [name for name, module in unwrap(model).named_modules() if isinstance(module, BranchPoint)]

    def get_exits_outputs(self, model: nn.Module) -> list[Any]:
        """The exits' results of the last forward pass, in the model's order.

        Raises :class:`LifecycleError` for a model without exits, and naming exits that did not run since.
        """
        points = {name: module for name, module in unwrap(model).named_modules() if isinstance(module, BranchPoint)}
        if not points:
            raise LifecycleError("the model has no exits: call attach_exits before")
        idle = [name for name, point in points.items() if point.output is None]
        if idle:
            raise LifecycleError(f"the exits at {listed(idle)} have no output: run the model first")
        return [point.output for point in points.values()]

    def delete_exits_outputs(self, model: nn.Module) -> None:
        """Forget the exits' results, which hold the graph of gradients of their forward pass."""
        for module in unwrap(model).modules():
            if isinstance(module, BranchPoint):
                module.clear()


def early_exit_loss(
    outputs: Sequence[Tensor], target: Tensor, criterion: nn.Module, lossweights: Sequence[float]
) -> Tensor:
    """``sum(w_i * criterion(exit_i)) + (1 - sum(w_i)) * criterion(final)``, a scalar.

    ``outputs``: of every exit, the network's last; ``lossweights``: one for each exit before it. Losses of 1.0 and 2.0
    at two exits and 4.0 at the end, weights 0.2 and 0.3: ``0.2 + 0.6 + 0.5 * 4 = 2.8``. Raises :class:`ArgumentError`
    for another number of weights, negative ones, and a sum of 1 or more (nothing would train the network's end).
    """
    weights = _numbers(lossweights, "lossweights")
    if len(weights) != len(outputs) - 1:
        message = f"{len(outputs) - 1} exits before the last need as many loss weights, got {len(weights)}"
        raise ArgumentError(message, argument=("lossweights",))
    if any(weight < 0 for weight in weights) or not sum(weights) < 1:
        message = f"loss weights must be 0 or more and sum up to less than 1, got {weights}"
        raise ArgumentError(message, argument=("lossweights",))
    total: Tensor = (1.0 - sum(weights)) * criterion(outputs[-1], target)
    for weight, output in zip(weights, outputs, strict=False):
        total = total + weight * criterion(output, target)
    return total


@dataclass(frozen=True, slots=True)
class ExitChoice:
    """Which exit answered for each sample: ``logits`` ``[N, classes]`` and the exit's number ``exits`` ``[N]``.

    ``last`` is the number of the network's end.
    """

    logits: Tensor
    exits: Tensor
    last: int

    def fractions(self) -> list[float]:
        """The fraction of samples that each exit answered, the network's end last; they sum up to 1."""
        counts = torch.bincount(self.exits, minlength=self.last + 1)
        return [float(count) / max(len(self.exits), 1) for count in counts]


def choose_exits(outputs: Sequence[Tensor], thresholds: Sequence[float], measure: Measure = "entropy") -> ExitChoice:
    """For each sample the first exit that is sure enough, else the network's end; labels are not needed.

    ``outputs``: logits ``[N, classes]`` of every exit, the network's last. An exit answers where the entropy of its
    softmax (in nats, at most ``ln(classes)``) is below its threshold or, with ``measure="confidence"``, where the
    largest probability is at least its threshold. Logits ``[4, 0]`` and ``[0, 0]`` have the entropies 0.0901 and
    0.6931: with a threshold of 0.2 the exit answers for the first only.

    Raises :class:`ArgumentError` for another number of thresholds and an unknown measure.
    """
    _check(thresholds, measure, len(outputs) - 1)
    logits, last = outputs[-1], len(outputs) - 1
    exits = torch.full((len(logits),), last, device=logits.device)
    for number in range(last - 1, -1, -1):  # backwards: the first exit has the last word
        sure = _is_sure(outputs[number], float(thresholds[number]), measure)
        logits = torch.where(sure[:, None], outputs[number], logits)
        exits = torch.where(sure, number, exits)
    return ExitChoice(logits, exits, last)


@torch.no_grad()
def run_with_exits(
    model: nn.Module, *args: Any, thresholds: Sequence[float], measure: Measure = "entropy", **kwargs: Any
) -> ExitChoice:
    """Run ``model`` (with exits, in eval mode) on a batch, and stop as soon as every sample has its answer.

    What follows the last exit that was needed is not computed: with a batch of one this is the time that early exits
    save. The choice is that of :func:`choose_exits`. ``args`` and ``kwargs`` are the model's.

    Raises :class:`LifecycleError` in training mode or without exits, :class:`ArgumentError` as :func:`choose_exits`.
    """
    if model.training:
        raise LifecycleError("run_with_exits decides with dropout and batch statistics off: call model.eval() before")
    points = [module for module in unwrap(model).modules() if isinstance(module, BranchPoint)]
    if not points:
        raise LifecycleError("the model has no exits: call EarlyExitMgr().attach_exits before")
    _check(thresholds, measure, len(points))
    outputs: dict[int, Tensor] = {}
    sure: list[Tensor] = []

    def seen(point: nn.Module, _args: Any, _result: Any) -> None:
        number = points.index(point)  # type: ignore[arg-type]
        outputs[number] = points[number].output
        sure.append(_is_sure(outputs[number], float(thresholds[number]), measure))
        in_order = len(outputs) == max(outputs) + 1  # an exit that is asked first may still be to come
        if in_order and bool(torch.stack(sure).any(dim=0).all()):
            raise _Answered

    handles = [point.register_forward_hook(seen) for point in points]
    try:
        outputs[len(points)] = _end_of(model(*args, **kwargs))
    except _Answered:
        pass
    finally:
        for handle in handles:
            handle.remove()
        for point in points:
            point.clear()
    return _chosen(outputs, thresholds, measure, len(points))


def _end_of(result: Any) -> Tensor:
    """The logits of the network's end in what a model returns: with ``logits``, a list of all exits, or they alone."""
    found = getattr(result, "logits", result)
    end = found[-1] if isinstance(found, tuple | list) and found else found
    if not isinstance(end, Tensor):
        raise ArgumentError(f"a classifier returns logits [N, classes] or a list of them, got {type(end).__name__}")
    return end


class _Answered(Exception):
    """Leaves a forward pass whose samples all have an answer."""


def _chosen(outputs: dict[int, Tensor], thresholds: Sequence[float], measure: Measure, last: int) -> ExitChoice:
    """The choice among the exits that ran; the last of them answers for what is left."""
    ran = sorted(outputs)
    choice = choose_exits([outputs[one] for one in ran], [thresholds[one] for one in ran[:-1]], measure)
    return ExitChoice(choice.logits, torch.tensor(ran, device=choice.exits.device)[choice.exits], last)


def _is_sure(logits: Tensor, threshold: float, measure: Measure) -> Tensor:
    if logits.dim() != 2:
        raise ArgumentError(f"exits return logits [N, classes], got shape {tuple(logits.shape)}")
    logs = torch.log_softmax(logits.float(), dim=1)
    if measure == "confidence":
        return logs.amax(dim=1).exp() >= threshold
    entropy: Tensor = torch.special.entr(logs.exp()).sum(dim=1)
    return entropy < threshold  # never for logits that are not numbers


def _check(thresholds: Sequence[float], measure: str, exits: int) -> None:
    if measure not in _MEASURES:
        message = f"unknown measure {measure!r}: exits are decided by {listed(_MEASURES)}"
        raise ArgumentError(message, argument=("measure",))
    if len(_numbers(thresholds, "thresholds")) != exits:
        message = f"{exits} exits before the last need as many thresholds, got {len(thresholds)}"
        raise ArgumentError(message, argument=("thresholds",))


def _numbers(values: Sequence[float], argument: str) -> list[float]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        _refuse(values, argument)
    if any(isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) for value in values):
        _refuse(values, argument)
    return [float(value) for value in values]


def _refuse(values: Any, argument: str) -> NoReturn:
    raise ArgumentError(
        f"{argument} must be a list of numbers, one for each exit, got {values!r}", argument=(argument,)
    )
