"""Prune at random, then see either equality with the group-masked model or a GraphError and nothing changed."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from distiller_ng.core.masks import MaskRegistry
from distiller_ng.errors import GraphError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.inputs import as_example_inputs
from distiller_ng.names import ParameterIndex, unwrap
from distiller_ng.thinning.apply import apply_plan
from distiller_ng.thinning.plan import ThinningPlan

TOLERANCE = 1e-4


def leaves(value):
    """Every tensor of what a model returns."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [leaf for item in vars(value).values() for leaf in leaves(item)] if hasattr(value, "__dict__") else []


@torch.no_grad()
def run(model, inputs):
    """Eval outputs."""
    model = unwrap(model)
    training = {m: m.training for m in model.modules()}
    model.eval()
    found = [leaf.clone() for leaf in leaves(as_example_inputs(inputs).call(model))]
    for module, mode in training.items():
        module.training = mode
    return found


def masked_outputs(model, inputs, plan):
    """What a copy of the model returns with every cut entry of its parameters at zero."""
    run(model, inputs)  # weights that hooks compute are leaves afterwards, which can be copied
    twin = copy.deepcopy(unwrap(model))
    named = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for cut in plan.cuts:
            if cut.tensor in named:  # buffers are no weights
                named[cut.tensor].index_fill_(cut.dim, torch.tensor(cut.removed), 0)
    return run(twin, inputs)


def error_of(got, expected):
    """max |got - expected| / max |expected|."""
    assert [g.shape for g in got] == [e.shape for e in expected]
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        if not a.is_floating_point():
            assert torch.equal(a, b)
            continue
        assert torch.equal(a.isnan(), b.isnan())
        a, b = a.double().nan_to_num(), b.double().nan_to_num()
        worst = max(worst, float((a - b).abs().max()) / max(float(b.abs().max()), 1e-12)) if a.numel() else worst
    return worst


def frozen_copy(value):
    """A value as it is now, comparable with == later."""
    if isinstance(value, Tensor):
        return (
            "tensor",
            value.dtype,
            tuple(value.shape),
            value.stride(),
            value.detach().clone().contiguous().view(-1).tolist(),
        )
    if isinstance(value, dict):
        return {key: frozen_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [type(value).__name__, *(frozen_copy(item) for item in value)]
    return value if isinstance(value, int | float | str | bool | None | torch.Size) else id(value)


@dataclass
class State:
    """Everything a failed attempt must leave as it was."""

    values: object

    @classmethod
    def of(cls, model, optimizer=None, masks=None):
        """The state now."""
        tensors = [
            (name, id(t), frozen_copy(t), None if t.grad is None else frozen_copy(t.grad))
            for name, t in [
                *model.named_parameters(remove_duplicate=False),
                *model.named_buffers(remove_duplicate=False),
            ]
        ]
        attributes = [
            (
                name,
                id(module),
                {
                    k: frozen_copy(v)
                    for k, v in vars(module).items()
                    if not k.endswith("hooks") and k != "_flat_weights"
                },
            )
            for name, module in model.named_modules(remove_duplicate=False)
        ]
        state = None if optimizer is None else frozen_copy({id(k): v for k, v in optimizer.state.items()})
        kept = None if masks is None else {n: None if m.mask is None else frozen_copy(m.mask) for n, m in masks.items()}
        return cls((tensors, attributes, state, kept))


def choose(graph, seed, share=0.4):
    """Random removable channels that leave something of every dimension."""
    rng = random.Random(seed)
    every = sorted({int(c) for numbers in graph.axes.values() for c in numbers} - graph.frozen)
    chosen = {c for c in every if rng.random() < share}
    for numbers in graph.axes.values():
        own = set(numbers.tolist())
        if own <= chosen:
            chosen.discard(rng.choice(sorted(own)))
    return sorted(chosen)


def trained(model, inputs, kind="adam"):
    """An optimizer with state and gradients, and masks, of a model that made one step."""
    kinds = {"adam": torch.optim.Adam, "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = kinds[kind](parameters, lr=1e-3)
    model.train()
    sum(
        leaf.float().square().mean() for leaf in leaves(as_example_inputs(inputs).call(model)) if leaf.requires_grad
    ).backward()
    optimizer.step()
    masks = MaskRegistry(ParameterIndex(model))
    for name, p in list(model.named_parameters())[:2]:
        if p.dim() > 1:
            masks.set(name, (torch.rand_like(p) > 0.2).to(p.dtype), owner="test")
    return optimizer, masks


def prune_at_random(model, inputs, seed=0, *, share=0.4, with_state=True):
    """Prune; ("equal", channels removed, message) or ("refused", 0, message). Anything else is an AssertionError."""
    optimizer, masks = trained(model, inputs) if with_state else (None, None)
    before = State.of(model, optimizer, masks)
    try:
        graph = DependencyGraph.trace(model, inputs)
    except GraphError as error:
        assert State.of(model, optimizer, masks).values == before.values, "a refused trace changed something"
        return "refused", 0, str(error)
    channels = choose(graph, seed, share)
    assert State.of(model, optimizer, masks).values == before.values, "tracing changed something"
    if not channels:
        return "nothing", 0, ""
    identities = {name: id(p) for name, p in model.named_parameters()}
    try:
        plan = ThinningPlan.for_channels(graph, channels)
        expected = masked_outputs(model, inputs, plan)
        before = State.of(model, optimizer, masks)
        report = apply_plan(model, plan, inputs, optimizers=[optimizer] if optimizer else [], masks=masks)
    except GraphError as error:
        after = State.of(model, optimizer, masks)
        for old, new, what in zip(
            before.values, after.values, ("tensors", "attributes", "optimizer", "masks"), strict=True
        ):
            assert old == new, f"a refusal changed {what}: {error}"
        return "refused", 0, str(error)
    assert report.parameters[1] == sum(p.numel() for p in model.parameters()) < report.parameters[0]
    assert error_of(run(model, inputs), expected) <= TOLERANCE
    assert {name: id(p) for name, p in model.named_parameters()} == identities
    if optimizer is not None:
        step_again(model, inputs, optimizer, masks)
    return "equal", len(channels), str(report)


def step_again(model, inputs, optimizer, masks):
    """The thinned model goes on training with the state it has."""
    for name, masker in masks.items():
        assert masker.mask is None or masker.mask.shape == ParameterIndex(model)[name].shape
    for p in model.parameters():
        assert p.grad is None or p.grad.shape == p.shape
        for value in optimizer.state.get(p, {}).values():
            assert not isinstance(value, Tensor) or value.numel() == 1 or value.shape == p.shape
    optimizer.zero_grad()
    model.train()
    sum(
        leaf.float().square().mean() for leaf in leaves(as_example_inputs(inputs).call(model)) if leaf.requires_grad
    ).backward()
    optimizer.step()
