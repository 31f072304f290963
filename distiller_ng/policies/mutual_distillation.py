"""The policy that trains two models together, each towards the other (layer 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import LossComponent, Policy, PolicyLoss
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError
from distiller_ng.knowledge_distillation.capture import Call, Listener, Recorder, called_module
from distiller_ng.knowledge_distillation.joining import OptimizerLink, PeerParameters
from distiller_ng.knowledge_distillation.labels import LabelSource
from distiller_ng.knowledge_distillation.mutual import MutualDistiller
from distiller_ng.knowledge_distillation.step import NOT_SEEN
from distiller_ng.knowledge_distillation.structures import batch_size, the_logits
from distiller_ng.knowledge_distillation.teachers import autocast_of
from distiller_ng.knowledge_distillation.weights import weight_at
from distiller_ng.names import ParameterIndex, strip_wrappers, unwrap

__all__ = ["MutualDistillationPolicy"]


class MutualDistillationPolicy(Policy):
    """Runs a :class:`MutualDistiller`: the training loop trains its model as ever, and the peer is trained beside it.

    In each minibatch the peer is run on the model's inputs. Its own loss is that of the training loop (``criterion``,
    or the cross entropy found in the loss's graph) on its outputs. Components: ``Distill Loss`` (both directions)
    and ``Peer Loss``. The peer's parameters join the optimizer when the policy is added, and its weights are part of
    the scheduler's state. A loop that runs the peer itself in the minibatch, and adds its loss, is given only the
    distances.

    Example::

        together = MutualDistiller("together", model, {"other": other}, peer="other")
        scheduler.add_policy(MutualDistillationPolicy(together), starting_epoch=0, ending_epoch=60)
    """

    def __init__(self, distiller: MutualDistiller, *, criterion: Callable[..., Tensor] | None = None) -> None:
        if not isinstance(distiller, MutualDistiller):
            raise ArgumentError(f"expected a MutualDistiller, got {type(distiller).__name__}", argument=("distiller",))
        self.distiller = distiller
        self._labels = LabelSource(criterion)
        self._recorders = (Recorder(needs_grad=True), Recorder(needs_grad=True))
        self._listeners: list[Listener] = []
        self._student: nn.Module | None = None
        self._beside = PeerParameters(distiller.peer)
        self._link = OptimizerLink(self._beside)

    @property
    def peer(self) -> nn.Module:
        """The other model."""
        return self.distiller.peer

    def set_labels(self, labels: Any) -> None:
        """The labels of the open minibatch, where the policy cannot see them."""
        self._labels.give(labels)

    # -- hooks ------------------------------------------------------------------------------------------------------

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The peer must be another model; raises :class:`ArgumentError`."""
        if any(module is unwrap(self.peer) for module in parameters.model.modules()):
            raise ArgumentError("the peer is the scheduler's own model, or in it", argument=("peer",))

    def on_added(self, ctx: StepContext) -> None:
        """Install the hooks, and give the peer's parameters to the optimizer."""
        self._student = ctx.model
        self._install()
        self._beside.equalize_()
        self._link.join(ctx.optimizer)

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """From here on passes are noted."""
        self._install()
        self._link.join(ctx.optimizer)
        self._release()
        for recorder in self._recorders:
            recorder.open()
        self._labels.open()
        self._link.begin_step()

    def before_backward_pass(self, ctx: StepContext) -> PolicyLoss | None:
        """Run the peer and add the terms; raises :class:`LifecycleError` if the model did not run."""
        if ctx.loss is None:
            return None
        try:
            return self._add(ctx.loss, ctx.position.fraction)
        finally:
            self._release()

    def before_parameter_optimization(self, ctx: StepContext) -> None:
        """Replicas average the gradients of the peer, which no DistributedDataParallel sees."""
        self._link.average()

    def on_minibatch_end(self, ctx: StepContext) -> None:
        """Release everything; after a step the peer's gradients, too."""
        self._release()
        if ctx.is_step:
            self._link.forget_gradients()

    def on_finish(self, ctx: StepContext) -> None:
        """Take all hooks away."""
        self._release()
        self._labels.remove()
        self._link.remove()
        for listener in self._listeners:
            listener.remove()
        self._listeners = []

    def describe(self) -> str:
        """``MutualDistillationPolicy(together)``."""
        return f"MutualDistillationPolicy({self.distiller.name})"

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The peer's weights and buffers."""
        return {"version": 1, "peer": {n: t.detach().clone() for n, t in self._tensors().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises :class:`CheckpointError` for another architecture."""
        mine, saved = self._tensors(), state.get("peer", {})
        unfit = [n for n in {**mine, **saved} if n not in mine or n not in saved or mine[n].shape != saved[n].shape]
        if unfit:
            raise CheckpointError(f"{self.describe()}: the peer of the checkpoint is another model: {unfit[0]!r}")
        with torch.no_grad():
            for name, value in saved.items():
                mine[name].copy_(value)

    # -- internals --------------------------------------------------------------------------------------------------

    def _install(self) -> None:
        if self._student is None:
            raise LifecycleError("the policy belongs to no schedule yet: scheduler.add_policy(policy, ...)")
        if not self._listeners:
            models = (called_module(self._student), called_module(self.peer))
            self._listeners = [Listener(model, recorder) for model, recorder in zip(models, self._recorders)]
        for listener in self._listeners:
            listener.install()
        self._labels.install()

    def _release(self) -> None:
        for recorder in self._recorders:
            recorder.close()
        self._labels.close()

    def _add(self, loss: Tensor, epoch: float) -> PolicyLoss:
        distill, student, peer = (weight_at(weight, epoch) for weight in self.distiller.loss_weights)
        calls, peers = (recorder.calls() for recorder in self._recorders)
        if not calls:
            raise LifecycleError(NOT_SEEN)
        runs_itself = bool(peers)
        if runs_itself and len(peers) != len(calls):
            raise LifecycleError(f"the peer ran {len(peers)} times in this minibatch, the model {len(calls)} times")
        outputs = [call.output for call in peers] or [self._run(call) for call in calls]
        total = loss if student == 1 else loss * student
        samples = [batch_size(call.output) for call in calls]
        components: dict[str, Tensor] = {}
        labelled: list[tuple[int, Tensor]] = []
        for call, output, count in zip(calls, outputs, samples, strict=True):
            share = count / max(sum(samples), 1)
            mine, theirs = self.distiller.distance(call.output, output)
            total = total + share * distill * self.distiller.logits.scale * (mine + theirs.to(mine.device))
            _add_to(components, "Distill Loss", share * (mine + theirs.to(mine.device)).detach())
            if peer and not runs_itself and loss.requires_grad:
                logits = the_logits(output, self.distiller.teacher_keys[:1], whose="peer")[0]
                own = self._labels.live_loss(call, logits, loss, is_one_of_several=len(calls) > 1)
                if own is not None:  # a pass without labels stands beside one with them
                    labelled.append((count, own))
        if labelled:
            mean = torch.stack([count * own for count, own in labelled]).sum() / max(sum(n for n, _ in labelled), 1)
            total = total + peer * mean
            components["Peer Loss"] = mean.detach()
        return PolicyLoss(total, [LossComponent(name, value) for name, value in components.items()])

    def _run(self, call: Call) -> Any:
        """The peer's pass, in the model's mode; what its own recorder notes of it is dropped."""
        self.peer.train(self._student is None or self._student.training)
        with autocast_of(call, call.autocast):
            return self.peer(*call.args, **call.kwargs)

    def _tensors(self) -> dict[str, Tensor]:
        named = {**dict(self.peer.named_parameters()), **dict(self.peer.named_buffers())}
        return {short: named[name] for short, name in strip_wrappers(named).items()}


def _add_to(components: dict[str, Tensor], name: str, value: Tensor) -> None:
    components[name] = components[name] + value if name in components else value
