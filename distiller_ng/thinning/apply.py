"""Applying a thinning plan: cut, let integers follow, compare, and undo everything where it does not hold (layer 2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.errors import ArgumentError, GraphError, listed
from distiller_ng.graph._failures import MODEL_FAILURES, failed_at
from distiller_ng.graph.changes import record_change
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.thinning.cutting import Journal, check_cuts, cut_tensors, tensors_of
from distiller_ng.thinning.folding import fold_constants
from distiller_ng.thinning.plan import ThinningPlan
from distiller_ng.thinning.sizes import (
    modules_by_name,
    replace_attention,
    settle_integers,
    update_bare_norms,
    update_layers,
)
from distiller_ng.thinning.verification import must_run, outputs_of, relative_error, tolerance_of, zeroed_outputs

__all__ = ["ThinningReport", "apply_plan"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ThinningReport:
    """What thinning did.

    ``parameters``: number of weights before and after. ``error``: largest relative error of the outputs against the
    model with the same channels zeroed. ``jump``: the same against the model as it was. ``integers``: attributes of the
    user's modules that followed. ``folded``: layers whose bias took up a constant. ``notes``: the plan's.
    """

    parameters: tuple[int, int] = (0, 0)
    error: float = 0.0
    jump: float = 0.0
    integers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.parameters[0] != self.parameters[1]

    def __str__(self) -> str:
        before, after = self.parameters
        summary = f"parameters {before:,} -> {after:,}; relative error against the masked model {self.error:.2g}"
        lines = [f"{summary}, against the model before {self.jump:.2g}"]
        lines += [f"{name}: {dict(values)}" for name, values in self.integers.items()]
        return "\n".join([*lines, *self.notes])


def apply_plan(
    model: nn.Module,
    plan: ThinningPlan,
    example_inputs: ExampleInputsLike,
    *,
    optimizers: Sequence[Optimizer] = (),
    masks: Mapping[str, ParameterMasker] | None = None,
    verify: bool = True,
    fold: bool = True,
    warn: bool = True,
) -> ThinningReport:
    """Remove what ``plan`` says from ``model``, in place: parameters, buffers, gradients, masks, optimizer state.

    Afterwards the model's eval outputs on ``example_inputs`` are compared with those of the model that has the same
    channels zeroed; above 1e-4 relative error everything is put back. ``verify=False`` (or a plan that is not exact)
    reports the error instead. ``fold`` moves constants that removed channels still sent into the next layer's bias,
    where that is exact. ``warn=False`` says nothing about outputs that changed against the model as it was.

    Raises :class:`GraphError` where the thinned model does not run or does not agree; then the model, the masks and the
    optimizers are as they were.
    """
    if not isinstance(plan, ThinningPlan):
        message = f"plan is a ThinningPlan (plan_thinning, ThinningPlan.load), got {type(plan).__name__}"
        raise ArgumentError(message, argument=("plan",))
    if not plan:
        return ThinningReport(notes=plan.notes)
    _refuse_wrapped(model)
    inner = unwrap(model)
    check_cuts(inner, plan.cuts)
    inputs = as_example_inputs(example_inputs)
    before = must_run(inner, inputs)
    count = _parameters(inner)
    with Journal() as journal:
        folded = fold_constants(inner, inputs, plan, journal) if fold and plan.exact else []
        expected = zeroed_outputs(inner, inputs, plan.cuts)
        changed, replaced = _cut(inner, plan, inputs, (expected, verify), optimizers, masks, journal)
    after = outputs_of(inner, inputs)
    errors = relative_error(after, expected), relative_error(after, before)
    report = ThinningReport((count, _parameters(inner)), *errors, changed, tuple(folded), plan.notes)
    record_change(inner, "thinning", _as_config(plan, changed, replaced), {"error": report.error, "jump": report.jump})
    logger.info("thinned: %s", report)
    if warn:
        _warn_of_jump(report, lossy=not (plan.exact and verify))
    return report


def _cut(
    model: nn.Module,
    plan: ThinningPlan,
    inputs: ExampleInputs,
    check: tuple[list[Tensor], bool],
    optimizers: Sequence[Optimizer],
    masks: Mapping[str, ParameterMasker] | None,
    journal: Journal,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Cut and let the integers follow; what was changed of them, and the attention modules that were replaced."""
    names = [cut.tensor for cut in plan.cuts]
    replaced = replace_attention(model, names, journal)
    cut_tensors(model, plan.cuts, journal, optimizers=optimizers, masks=masks)
    done = update_layers(model, names, plan.groups, journal)
    norms = update_bare_norms(model, plan.resized, journal)
    expected, verify = check
    limit = tolerance_of(model) if verify and plan.exact else float("inf")
    problems: list[tuple[str, str]] = []

    def works() -> bool:
        try:
            error = relative_error(outputs_of(model, inputs), expected)
        except MODEL_FAILURES as failure:
            problems.append(failed_at(model, failure))
            return False
        if not error <= limit or error == float("inf"):
            problems.append((f"its outputs are off by {error:.2g}, allowed is {limit:.2g}", ""))
            return False
        return True

    changed = settle_integers(model, plan.resized, done, works, journal)
    if changed is None:
        raise GraphError(_failure(plan, *problems[0]))
    return {**norms, **changed}, replaced


def _failure(plan: ThinningPlan, problem: str, module: str) -> str:
    asked = f" of {listed(plan.asked_by, limit=4)}" if plan.asked_by else ""
    there = [cut.tensor for cut in plan.cuts if module and cut.tensor.startswith(canonical_name(module) + ".")]
    named = f" ({listed(dict.fromkeys(there), limit=4)})" if there else ""
    return (
        f"the model does not work without the planned channels{asked}, so nothing was changed: {problem}. Take the "
        "size from the tensor itself (x.shape, or -1) or from an attribute of the module, or leave the layers there "
        f"out of the targets{named}"
    )


def _as_config(plan: ThinningPlan, changed: Mapping[str, Mapping[str, Any]], replaced: list[str]) -> dict[str, Any]:
    return {
        "cuts": [[cut.tensor, cut.dim, list(cut.removed), cut.size] for cut in plan.cuts],
        "groups": dict(plan.groups),
        "attention": replaced,
        "attributes": {
            module: {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
            for module, values in changed.items()
        },
    }


def _refuse_wrapped(model: nn.Module) -> None:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise GraphError(
            "DistributedDataParallel has sized its gradient buckets for this model: thin model.module (on every rank "
            "alike) and wrap the result again"
        )


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _warn_of_jump(report: ThinningReport, *, lossy: bool) -> None:
    if report.jump > 1e-3:
        logger.warning(
            "thinning changed the model's outputs by %.3g (relative) against the weights it had: the removed channels "
            "still contributed through norms, biases or coupled layers%s. Fine-tune, or prune with mask_group: true",
            report.jump,
            " (lossy by request)" if lossy else "",
        )


def replay(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Make a recorded change on a fresh model.

    Raises :class:`GraphError` or :class:`TargetError`; then nothing was changed.
    """
    plan = ThinningPlan.from_dict(
        {"version": 1, "resized": [], "notes": [], "exact": True, "asked_by": [], **dict(config)}
    )
    inner = unwrap(model)
    with Journal() as journal:
        present = tensors_of(inner)  # what a quantizer adds later has the small size then
        cuts = [cut for cut in plan.cuts if cut.tensor in present]
        names = [cut.tensor for cut in cuts]
        replace_attention(inner, names, journal)
        cut_tensors(inner, cuts, journal)
        update_layers(inner, names, plan.groups, journal)
        _set_attributes(inner, config.get("attributes", {}), journal)


def _set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]], journal: Journal) -> None:
    modules = modules_by_name(model)
    for path, values in attributes.items():
        if path not in modules:
            raise GraphError(f"the thinned model had a module {path!r}, this one does not")
        for name, value in values.items():
            before = getattr(modules[path], name, None)
            as_before = tuple(value) if isinstance(before, tuple) else value
            journal.set_attribute(modules[path], name, as_before)
