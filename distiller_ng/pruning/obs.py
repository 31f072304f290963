"""Optimal brain surgeon pruning with block Fisher matrices (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from distiller_ng.ops.mask_types import MaskTypeLike
from distiller_ng.pruning._second_order import SecondOrderPruner, check_count
from distiller_ng.pruning.base import PRUNERS, Scope
from distiller_ng.pruning.gradual import FinalSparsity, InitSparsity
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike
from distiller_ng.pruning.sparsity_schedules.curves import Curve
from distiller_ng.registry import RecipeTag

__all__ = ["OBSPruner"]


@PRUNERS.register("OBSPruner", injected=("name",), recipe_tag=RecipeTag("OBSPruningModifier", ends="from_start"))
class OBSPruner(SecondOrderPruner):
    """Optimal BERT Surgeon: prunes the weights whose removal costs least loss, and moves the others to make up for it.

    A decision samples ``num_grads`` gradients, each of one minibatch (from ``scheduler.grad_sampler``, else from the
    loader of ``scheduler.minibatches(loader)``, else the last training steps' own, up to 1 GB of them), and builds from
    them, for each ``fisher_block_size`` neighbouring weights, ``F = damp I + (1 / m) sum g g^T``. Then, with ``F^-1``::

        score  w_i^2 / (2 [F^-1]_ii)       the lowest are pruned, over all targets (scope: global) or in each
        w -= F^-1 u                        u_i = w_i / [F^-1]_ii for each weight i that is pruned now, else 0

    ``mask_type: block4`` scores and removes four neighbouring inputs as one; other blocks and N:M are made of the
    scores of their weights. ``num_recomputations`` makes a decision in so many rounds of equal steps, with new
    gradients for each. ``damp`` is in units of squared gradients. ``grad_sampler_kwargs`` go to the sampler's builder.
    ``fisher_block_size`` is 1 by default, as in SparseML; the paper's, and SparseML's documentation's, is 50, and
    better. ``init_sparsity``, ``final_sparsity``, ``inter_func``, ``mask_type``, ``sparsity``, ``schedule``,
    ``pattern``: see :class:`~distiller_ng.pruning.gradual.GradualPruner`; exactly ``round(s * n)`` weights are pruned.

    Memory, besides the model's: four bytes for each of ``n`` weights times ``1.25 * min(fisher_block_size, num_grads)``
    during a decision (1 M weights, block 50: 250 MB). Time: one million weights, block 50 and 256 gradients take little
    more than the bare products and inverses (``benchmarks/second_order.py``), and the gradients themselves.

    Source: E. Kurtic et al., "The Optimal BERT Surgeon: Scalable and Accurate Second-Order Pruning for Large Language
    Models", https://arxiv.org/abs/2203.07259. Weights ``[1, 1]`` with one gradient ``[1, 1]`` and ``damp = 1``: ``F``
    is ``[[2, 1], [1, 2]]``, the diagonal of its inverse 2/3, both score 3/4. At 0.5 the first goes, and with ``u =
    [3/2, 0]`` the second becomes ``1 + 1/3 * 3/2 = 1.5``::

        pruners:
          surgeon:
            class: OBSPruner
            weights: __ALL_PRUNABLE__
            init_sparsity: 0.5
            final_sparsity: 0.95
            num_grads: 256
            fisher_block_size: 50
        policies:
          - pruner: {instance_name: surgeon}
            starting_epoch: 0
            ending_epoch: 10
            frequency: 1

    Raises :class:`ArgumentError` for malformed arguments, :class:`CalibrationError` where there is nothing to sample.
    """

    buffer_bytes: ClassVar[int | None] = 1 << 30

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] | None = None,
        *,
        init_sparsity: InitSparsity | None = None,
        final_sparsity: FinalSparsity | None = None,
        inter_func: Curve = "cubic",
        mask_type: MaskTypeLike = "unstructured",
        num_grads: int = 1024,
        damp: float = 1e-7,
        fisher_block_size: int = 1,
        num_recomputations: int = 1,
        grad_sampler_kwargs: Mapping[str, Any] | None = None,
        sparsity: float | None = None,
        schedule: ScheduleLike | None = None,
        scope: Scope = "global",
        pattern: str | int | None = None,
    ) -> None:
        self.num_grads = check_count("num_grads", num_grads)
        super().__init__(
            name,
            weights,
            damp=damp,
            fisher_block_size=check_count("fisher_block_size", fisher_block_size),
            num_recomputations=num_recomputations,
            grad_sampler_kwargs=grad_sampler_kwargs,
            init_sparsity=init_sparsity,
            final_sparsity=final_sparsity,
            inter_func=inter_func,
            mask_type=mask_type,
            sparsity=sparsity,
            schedule=schedule,
            scope=scope,
            pattern=pattern,
        )

    def gradients_wanted(self, sparsity: float) -> int:
        """``num_grads``."""
        return self.num_grads

    def gradients_most(self) -> int:
        """``num_grads``."""
        return self.num_grads
