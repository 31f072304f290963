"""The kinds of components a schedule can define: one entry each, read by everything in this package (layer 4).

A new kind is one more entry in :data:`KINDS`: its section, the key its policies use, where its
classes are found and how a policy is made of one. Nothing else in ``config/`` names a kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch.optim import Optimizer

from distiller_ng.config.classes import ClassTable, LRClasses, RegistryTable
from distiller_ng.config.signatures import Argument, arguments_of
from distiller_ng.core.legacy import as_policy
from distiller_ng.core.policy import Policy
from distiller_ng.errors import ArgumentError
from distiller_ng.knowledge_distillation.distiller import DISTILLERS
from distiller_ng.knowledge_distillation.mutual import MutualDistiller
from distiller_ng.learning_rate.scheduled import ScheduledLR
from distiller_ng.learning_rate.table import LRTable, ShadowOptimizer
from distiller_ng.names import ParameterIndex
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.policies.knowledge_distillation import KnowledgeDistillationPolicy
from distiller_ng.policies.lr import LRPolicy
from distiller_ng.policies.mutual_distillation import MutualDistillationPolicy
from distiller_ng.policies.pruning import PruningArgs, PruningPolicy
from distiller_ng.policies.quantization import QuantizationPolicy
from distiller_ng.policies.regularization import RegularizationPolicy
from distiller_ng.pruning.base import DEFAULT_TARGET, PRUNERS, Pruner, Target, targets_of_list
from distiller_ng.pruning.sparsity_schedules.base import SPARSITY_SCHEDULES, SparsitySchedule
from distiller_ng.quantization.base import QUANTIZERS, Quantizer
from distiller_ng.regularization.base import REGULARIZERS, Regularizer

__all__ = ["KINDS", "NESTED", "Kind", "kind_of_key"]

_NO_ARGUMENTS: Mapping[str, Argument] = MappingProxyType({})


def _no_targets(component: Any) -> Sequence[Target]:
    return ()


def _fit_nothing(component: Any, parameters: ParameterIndex) -> None:
    return None


def _any_optimizer(component: Any, optimizer: Optimizer) -> None:
    return None


def _check_nothing(args: Mapping[str, Any]) -> None:
    return None


def _no_policy(component: Any, args: Mapping[str, Any]) -> Policy:
    raise ArgumentError("this version has no policy for such a component")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of component.

    ``section``: of the file, e.g. ``pruners``. ``key``: of a policy, e.g. ``pruner``. ``noun``: in messages.
    ``classes``: None for a kind this version has no classes for. ``policy_args``: what a policy takes below ``args``,
    documented by ``policy_source``; ``check_args`` refuses what is wrong with them whatever the component.
    ``targets``: what a component names on the model; ``target_arguments``: where our own classes are given that, to be
    looked at when a component cannot be built; ``arg_targets``: what a policy's own arguments name.
    ``fit``: refuses a parameter the component names but cannot work with; ``check_optimizer``: an optimizer, which it
    does not change.
    ``reads_layers``: its components and policies are checked against the layers of a model, not without one.
    ``adds_last``: its policies come after all others. ``writes_masks`` / ``writes_lr``: two of its policies should not
    act on the same parameter, or at all, in one epoch. ``most``: how many instances one schedule may define.
    """

    section: str
    key: str
    noun: str
    classes: ClassTable | None = None
    policy_args: Mapping[str, Argument] = field(default_factory=lambda: _NO_ARGUMENTS)
    policy_source: type | None = None
    make_policy: Callable[[Any, Mapping[str, Any]], Policy] = _no_policy
    check_args: Callable[[Mapping[str, Any]], object] = _check_nothing
    targets: Callable[[Any], Sequence[Target]] = _no_targets
    target_arguments: tuple[str, ...] = ()
    arg_targets: Callable[[Mapping[str, Any]], Sequence[Target]] = _no_targets
    fit: Callable[[Any, ParameterIndex], None] = _fit_nothing
    check_optimizer: Callable[[Any, Optimizer], None] = _any_optimizer
    reads_layers: bool = False
    adds_last: bool = False
    writes_masks: bool = False
    writes_lr: bool = False
    most: int | None = None

    def class_names(self) -> list[str]:
        """The classes a schedule can use here."""
        return [] if self.classes is None else self.classes.names()

    def written_targets(self, args: Mapping[str, Any]) -> list[Target]:
        """What a definition names, from its arguments alone."""
        found: list[Target] = []
        for name in self.target_arguments:
            value = args.get(name)
            if isinstance(value, str):
                found.append(Target(value, (name,)))
            elif isinstance(value, Mapping):
                found += [Target(key, (name, key)) for key in value if isinstance(key, str)]
            elif isinstance(value, list | tuple):
                found += [Target(entry, (name, at)) for at, entry in enumerate(value) if isinstance(entry, str)]
        return found

    def unmatched(self, targets: Iterable[Target], parameters: ParameterIndex) -> list[ArgumentError]:
        """One error for each target that names nothing on the model, or that cannot be read."""
        errors: list[ArgumentError] = []
        for target in targets:
            if target.text == DEFAULT_TARGET:
                continue
            try:
                parameters.match(target.text, argument=target.argument)
            except ArgumentError as error:
                errors.append(error)
        return errors


# -- pruners, regularizers and LR schedulers ---------------------------------------------------------------------------


def _pruner_targets(pruner: Any) -> Sequence[Target]:
    return pruner.targets() if isinstance(pruner, Pruner) else ()


def _level_targets(args: Mapping[str, Any]) -> Sequence[Target]:
    levels = args.get("levels")
    return [Target(name, ("levels", name)) for name in levels] if isinstance(levels, Mapping) else ()


def _pruning_policy(pruner: Any, args: Mapping[str, Any]) -> Policy:
    if args.get("levels") is not None and isinstance(pruner, Pruner):
        pruner.accept_levels(args["levels"])  # the pruner sees them only once training runs
    return PruningPolicy(pruner, PruningArgs(**args))


def _check_pruning_args(args: Mapping[str, Any]) -> None:
    PruningArgs(**args)


def _fit(component: Any, parameters: ParameterIndex) -> None:
    if isinstance(component, Pruner | Regularizer):
        component.bind(parameters, strict=False)


def _regularizer_targets(regularizer: Any) -> Sequence[Target]:
    if not isinstance(regularizer, Regularizer):
        return ()
    return [Target(name, ("reg_regims", name)) for name in regularizer.reg_regims]


def _regularization_policy(regularizer: Any, args: Mapping[str, Any]) -> Policy:
    return RegularizationPolicy(regularizer, **args)


def _distillation_policy(distiller: Any, args: Mapping[str, Any]) -> Policy:
    if isinstance(distiller, MutualDistiller):
        return MutualDistillationPolicy(distiller, **args)
    return KnowledgeDistillationPolicy.of(distiller, **args)


def _lr_policy(lr_scheduler: Any, args: Mapping[str, Any]) -> Policy:
    return LRPolicy(lr_scheduler, **args)


def _check_lr(component: Any, optimizer: Optimizer) -> None:
    """Try the values of epoch 0 on a shadow of the optimizer: e.g. ``cycle_momentum`` needs a momentum."""
    if isinstance(component, ScheduledLR) and component.metric is None:
        rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        LRTable(component.definition, lambda: ShadowOptimizer.of(optimizer, rates)).values(0)


def _quantization_policy(quantizer: Any, args: Mapping[str, Any]) -> Policy:
    return QuantizationPolicy(quantizer, **args)


def _fit_quantizer(quantizer: Any, parameters: ParameterIndex) -> None:
    """Every check of the quantizer's plan; the model stays as it is."""
    if isinstance(quantizer, Quantizer):
        quantizer.plan()


def _extension_policy(extension: Any, args: Mapping[str, Any]) -> Policy:
    return as_policy(extension)


def _extension_targets(extension: Any) -> Sequence[Target]:
    """The ``weights`` of this library's own extensions; what others call so is theirs."""
    weights = getattr(extension, "weights", None)
    if type(extension).__module__.partition(".")[0] != __name__.partition(".")[0]:
        return ()
    if isinstance(weights, str):
        return targets_of_list("weights", weights)
    is_list = isinstance(weights, list | tuple) and all(isinstance(name, str) for name in weights)
    return targets_of_list("weights", list(weights or ())) if is_list else ()


def _without_first(arguments: Mapping[str, Argument]) -> Mapping[str, Argument]:
    """What a policy's constructor takes besides its component."""
    return MappingProxyType(dict(list(arguments.items())[1:]))


# -- the table ---------------------------------------------------------------------------------------------------------

_ALL = (
    Kind(
        section="pruners",
        key="pruner",
        noun="pruner",
        classes=RegistryTable(PRUNERS),
        policy_args=arguments_of(PruningArgs),
        policy_source=PruningArgs,
        make_policy=_pruning_policy,
        check_args=_check_pruning_args,
        targets=_pruner_targets,
        target_arguments=("weights", "levels", "thresholds", "sensitivities", "reg_regims"),
        fit=_fit,
        arg_targets=_level_targets,
        writes_masks=True,
    ),
    Kind(
        section="regularizers",
        key="regularizer",
        noun="regularizer",
        classes=RegistryTable(REGULARIZERS),
        policy_args=_without_first(arguments_of(RegularizationPolicy)),
        policy_source=RegularizationPolicy,
        make_policy=_regularization_policy,
        targets=_regularizer_targets,
        target_arguments=("reg_regims",),
        fit=_fit,
    ),
    Kind(
        section="quantizers",
        key="quantizer",
        noun="quantizer",
        classes=RegistryTable(QUANTIZERS),
        policy_args=_without_first(arguments_of(QuantizationPolicy)),
        policy_source=QuantizationPolicy,
        make_policy=_quantization_policy,
        fit=_fit_quantizer,
        reads_layers=True,
        most=1,
    ),
    Kind(
        section="distillers",
        key="distiller",
        noun="distiller",
        classes=RegistryTable(DISTILLERS),
        make_policy=_distillation_policy,
    ),
    Kind(
        section="extensions",
        key="extension",
        noun="extension",
        classes=RegistryTable(EXTENSIONS),
        make_policy=_extension_policy,
        targets=_extension_targets,
    ),
    Kind(
        section="lr_schedulers",
        key="lr_scheduler",
        noun="LR scheduler",
        classes=LRClasses(),
        policy_args=_without_first(arguments_of(LRPolicy)),
        policy_source=LRPolicy,
        make_policy=_lr_policy,
        check_optimizer=_check_lr,
        adds_last=True,
        writes_lr=True,
    ),
)

#: Every kind, by its section.
KINDS: Mapping[str, Kind] = MappingProxyType({kind.section: kind for kind in _ALL})

#: Types of arguments that are written as a definition of their own (``schedule: {class: AGP, ...}``).
NESTED: Mapping[Any, ClassTable] = MappingProxyType({SparsitySchedule: RegistryTable(SPARSITY_SCHEDULES)})


def kind_of_key(key: str) -> Kind:
    """The kind whose policies use ``key``: ``kind_of_key("pruner").section == "pruners"``."""
    return next(kind for kind in _ALL if kind.key == key)
