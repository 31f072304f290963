"""Deep mutual learning: two models that are trained together and teach each other (layer 2)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, ScheduleWarning, did_you_mean
from distiller_ng.knowledge_distillation._settings import read_logits_loss, read_output_keys
from distiller_ng.knowledge_distillation.base import DistillationLoss, LossSpec, check_positive
from distiller_ng.knowledge_distillation.distiller import DISTILLERS, Distiller
from distiller_ng.knowledge_distillation.structures import the_logits
from distiller_ng.knowledge_distillation.weights import DistillationLossWeights, read_loss_weights
from distiller_ng.names import unwrap

__all__ = ["MutualDistiller"]


@DISTILLERS.register("MutualDistiller", injected=("name", "model", "teachers"))
class MutualDistiller(Distiller):
    """Trains the model and a peer at once, each on the labels and towards what the other one says.

    The loss becomes ``student * L + teacher * L_peer + distill * scale * (D(model, peer) + D(peer, model))``. ``L`` is
    the training loop's own loss, ``L_peer`` the same of the peer's outputs; in each distance the second one is the
    target and gets no gradient. ``scale`` is ``T^2`` for KL and CE, else 1. The peer runs on the model's inputs in
    training mode; its parameters join the model's optimizer as a group of their own.

    Source: Ying Zhang, Tao Xiang, Timothy M. Hospedales, Huchuan Lu, "Deep Mutual Learning" (2018),
    https://arxiv.org/abs/1706.00384

    ``peer``: the other model's name among ``teachers``.
    ``temperature``: divides the logits before the softmax; above 0.
    ``loss_weights``: ``{distill: 1.0, student: 1.0, teacher: 1.0}``, the default, as in the paper.
    ``logits``: the loss on the outputs: KL, CE, MSE, L1, Euclidean or Cosine.
    ``output_keys``: which of several outputs are compared.
    ``class_dim``: dimension of the classes. Default: 1 for four dimensions, else the last.

    Example: logits ``[0, 0]`` of the model and ``[log 3, 0]`` of the peer, T = 1: the model is pulled by
    ``KL(peer || model) = 0.1308`` and the peer by ``KL(model || peer) = 0.1438``::

        distillers:
          together: {class: MutualDistiller, peer: other, temperature: 1.0}
    """

    def __init__(
        self,
        name: str,
        model: nn.Module | None,
        teachers: Mapping[str, nn.Module] | None = None,
        *,
        peer: str,
        temperature: float = 1.0,
        loss_weights: Any = None,
        logits: LossSpec = "KL",
        output_keys: Any = None,
        class_dim: int | None = None,
    ) -> None:
        self.name = name
        self.temperature = check_positive("temperature", temperature)
        loss = read_logits_loss(logits, self.temperature, class_dim)
        if loss is None:
            raise ArgumentError("nothing to distill: logits is none", argument=("logits",))
        self.logits: DistillationLoss = loss
        self.loss_weights = (
            DistillationLossWeights(1.0, 1.0, 1.0)
            if loss_weights is None
            else read_loss_weights(loss_weights, has_logits=True)
        )
        self.student_keys, self.teacher_keys = read_output_keys(output_keys)
        self.peer = _find_peer(peer, teachers or {}, model)

    def distance(self, student: Any, peer: Any) -> tuple[Tensor, Tensor]:
        """How far the model is from the peer, and the peer from the model; only the first of each gets gradients."""
        mine = the_logits(student, self.student_keys, whose="student")
        theirs = the_logits(peer, self.teacher_keys, whose="peer")
        return self._mean(mine, theirs), self._mean(theirs, mine)

    def _mean(self, values: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        found = [self.logits(value, target) for value, target in zip(values, targets, strict=True)]
        total = found[0]
        for value in found[1:]:
            total = total + value
        return total / len(found)


def _find_peer(name: str, known: Mapping[str, nn.Module], model: nn.Module | None) -> nn.Module:
    if name not in known:
        hint = did_you_mean(str(name), known) if known else "No models were given"
        raise ArgumentError(
            f"no model is called {name!r}. {hint}: file_config(..., teachers={{{name!r}: module}})", argument=("peer",)
        )
    peer = known[name]
    if model is not None:
        shared = {id(p) for p in model.parameters()} & {id(p) for p in peer.parameters()}
        if unwrap(peer) is unwrap(model) or shared:
            raise ArgumentError("the peer shares parameters with the model: give another one", argument=("peer",))
    if not any(p.requires_grad for p in peer.parameters()):
        warnings.warn(
            f"no parameter of {name!r} is trained (requires_grad): it is a teacher rather than a peer, for which there "
            "is KnowledgeDistiller",
            ScheduleWarning,
            stacklevel=3,
        )
    return peer
