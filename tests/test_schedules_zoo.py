"""Our own schedules: each says how to run it and what came out, loads on its model without a warning, and runs.

The epochs tried are each policy's first (and the one before it), middle and last, two minibatches each. Expected
sparsities are computed here from the YAML alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from distiller_ng.apputils.image_classifier import init_classifier_compression_arg_parser
from distiller_ng.config import file_config
from distiller_ng.learning_rate.base import LR_SCHEDULERS
from distiller_ng.models import create_model
from distiller_ng.pruning.base import PRUNERS
from distiller_ng.pruning.sparsity_schedules.base import SPARSITY_SCHEDULES
from distiller_ng.regularization.base import REGULARIZERS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "schedules"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))
MEASURED = [name for name in FILES if "/" in name]  # the two at the top have result lines of their own kind
SHAPES = {"digits": (1, 8, 8), "fashion-mnist": (1, 28, 28)}
MINIBATCHES, BATCH = 2, 4
#: Nothing of these is pruned at the end: draws for one minibatch, or released masks.
TRANSIENT = {
    "BernoulliFilterPruner",
    "BernoulliFilterPruner_AGP",
    "DenseSparseDense",
    "RandomLevelStructureParameterPruner",
}
RESULT = re.compile(
    r"Measured on the 360 test images: top-1 (?:(?P<before>[\d.]+) before pruning \(after epoch \d+\), )?"
    r"(?P<after>[\d.]+) at the end, (?P<zero>[\d.]+) % of all weights zero; without the schedule (?P<dense>[\d.]+)\."
)


def header(name: str) -> list[str]:
    lines = (FOLDER / name).read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:end]]


def paragraphs(name: str) -> list[str]:
    return [" ".join(part.split("\n")) for part in "\n".join(header(name)).split("\n\n")]


def command(name: str) -> list[str]:
    lines = header(name)
    first = next(i for i, line in enumerate(lines) if line.startswith("python "))
    last = next(i for i, line in enumerate(lines) if line.startswith("(on one line"))
    return shlex.split(" ".join(lines[first:last]))


def arguments(name: str) -> argparse.Namespace:
    return init_classifier_compression_arg_parser().parse_args(command(name)[2:])


def content(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def definitions(names: list[str] = FILES) -> Iterator[Mapping[str, Any]]:
    for name in names:
        for section in ("pruners", "regularizers", "lr_schedulers", "extensions"):
            yield from content(name).get(section, {}).values()


def content_of(section: str) -> list[Mapping[str, Any]]:
    return [definition for name in FILES for definition in content(name).get(section, {}).values()]


def ours(registry: Any) -> set[str]:
    """Names the library registers; other tests of the same process may register more."""
    return {n for n in registry.names() if registry.get(n).cls.__module__.startswith("distiller_ng.")}


def result_row(name: str) -> str:
    """The README's row of a file, from its header."""
    *_, what, measured = paragraphs(name)
    found = RESULT.match(measured)
    assert found is not None, f"{name}: the header's last paragraph states no result: {measured!r}"
    technique = what.split(". ")[0]
    zero = "0" if float(found["zero"]) == 0 else f"{found['zero']} %"
    return (
        f"| [{Path(name).name}]({name}) | {technique} | {found['before'] or ''} | {found['after']} "
        f"| {found['dense']} | {zero} |"
    )


def active_epochs(policy: Mapping[str, Any]) -> list[int]:
    """The epochs in which a policy of a file does something."""
    if "epochs" in policy:
        return list(policy["epochs"])
    start, end = policy["starting_epoch"], policy["ending_epoch"]
    return list(range(int(start), int(-(-end // 1)), max(1, int(policy["frequency"]))))


def macs(model: torch.nn.Module, shape: tuple[int, ...]) -> int:
    """Multiplications of the convolutions and linear layers, for one image."""
    counted = []

    def count(module, inputs, output):
        counted.append(output.numel() * module.weight[0].numel())

    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    model.train()
    for hook in hooks:
        hook.remove()
    return sum(counted)


class Zoo:
    """One schedule on its model, on made-up images."""

    def __init__(self, name: str) -> None:
        args = arguments(name)
        self.content = content(name)
        self.model = create_model(False, args.dataset, args.arch)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=args.lr, momentum=0.9)
        self.base_lr, self.total_epochs = args.lr, args.epochs
        self.shape = SHAPES[args.dataset]
        self.shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        self.macs = macs(self.model, self.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.scheduler = file_config(
                self.model, self.optimizer, FOLDER / name, example_inputs=(torch.randn(1, *self.shape),)
            )

    def epochs(self) -> list[int]:
        chosen = set()
        for policy in self.content["policies"]:
            active = active_epochs(policy)
            chosen |= {max(0, active[0] - 1), active[0], active[len(active) // 2], active[-1]}
        return sorted(chosen)

    def run(self) -> tuple[float, set[float]]:
        """The selected epochs and ``finish``; the largest penalty added to a loss, and all learning rates."""
        scheduler, optimizer, penalty = self.scheduler, self.optimizer, 0.0
        rates: set[float] = set()
        scheduler.grad_sampler = [(torch.randn(BATCH, *self.shape), torch.arange(BATCH)) for _ in range(MINIBATCHES)]
        for epoch in self.epochs():
            scheduler.on_epoch_begin(epoch)
            for step in range(MINIBATCHES):
                scheduler.on_minibatch_begin(epoch, step, MINIBATCHES, optimizer)
                loss = cross_entropy(self.model(torch.randn(BATCH, *self.shape)), torch.arange(BATCH))
                total = scheduler.before_backward_pass(epoch, step, MINIBATCHES, loss, optimizer)
                penalty = max(penalty, float(total.detach() - loss.detach()))
                optimizer.zero_grad()
                total.backward()
                scheduler.before_parameter_optimization(epoch, step, MINIBATCHES, optimizer)
                optimizer.step()
                rates.add(optimizer.param_groups[0]["lr"])
                scheduler.on_minibatch_end(epoch, step, MINIBATCHES, optimizer)
            scheduler.on_epoch_end(epoch, optimizer, metrics={"min": 1.0, "max": 50.0})
        scheduler.finish()
        return penalty, rates | {optimizer.param_groups[0]["lr"]}

    # -- what the file asks for -------------------------------------------------------------------------------------

    def pruners(self) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        named = [p["pruner"] for p in self.content["policies"] if "pruner" in p]
        return [(use, self.content["pruners"][use["instance_name"]]) for use in named]

    def planned(self) -> dict[str, float]:
        """The last level of each parameter whose pruner works by layer; of two pruners' the higher one."""
        last: dict[tuple[str, str], float] = {}
        for use, definition in self.pruners():
            if definition.get("scope") == "global" or definition["class"] in TRANSIENT:
                continue
            for name, level in self.levels(use, definition).items():
                last[use["instance_name"], name] = level
        levels: dict[str, float] = {}
        for (_, name), level in last.items():
            levels[name] = max(level, levels.get(name, 0.0))
        return levels

    def levels(self, use: Mapping[str, Any], definition: Mapping[str, Any]) -> dict[str, float]:
        override = use.get("args", {}).get("levels")
        by_target = definition.get("levels") or dict.fromkeys(targets(definition))
        found: dict[str, float] = {}
        for target, own in sorted(by_target.items(), key=lambda item: item[0].startswith("re:")):
            level = override if override is not None else final_level(definition, own)
            if level is not None:
                for name in self.scheduler.parameters.match(target):
                    found.setdefault(name, level)
        return found

    def pruned_by_threshold(self) -> set[str]:
        """Parameters that also lose what lies below a threshold, so more than a level says."""
        keys = ("sensitivities", "thresholds", "reg_regims")
        named = [t for _, d in self.pruners() for key in keys for t in d.get(key, ()) if t != "*"]
        return {name for target in named for name in self.scheduler.parameters.match(target)}

    def thinned(self) -> bool:
        """Whether filters or channels are removed in the end."""
        removers = {"ChannelRemover", "FilterRemover", "StructureRemover"}
        return any(definition["class"] in removers for definition in self.content.get("extensions", {}).values())

    def structure_dim(self, name: str) -> int | None:
        """The dimension of which a parameter loses whole entries, and nothing else by a pruner of its own."""
        kinds = [d.get("group_type", by_class(d)) for use, d in self.pruners() if name in self.levels(use, d)]
        dims = {{"Filters": 0, "Channels": 1}.get(kind) for kind in kinds}
        return dims.pop() if len(dims) == 1 else None

    def achieved(self, name: str) -> float:
        """The share of zeros; where whole filters or channels go theirs, as coupled layers zero more of the tensor."""
        weight, dim = self.scheduler.parameters[name].detach(), self.structure_dim(name)
        if dim is None:
            return float((weight == 0).double().mean())
        size = self.shapes[name][dim]
        zero = (weight.transpose(0, dim).flatten(1) == 0).all(dim=1)
        return (int(zero.sum()) + size - len(zero)) / size

    def tolerance(self, name: str) -> float:
        """The share of one structure, or of one weight where single weights are pruned."""
        structured = any(
            definition.get("group_type", by_class(definition)) != "Blocks" and name in self.levels(use, definition)
            for use, definition in self.pruners()
        )
        size = definition_group_size(self.pruners())
        shape = self.shapes[name]
        return size / min(shape[:2]) if structured else 8 / shape.numel()


def by_class(definition: Mapping[str, Any]) -> str:
    """The group type of a definition that names none."""
    return "Filters" if definition["class"] == "GroupPruner" else "Blocks"


def definition_group_size(pruners: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> int:
    return max((definition.get("group_size", 1) for _, definition in pruners), default=1)


def targets(definition: Mapping[str, Any]) -> list[str]:
    names = definition.get("weights", ())
    return [names] if isinstance(names, str) else list(names)


def final_level(definition: Mapping[str, Any], own: float | None) -> float | None:
    """What a definition prunes to in the end; None where that depends on the weights."""
    if own == 0:
        return 0.0
    schedule = definition.get("schedule", {})
    for source, key in ((schedule, "final_sparsity"), (schedule, "sparsity"), (definition, "final_sparsity")):
        if key in source:
            return float(source[key])
    if "levels" in schedule:
        return float(schedule["levels"][-1])
    if own is not None:
        return float(own)
    for key in ("desired_sparsity", "sparsity", "compression_sparsity"):
        if key in definition:
            return float(definition[key])
    if "pattern" in definition:
        kept, of = map(int, definition["pattern"].split(":"))
        return 1 - kept / of
    return None


# -- headers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_header_says_how_to_run_it_and_what_came_out(name):
    lines = header(name)
    schema = "../" * name.count("/") + "schedule.schema.json"
    assert lines[0] == f"yaml-language-server: $schema={schema}"
    assert command(name)[:2] == ["python", "examples/classifier_compression/compress_classifier.py"]
    args = arguments(name)
    assert args.compress == f"schedules/{name}"
    assert args.deterministic
    assert Path(name).stem.endswith(args.arch) or "/" not in name
    if name in MEASURED:
        assert RESULT.match(paragraphs(name)[-1])
        assert max(map(len, (FOLDER / name).read_text().splitlines())) <= 120


def test_the_readme_lists_every_file_with_its_result():
    readme = (FOLDER / "README.md").read_text()
    missing = [row for row in map(result_row, MEASURED) if row not in readme.splitlines()]
    assert not missing, "rows to write:\n" + "\n".join(missing)
    assert sorted(re.findall(r"\]\(([^)]+\.yaml)\)", readme)) == FILES


# -- contents -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    return jsonschema.Draft202012Validator(json.loads((FOLDER / "schedule.schema.json").read_text()))


@pytest.mark.parametrize("name", FILES)
def test_fits_the_editor_schema(name, validator):
    assert [error.message for error in validator.iter_errors(content(name))] == []


@pytest.mark.parametrize("registry", [PRUNERS, REGULARIZERS], ids=["pruners", "regularizers"])
def test_every_class_of_the_library_has_a_file(registry):
    used = {definition["class"] for definition in definitions(MEASURED)}
    assert ours(registry) - used == set()


def test_every_learning_rate_technique_has_a_file():
    used = {definition["class"] for definition in definitions(MEASURED)}
    common = {"StepLR", "MultiStepLR", "ExponentialLR", "CosineAnnealingLR", "OneCycleLR", "ReduceLROnPlateau"}
    assert common | {"SequentialLR"} | ours(LR_SCHEDULERS) - used <= used
    polynomial = [d for d in definitions(MEASURED) if d["class"] == "PolynomialLR"]
    assert {frozenset(d) & {"T_max", "total_iters"} for d in polynomial} == {
        frozenset({"T_max"}),
        frozenset({"total_iters"}),
    }
    assert any(d.get("unit") == "step" for d in definitions(MEASURED))


def test_every_sparsity_schedule_scope_pattern_group_and_criterion_has_a_file():
    found = list(definitions(MEASURED))
    assert {d["schedule"]["class"] for d in found if "schedule" in d} == ours(SPARSITY_SCHEDULES)
    assert {d["pattern"] for d in found if "pattern" in d} >= {"2:4"}
    assert {d["scope"] for d in found if "scope" in d} >= {"global"}
    lasso = [d for d in found if d["class"] == "GroupLassoRegularizer"]
    kinds = {kind for d in lasso for _, kind in d["reg_regims"].values()}
    assert kinds >= {"2D", "Rows", "Cols", "Rows+Cols", "Channels", "3D", "Filters", "4D", "Channels+4D"}
    assert {d.get("threshold_criteria") for d in lasso} == {None, "Max", "Mean_Abs"}
    assert {d["group_type"] for d in found if "group_type" in d} == {"Filters", "Channels", "Rows", "Blocks"}
    assert any(d.get("group_dependency") == "Leader" for d in found)
    assert {d["class"] for d in content_of("extensions")} == {
        "ChannelRemover",
        "FilterRemover",
        "LowRankThinning",
        "WeightRewinder",
    }


# -- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_runs_and_ends_at_the_planned_sparsity(name):
    zoo = Zoo(name)
    penalty, rates = zoo.run()
    parameters = zoo.scheduler.parameters
    for parameter, level in zoo.planned().items():
        achieved = zoo.achieved(parameter)
        if parameter in zoo.pruned_by_threshold():
            assert achieved >= level - zoo.tolerance(parameter), parameter
        else:
            assert achieved == pytest.approx(level, abs=zoo.tolerance(parameter)), parameter
    for budget in (definition["target"]["macs"] for _, definition in zoo.pruners() if "target" in definition):
        assert macs(zoo.model, zoo.shape) / zoo.macs == pytest.approx(budget, rel=0.02)
    if zoo.thinned():
        assert all(p.numel() <= zoo.shapes[name].numel() for name, p in zoo.model.named_parameters())
        assert sum(p.numel() for p in zoo.model.parameters()) < 0.6 * sum(s.numel() for s in zoo.shapes.values())
    for use, definition in zoo.pruners():
        if definition.get("scope") == "global" and "target" not in definition:
            weights = [parameters[n] for t in targets(definition) for n in parameters.match(t)]
            units = [w.flatten(1) if "group_type" in definition else w.flatten()[:, None] for w in weights]
            zero = torch.cat([(unit == 0).all(dim=1) for unit in units])
            wanted = final_level(definition, None) * len(zero)
            assert int(zero.sum()) in {int(wanted), round(wanted)}  # components of recipes round to the nearest
        if definition["class"] in TRANSIENT:
            masks = [zoo.scheduler.masks[n] for t in targets(definition) for n in parameters.match(t)]
            assert not any(use["instance_name"] in masker.owners for masker in masks)
    if "distillers" not in zoo.content:  # which weigh the loss anew
        assert (penalty > 0) == ("regularizers" in zoo.content)
    assert all(bool(p.isfinite().all()) for p in parameters.values())
    assert ("lr_schedulers" in zoo.content) == (rates != {zoo.base_lr})


@pytest.mark.parametrize("name", FILES)
def test_windows_end_within_the_epochs_of_the_command(name):
    epochs = arguments(name).epochs
    for policy in content(name)["policies"]:
        active = active_epochs(policy)
        assert 0 <= active[0] <= active[-1] < epochs
        assert policy.get("ending_epoch", epochs) <= epochs
