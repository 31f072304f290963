"""What a first schedule says about itself: header, and the reason for each layer."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from torch import nn

from distiller_ng.automatic._first_layers import PAPERS, Unit
from distiller_ng.automatic._first_planning import Plan
from distiller_ng.automatic._first_target import BUDGETS, Technique, two_digits
from distiller_ng.automatic._first_text import Entry, Sheet, schedule_text

__all__ = ["sheet_of"]


def sheet_of(plan: Plan, model_name: str) -> Sheet:
    """The sheet of a finished plan."""
    entries = [Entry(unit.name, plan.levels.get(unit.name, 0.0), _comment(plan, unit)) for unit in plan.units]
    header = _header(plan, model_name)
    sheet = Sheet(
        plan.technique,
        plan.windows,
        entries,
        header,
        rounded=_rounded(plan),
        batch_norms=_has_batch_norms(plan.model),
        activations=plan.activations,
    )
    return replace(sheet, papers=_papers(sheet))


def _has_batch_norms(model: nn.Module) -> bool:
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return any(norm.track_running_stats and norm.running_mean is not None for norm in norms)


# -- header ------------------------------------------------------------------------------------------------------------


def _header(plan: Plan, model_name: str) -> list[str]:
    lines = [
        f"First schedule for {model_name}: {plan.technique.what}.",
        f"Wanted {plan.target} ({BUDGETS[plan.target.budget]}), predicted {two_digits(plan.reached)}.",
        "",
        *_figures(plan),
        "",
        f"Technique {plan.technique.name!r}, because {plan.why}.",
    ]
    if plan.sensitivity is not None:
        lines += ["", _measured(plan)]
    if plan.relaxed:
        lines += ["", _RELAXED]
    if plan.target.budget == "latency":
        lines += ["", _LATENCY.format("one sample" if plan.batch == 1 else f"a batch of {plan.batch}")]
    lines += ["", *_usage(plan)]
    return lines


_RELAXED = (
    "The target is not within reach if the first, the last and depthwise layers are spared as the literature advises, "
    "so they are pruned too. Expect to lose more accuracy than with a milder target."
)
_LATENCY = (
    "The time was measured in PyTorch, on this machine, for {}; other runtimes and machines differ: compare "
    "with distiller-ng benchmark."
)


def _figures(plan: Plan) -> list[str]:
    after, before = plan.rehearsed.cost, plan.before
    rows = [("parameters", before.parameters, after.parameters)]
    if plan.technique.group == "element":
        rows.append(("not zero", before.nonzero, after.nonzero))
    rows.append(("bytes stored", round(before.size_bytes), round(after.size_bytes)))
    if plan.technique.group == "filter":
        rows.append(("MACs", round(before.macs / plan.batch), round(after.macs / plan.batch)))  # of one sample
    widths = max(len(f"{was:,}") for _, was, _ in rows), max(len(f"{now:,}") for *_, now in rows)
    lines = [
        f"  {name:<12}  {was:>{widths[0]},} ->  {now:>{widths[1]},}  ({now / max(was, 1):.2f})"
        for name, was, now in rows
    ]
    if plan.target.budget == "latency":
        lines.append(f"  {'time':<12}  {plan.reached:.2f} of what it was")
    return lines


def _measured(plan: Plan) -> str:
    found = plan.sensitivity
    assert found is not None
    levels = " and ".join(f"{level * 100:g} %" for level in found.levels)
    what = (
        "each layer (or group of tied layers) alone lost"
        if plan.technique.group == "filter"
        else "each layer alone lost"
    )
    how = f"How far each layer goes: {what} {levels} of its {plan.technique.pruned_thing}, without any training"
    if found.metric == "output error":
        how += (
            ". NO DATA WAS GIVEN, so the change of the outputs on RANDOM input stands in for the loss of accuracy. "
            "That is a rough guide: give --evaluate file.py:accuracy (or --loaders, --dataset) to measure the "
            "accuracy itself"
        )
    else:
        what = "loss" if found.metric == "loss" else "top-1"
        top1, _, loss = found.whole
        also = "" if math.isnan(loss) else f", loss {loss:.3f}"
        how += f", and the {what} was measured (the whole model: top-1 {top1:.1f}{also})"
    how += ". Layers that suffered least for what they save are pruned most. Training wins most of the damage back."
    if found.skipped:
        skipped = " and ".join(f"{level * 100:g} %" for level in found.skipped)
        how += f" There was no time to measure {skipped} (--time-budget)."
    return how


def _usage(plan: Plan) -> list[str]:
    return [
        "Train with it, from trained weights and with a small learning rate (a tenth of what you trained with):",
        "  scheduler = distiller_ng.file_config(model, optimizer, 'THIS FILE', example_inputs=(images,))",
        f"  for epoch in scheduler.epochs({plan.windows.epochs}):",
        "      for images, labels in scheduler.minibatches(loader):",
        "          optimizer.zero_grad()",
        "          scheduler.backward(criterion(model(images), labels))",
        "          optimizer.step()",
        _afterwards(plan.technique),
        "All numbers are yours to change: distiller-ng lint checks the file, distiller-ng plan shows what it will do.",
    ]


def _afterwards(technique: Technique) -> str:
    """How what was promised becomes a file."""
    save = "Afterwards save a checkpoint (distiller_ng.checkpoint.save_checkpoint)"
    header = "(its header of some kB comes on top of the bytes above)"
    command, what = "export --to onnx", "writes the small model, and distiller-ng benchmark measures it"
    if technique.bits != 32:
        command, what = "quantize --loader FILE.PY:FUNCTION", "writes it with integers"
        if technique.group == "element":
            what += f", zeros included, as distiller-ng plan counts; export --to packed leaves them out {header}"
    elif technique.group == "element":
        command, what = "export --to sparse", f"writes a file without the zeros {header}"
    return f"{save}: distiller-ng {command} --checkpoint FILE ... {what}."


def _rounded(plan: Plan) -> str:
    if plan.activations:
        return ""
    return (
        "Only weights: outputs can be rounded where the model has activation modules (nn.ReLU ...), and this one has "
        "none. Write nn.ReLU() in place of torch.relu(), and run init again, for the rest."
    )


def _papers(sheet: Sheet) -> dict[str, str]:
    """The papers that the text cites."""
    cited = set(re.findall(r"\[([A-Z]\w+)\]", schedule_text(sheet)))
    return {key: text for key, text in PAPERS.items() if key in cited}


# -- layers ------------------------------------------------------------------------------------------------------------


def _comment(plan: Plan, unit: Unit) -> str:
    level = plan.levels.get(unit.name, 0.0)
    parts = [_what_happens(plan, unit, level)]
    if len(unit.names) > 1:
        parts.append(f"tied to {_few(unit.names[1:])}: their outputs are added or read together")
    if unit.also:
        parts.append(f"the same weights serve as {_few(unit.also)}")
    if "shared" in unit.kinds:
        parts.append("runs several times in a forward pass")
    advice = plan.advice.get(unit.name)
    if advice is not None and advice.why:
        cited = " ".join(f"[{paper}]" for paper in advice.papers)
        parts.append(f"{advice.why} {cited}".strip())
    elif level == 0:
        parts.append(_why_not(plan, unit))
    told = plan.sensitivity.told(unit.name) if plan.sensitivity is not None else ""
    return "; ".join(part for part in (*parts, told) if part)


def _what_happens(plan: Plan, unit: Unit, level: float) -> str:
    if plan.technique.group != "filter":
        kept = unit.weights - round(unit.weights * level)
        whole = f"{unit.weights:,} weights ({unit.share * 100:.1f} % of all)"
        return f"{kept:,} of {whole} stay" if level > 0 else whole
    before, after = plan.shapes[unit.name], plan.rehearsed.shapes.get(unit.name, ())
    changed = [dim for dim, (was, now) in enumerate(zip(before, after, strict=False)) if was != now]
    own = unit.outputs if unit.outputs in changed or level == 0 or not changed else changed[0]
    if level == 0 or not changed:
        return f"{before[own]} filters"
    return f"{before[own]} filters become {after[own]}"


def _why_not(plan: Plan, unit: Unit) -> str:
    if plan.technique.group == "element" and unit.share < 0.05:
        return "has few weights, so pruning it saves little"
    return "the target is reached without it, and others suffer less"


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
