"""A class of the user's, decorated once: a schedule name, a recipe tag, a place in the schema and in the docs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.config.schema import schedule_schema
from distiller_ng.core.policy import Policy
from distiller_ng.errors import ScheduleError
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.pruning import PRUNERS, MagnitudePruner
from distiller_ng.registry import RecipeTag


@pytest.fixture(autouse=True)
def own_classes():
    """Two classes of a user's, for one test."""

    @PRUNERS.register("FirstColumns", injected=("name",), recipe_tag="FirstColumnsPruningModifier")
    class FirstColumns(MagnitudePruner):
        """Prunes the first columns.

        ``weights``: targets. ``final_sparsity``: 0..1.
        """

        def __init__(
            self, name: str, weights: str | Sequence[str], *, init_sparsity: float = 0.0, final_sparsity: float = 0.5
        ) -> None:
            super().__init__(name, weights, init_sparsity=init_sparsity, final_sparsity=final_sparsity)

        def scores(self, name, ctx):
            return torch.arange(1.0, 1 + ctx.weight(name).shape[1]).expand_as(ctx.weight(name))

    @EXTENSIONS.register(
        "ScaleGradients",
        recipe_tag=RecipeTag("ScaleGradientsModifier", end_epoch=-1.0, update_frequency=-1.0, renamed={"by": "factor"}),
    )
    class ScaleGradients(Policy):
        """Multiplies gradients by ``factor``; ``weights`` are targets."""

        def __init__(self, weights: str | Sequence[str], *, factor: float = 1.0) -> None:
            self.weights, self.factor = weights, factor

        def on_update(self, ctx):
            for name in ctx.parameters.select(self.weights):
                ctx.parameters[name].grad *= self.factor

    yield FirstColumns, ScaleGradients
    for registry, name in ((PRUNERS, "FirstColumns"), (EXTENSIONS, "ScaleGradients")):
        del registry._entries[name]


RECIPE = """
modifiers:
  - !FirstColumnsPruningModifier
    params: ['re:.*weight']
    final_sparsity: 0.75
    start_epoch: 0
    end_epoch: 2
    update_frequency: 1
  - !ScaleGradientsModifier
    params: __ALL__
    by: 0.0
    start_epoch: 1
"""
SCHEDULE = {
    "version": 1,
    "pruners": {"p": {"class": "FirstColumns", "weights": ["0.weight"], "final_sparsity": 0.75}},
    "extensions": {"g": {"class": "ScaleGradients", "weights": "__ALL__", "factor": 0.0}},
    "policies": [
        {
            "pruner": {"instance_name": "p"},
            "starting_epoch": 0,
            "ending_epoch": 2,
            "frequency": 1,
            "trigger": "step",
        },
        {
            "extension": {"instance_name": "g"},
            "starting_epoch": 1,
            "ending_epoch": -1,
            "frequency": -1,
            "trigger": "step",
        },
    ],
}


def trained(load):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = load(model, optimizer)
    at_one = None
    for epoch in scheduler.epochs(4):
        for x in scheduler.minibatches([torch.randn(4, 8)] * 2):
            optimizer.zero_grad()
            scheduler.backward(model(x).square().mean())
            optimizer.step()
        at_one = model[0].bias.detach().clone() if epoch == 0 else at_one
    return model, at_one


def test_recipe_and_schedule_train_the_same():
    from_recipe, bias = trained(lambda m, o: distiller.file_config(m, o, RECIPE))
    from_schedule, _ = trained(lambda m, o: distiller.dict_config(m, o, SCHEDULE))
    for a, b in zip(from_recipe.parameters(), from_schedule.parameters(), strict=True):
        assert torch.equal(a, b)
    dead = from_recipe[0].weight == 0
    assert dead.tolist() == [[True] * 6 + [False] * 2] * 4
    assert torch.equal(from_recipe[0].bias, bias)  # gradients were scaled to nothing


def test_a_mistake_in_the_recipe_is_found_at_its_place():
    with pytest.raises(ScheduleError) as caught:
        trained(lambda m, o: distiller.file_config(m, o, RECIPE.replace("final_sparsity", "final_sparsty")))
    assert "final_sparsity" in str(caught.value) and ":5:" in str(caught.value)
    with pytest.raises(ScheduleError, match="FirstColumnsPruningModifier"):
        trained(lambda m, o: distiller.file_config(m, o, RECIPE.replace("!FirstColumns", "!FirstColumn")))


def test_it_is_in_the_schema_with_its_documentation():
    text = json.dumps(schedule_schema(plugins=True))
    assert "FirstColumns" in text and "Prunes the first columns." in text
    assert "ScaleGradients" in text
    schema: Mapping = schedule_schema(plugins=True)
    branches = [b for b in schema["$defs"]["extension"]["allOf"] if b["then"]["title"] == "ScaleGradients"]
    assert set(branches[0]["then"]["properties"]) >= {"weights", "factor"}
