"""Linear layers replaced by two smaller ones: what is replaced, why others are not, and doing it (layer 3)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from distiller_ng.core.masks import MaskRegistry
from distiller_ng.errors import GraphError, TargetError
from distiller_ng.modules.low_rank import RankRule, balanced_factors, put_in_place, record_low_rank
from distiller_ng.modules.tsvd import TruncatedSVD
from distiller_ng.names import ALL, ALL_PRUNABLE, PATTERN_PREFIX, canonical_name, unwrap
from distiller_ng.policies._layers import check_layer_names, select_layers
from distiller_ng.quantization.base import quantization_of
from distiller_ng.thinning.functions import optimizers_of

__all__ = ["LowRankLayer", "LowRankReport", "linear_layers", "low_rank_", "refuse_wrapped"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LowRankLayer:
    """One layer that was replaced: ``shape`` ``(N, M)`` of its weight, the ``rank``, and the ``energy`` (0..1) kept."""

    name: str
    shape: tuple[int, int]
    rank: int
    energy: float

    @property
    def parameters(self) -> tuple[int, int]:
        """Weights before and after, ``N * M`` and ``rank * (N + M)``; as many MACs for each row of its input."""
        rows, columns = self.shape
        return rows * columns, self.rank * (rows + columns)

    def __str__(self) -> str:
        before, after = self.parameters
        rows, columns = self.shape
        return (
            f"{self.name} [{rows}, {columns}]: rank {self.rank}, {before:,} -> {after:,} weights, energy "
            f"{self.energy:.4f}"
        )


@dataclass(frozen=True, slots=True)
class LowRankReport:
    """What was replaced, the number of weights of the model before and after, and why other layers stayed."""

    layers: tuple[LowRankLayer, ...] = ()
    parameters: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.layers)

    def __str__(self) -> str:
        before, after = self.parameters
        return "\n".join([f"parameters {before:,} -> {after:,}", *map(str, self.layers), *self.notes])


def low_rank_(
    model: nn.Module,
    layers: str | Sequence[str] = ALL_PRUNABLE,
    *,
    preserve_ratio: float | None = None,
    energy: float | None = None,
    rank: int | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    masks: MaskRegistry | None = None,
) -> LowRankReport:
    """Replace linear layers of ``model``, in place, by :class:`~distiller_ng.modules.TruncatedSVD` layers.

    ``layers``: names of modules, ``re:`` patterns from the start of a name, or ``__ALL_PRUNABLE__`` (every linear
    layer). One of ``preserve_ratio``, ``energy`` and ``rank`` says how much is kept, see
    :class:`~distiller_ng.modules.low_rank.RankRule`. ``optimizer`` (one or several) gets the factors in place of the
    weights; ``masks`` are those of the scheduler.

    A layer that would not get smaller (``rank * (N + M) >= N * M``) stays, and the report's notes say so; so do, where
    they were not named one by one, layers whose weight is shared, parametrized, or read by attention itself. Loading a
    checkpoint of the model replaces the same layers. A ``[100, 100]`` layer at rank 20 has 4,000 weights::

        report = low_rank_(model, ["re:encoder.*fc"], energy=0.9, optimizer=optimizer)
        print(report)

    Source: E. Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation",
    https://arxiv.org/abs/1404.0736.

    Raises :class:`ArgumentError` and :class:`TargetError` for wrong arguments and names, :class:`GraphError` for layers
    that are masked, quantized or otherwise not their own, and for models inside DistributedDataParallel; then nothing
    was changed.
    """
    rule = RankRule(preserve_ratio=preserve_ratio, energy=energy, rank=rank)
    optimizers = optimizers_of(optimizer)
    refuse_wrapped(model, optimizers)
    inner = unwrap(model)
    notes: list[str] = []
    planned = _plan(inner, check_layer_names(layers), rule, masks, notes)
    before = _parameters(inner)
    done: list[LowRankLayer] = []
    for name, (layer, left, right, kept) in planned.items():
        new = TruncatedSVD.of_factors(layer, left, right)
        for one in optimizers:
            _follow(one, canonical_name(name), layer, new)
        put_in_place(inner, layer, new)
        done.append(LowRankLayer(name, (left.shape[0], right.shape[1]), left.shape[1], kept))
    if done:
        record_low_rank(inner, {layer.name: (*layer.shape, layer.rank) for layer in done})
    if masks is not None and masks.parameters.refresh():
        masks.follow()
    report = LowRankReport(tuple(done), (before, _parameters(inner)), tuple(notes))
    logger.info("low rank: %s", report)
    return report


def linear_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers that ``names`` mean, in model order.

    Raises :class:`TargetError` for names that match no module or no linear layer.
    """
    found = select_layers(model, names)
    factors = {part for module in model.modules() if isinstance(module, TruncatedSVD) for part in module.children()}
    layers = {name: m for name, m in found.items() if isinstance(m, nn.Linear) and m not in factors}
    for position, name in enumerate(names):
        module = found.get(canonical_name(name))
        if module is not None and not isinstance(module, nn.Linear | TruncatedSVD) and not any(module.children()):
            message = f"{name!r} is a {type(module).__name__}; only Linear layers can be of low rank"
            raise TargetError(message, argument=("layers", position))
    if not layers and not factors:
        raise TargetError(f"there is no Linear layer among {list(names)}", argument=("layers",))
    return layers


def refuse_wrapped(model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
    """Raises :class:`GraphError` for models and optimizers whose parameters cannot be replaced."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise GraphError(
            "DistributedDataParallel has sized its gradient buckets for this model: make layers of low rank in "
            "model.module (on every rank alike) and wrap the result again"
        )
    if quantization_of(unwrap(model)) is not None:
        raise GraphError("the model is quantized: make its layers of low rank first, then quantize what is left")
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise GraphError("LBFGS keeps a list of parameters of its own: make a new optimizer after layers are replaced")


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if not is_lazy(p))


_Planned = dict[str, tuple[nn.Linear, Tensor, Tensor, float]]


def _plan(
    model: nn.Module, names: Sequence[str], rule: RankRule, masks: MaskRegistry | None, notes: list[str]
) -> _Planned:
    """``{layer: (it, left, right, energy)}`` of what can be replaced; everything is checked before anything changes."""
    planned: _Planned = {}
    single = {canonical_name(n) for n in names if not n.startswith(PATTERN_PREFIX) and n not in (ALL, ALL_PRUNABLE)}
    for name, layer in linear_layers(model, names).items():
        masker = masks.get(f"{name}.weight") if masks is not None else None
        mask = masker.mask if masker is not None else None
        if mask is not None and bool((mask != 1).any()):  # a mask of ones is what removing structures leaves
            raise GraphError(
                f"{name}.weight is masked: its zeros would be lost in a product of two dense matrices. Leave it out of "
                "the pruner's weights, or out of layers"
            )
        reason = _obstacle(model, layer)
        if reason is not None:
            if name in single:
                raise GraphError(f"{name} cannot be replaced by a product: {reason}. Leave it out of layers")
            notes.append(f"{name} stays: {reason}")
            continue
        left, right, energy = balanced_factors(layer.weight, rule)
        rows, columns, rank = left.shape[0], right.shape[1], left.shape[1]
        if rank * (rows + columns) >= rows * columns:
            cost = f"{rank * (rows + columns):,} weights in place of {rows * columns:,}"
            notes.append(f"{name} stays: at rank {rank} it would have {cost}")
            continue
        planned[name] = (layer, left, right, energy)
    return planned


def _obstacle(model: nn.Module, layer: nn.Linear) -> str | None:
    """Why a layer cannot be replaced; None where it can."""
    if parametrize.is_parametrized(layer):
        return "its weight is parametrized"
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return "its weight is no parameter of its own"
    if is_lazy(layer.weight):
        return "it has no weight before its first forward pass"
    if hasattr(layer.weight, "placements"):
        return "its weight is sharded over processes"
    if any(isinstance(m, nn.MultiheadAttention) and m.out_proj is layer for m in model.modules()):
        return "torch's attention reads its weight instead of calling it"
    if type(layer).forward is not nn.Linear.forward:
        return f"a {type(layer).__name__} computes in its own way"
    owners = [m for m in model.modules() for p in m._parameters.values() if p is layer.weight]
    if len(owners) > 1:
        return "its weight is shared with another module"
    if not bool(torch.isfinite(layer.weight).all()):
        return "its weight has values that are not finite"
    return None


def _follow(optimizer: Optimizer, name: str, layer: nn.Linear, new: TruncatedSVD) -> None:
    """Put the factors where the weight was, in its parameter group."""
    weight = layer.weight
    right, left = new.fc_sv.weight, new.fc_u.weight
    state = optimizer.state.pop(weight, {})
    for group in optimizer.param_groups:
        at = next((i for i, p in enumerate(group["params"]) if p is weight), None)
        if at is None:
            continue
        group["params"][at : at + 1] = [right, left]
        if "param_names" in group:
            group["param_names"][at : at + 1] = [f"{name}.fc_sv.weight", f"{name}.fc_u.weight"]
        momentum = state.get("momentum_buffer") if isinstance(optimizer, torch.optim.SGD) else None
        if isinstance(momentum, Tensor):  # a sum of gradients G: those of the factors would have been U'G and G V'
            optimizer.state[right]["momentum_buffer"] = (left.detach().T @ momentum).contiguous()
            optimizer.state[left]["momentum_buffer"] = (momentum @ right.detach().T).contiguous()
