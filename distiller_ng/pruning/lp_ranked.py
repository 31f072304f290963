"""Pruning of the structures of smallest norm (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.masker import ParameterMasker
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.masks import lowest_structures
from distiller_ng.ops.norms import Norm, NormFunction, e_greedy_normal_noise, l1_norm, l2_norm, max_norm
from distiller_ng.pruning._checks import check_number
from distiller_ng.pruning._ranked import GroupDependency, Rounding, StructurePruner, rounding_function
from distiller_ng.pruning._structures import RankedGroup, Structures
from distiller_ng.pruning.base import PRUNERS, Scope
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = [
    "L1RankedStructureParameterPruner",
    "L2RankedStructureParameterPruner",
    "LpRankedStructureParameterPruner",
    "Magnitude",
    "magnitude_function",
]

#: A norm by name; Python code may pass a function called as ``norm(matrix, dim=dim)``.
Magnitude: TypeAlias = Literal["l1", "l2", "max"] | NormFunction
_NORMS: dict[str, Norm] = {"l1": l1_norm, "l2": l2_norm, "max": max_norm}


@PRUNERS.register("LpRankedStructureParameterPruner", injected=("name",))
class LpRankedStructureParameterPruner(StructurePruner):
    """Prunes the structures of lowest norm: ``n = floor(s * N)`` of ``N``, in whole groups of ``group_size``.

    The magnitude of a structure is its norm divided by its number of weights; what is larger than the n-th lowest
    magnitude stays, so equal ones may prune a few more, but never all unless the sparsity is 1.

    ``group_type``: ``Filters`` (= ``3D``, dimension 0), ``Channels`` (dimension 1), ``Rows`` (of the transposed matrix
    of a Linear layer, so its input features too), ``Blocks`` (``kwargs: {block_shape: [repetitions, depth, 1, 1]}``).
    ``desired_sparsity``: share of structures, 0..1. ``weights``: targets. ``magnitude_fn``: ``l1``, ``l2``, ``max`` or
    a function. ``noise``: probability that all magnitudes of a tensor are multiplied by N(0, 1) noise (exploration).
    ``rounding_fn``: ``floor``, ``ceil``, ``round`` or a function. With ``scope: global`` magnitudes are divided by the
    mean of their tensor before they are ranked together, so that layers of another scale compare.
    ``group_dependency``, ``scope``, ``pattern``: see :class:`StructurePruner`; ``schedule`` replaces
    ``desired_sparsity``.

    Source: H. Li et al., "Pruning Filters for Efficient ConvNets", https://arxiv.org/abs/1608.08710. Four filters with
    L1 norms 3, 1, 2 and 4 at 0.5: the second lowest is 2, filters 0 and 3 stay::

        pruners:
          filters:
            class: L1RankedStructureParameterPruner
            group_type: Filters
            desired_sparsity: 0.5
            weights: ['re:layer1.*conv1.weight']

    Raises :class:`ArgumentError` for malformed arguments, :class:`TargetError` for a weight without such structures.
    """

    default_norm: ClassVar[NormFunction] = l1_norm

    def __init__(
        self,
        name: str,
        group_type: RankedGroup,
        desired_sparsity: float | None = None,
        weights: str | Sequence[str] = (),
        group_dependency: GroupDependency | None = None,
        kwargs: Mapping[str, Sequence[int]] | None = None,
        magnitude_fn: Magnitude | None = None,
        noise: float = 0.0,
        group_size: int = 1,
        rounding_fn: Rounding = "floor",
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        if magnitude_fn is None:
            message = "magnitude_fn is missing: l1, l2, max or a function; or use L1RankedStructureParameterPruner"
            raise ArgumentError(message, argument=("magnitude_fn",))
        super().__init__(
            name,
            Structures.of(group_type, group_size, kwargs),
            desired_sparsity,
            weights,
            group_dependency,
            rounding_fn=rounding_fn,
            schedule=schedule,
            scope=scope,
            pattern=pattern,
        )
        self.magnitude_fn = magnitude_function(magnitude_fn)
        self.noise = check_number(noise, ("noise",), low=0, high=1)

    def scores(self, name: str, ctx: StepContext) -> Tensor | None:
        """Length-normalised norms, with noise."""
        magnitudes = self.structures.magnitudes(ctx.weight(name), self.magnitude_fn)
        return magnitudes * e_greedy_normal_noise(magnitudes, self.noise)

    def comparable(self, scores: Tensor) -> Tensor:
        """Magnitudes over their tensor's mean: layers with more inputs have smaller weights throughout."""
        mean = scores.mean()
        return scores / mean if mean > 0 else scores

    def choose(self, scores: Tensor, level: float) -> Tensor | None:
        """What is larger than the n-th lowest; with a pattern exactly n are pruned."""
        if self.pattern is not None:
            return super().choose(scores, level)
        return _keep_larger(scores, level, self.structures.group_size, self.rounding_fn)

    # -- Distiller's direct calls -----------------------------------------------------------------------------------

    @classmethod
    def rank_and_prune_channels(
        cls, fraction_to_prune: float, param: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor | None:
        """Binary map ``[C_i]`` of the channels to keep; see :meth:`rank_and_prune_filters`.

        A weight ``[3, 2, 2, 2]`` whose second channel is larger gives ``[0., 1.]`` for a fraction of 0.5.
        """
        return cls._rank_and_prune("Channels", fraction_to_prune, param, *args, **kwargs)

    @classmethod
    def rank_and_prune_filters(
        cls, fraction_to_prune: float, param: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor | None:
        """Binary map ``[C_o]`` of the filters to keep; None when the fraction is too small to prune one.

        Further arguments: ``param_name=None, zeros_mask_dict=None, model=None, binary_map=None, magnitude_fn,
        noise=0.0, group_size=1, rounding_fn='floor'``. With ``zeros_mask_dict`` the mask is also written to
        ``zeros_mask_dict[param_name]``; a ``binary_map`` that is given is only expanded; ``model`` is not needed.
        """
        return cls._rank_and_prune("Filters", fraction_to_prune, param, *args, **kwargs)

    @classmethod
    def rank_and_prune_rows(cls, fraction_to_prune: float, param: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """Binary map of the rows of the transposed matrix to keep; see :meth:`rank_and_prune_filters`."""
        return cls._rank_and_prune("Rows", fraction_to_prune, param, *args, **kwargs)

    @classmethod
    def rank_and_prune_blocks(
        cls, fraction_to_prune: float, param: Tensor, *args: Any, block_shape: Sequence[int], **kwargs: Any
    ) -> Tensor | None:
        """Binary map of the blocks to keep; see :meth:`rank_and_prune_filters`."""
        return cls._rank_and_prune("Blocks", fraction_to_prune, param, *args, block_shape=block_shape, **kwargs)

    @classmethod
    def _rank_and_prune(
        cls,
        group_type: str,
        fraction_to_prune: float,
        param: Tensor,
        param_name: str | None = None,
        zeros_mask_dict: MutableMapping[str, ParameterMasker] | None = None,
        model: Any = None,
        binary_map: Tensor | None = None,
        magnitude_fn: Magnitude | None = None,
        noise: float = 0.0,
        group_size: int = 1,
        rounding_fn: Rounding = "floor",
        *,
        block_shape: Sequence[int] | None = None,
    ) -> Tensor | None:
        structures = Structures.of(
            group_type, group_size, None if block_shape is None else {"block_shape": block_shape}
        )
        problem = structures.problem_with(param)
        if problem is not None:
            raise ArgumentError(problem, argument=("param",))
        if binary_map is None:
            norm = cls.default_norm if magnitude_fn is None else magnitude_function(magnitude_fn)
            magnitudes = structures.magnitudes(param.detach(), norm)
            magnitudes = magnitudes * e_greedy_normal_noise(magnitudes, noise)
            keep = _keep_larger(magnitudes, fraction_to_prune, group_size, rounding_fn)
            if keep is None:
                return None
            binary_map = keep.repeat_interleave(group_size).to(param.dtype)
        if zeros_mask_dict is not None:
            if param_name is None:
                raise ArgumentError("zeros_mask_dict needs param_name too", argument=("param_name",))
            zeros_mask_dict[param_name].mask = structures.expand(param, binary_map)
        return binary_map


@PRUNERS.register("L1RankedStructureParameterPruner", injected=("name",))
class L1RankedStructureParameterPruner(LpRankedStructureParameterPruner):
    """Prunes the structures of lowest mean absolute value, ``sum |w| / n``.

    All arguments are those of :class:`LpRankedStructureParameterPruner`.

    Four filters with means 3, 1, 2 and 4 at 0.5 keep the first and the last::

        pruners:
          channels:
            class: L1RankedStructureParameterPruner
            group_type: Channels
            desired_sparsity: 0.5
            weights: [layer3.0.conv2.weight, layer3.1.conv2.weight]
            group_dependency: Leader
    """

    def __init__(
        self,
        name: str,
        group_type: RankedGroup,
        desired_sparsity: float | None = None,
        weights: str | Sequence[str] = (),
        group_dependency: GroupDependency | None = None,
        kwargs: Mapping[str, Sequence[int]] | None = None,
        noise: float = 0.0,
        group_size: int = 1,
        rounding_fn: Rounding = "floor",
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        arguments = (group_type, desired_sparsity, weights, group_dependency, kwargs, type(self).default_norm)
        ranking = (noise, group_size, rounding_fn)
        super().__init__(name, *arguments, *ranking, schedule=schedule, scope=scope, pattern=pattern)


@PRUNERS.register("L2RankedStructureParameterPruner", injected=("name",))
class L2RankedStructureParameterPruner(L1RankedStructureParameterPruner):
    """Prunes the structures of lowest Euclidean norm, ``sqrt(sum w^2) / n``.

    All arguments are those of :class:`LpRankedStructureParameterPruner`.

    ``[4, 0, 0]`` (norm 4) outranks ``[2, 2, 2]`` (3.46), which has the larger mean::

        pruners:
          filters:
            class: L2RankedStructureParameterPruner
            group_type: Filters
            desired_sparsity: 0.5
            weights: [layer1.0.conv1.weight]
    """

    default_norm: ClassVar[NormFunction] = l2_norm


def magnitude_function(magnitude: Magnitude) -> NormFunction:
    """The norm a name means, or the function itself; raises :class:`ArgumentError` for anything else."""
    function = _NORMS.get(magnitude) if isinstance(magnitude, str) else magnitude
    if not callable(function):
        message = f"magnitude_fn is l1, l2, max or a function, got {magnitude!r}"
        raise ArgumentError(message, argument=("magnitude_fn",))
    return function


def _keep_larger(magnitudes: Tensor, fraction: float, group_size: int, rounding: Rounding) -> Tensor | None:
    """One value for each group: 1 above the n-th lowest magnitude, counted in structures."""
    spread = magnitudes.repeat_interleave(group_size)
    keep = lowest_structures(spread, fraction, group_size=group_size, rounding_fn=rounding_function(rounding))
    return None if keep is None else keep[::group_size]
