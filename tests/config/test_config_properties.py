"""Whatever is done to a schedule: it loads, or a ScheduleError says where it is wrong, and nothing has changed."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_helpers import VALID, assert_untouched, new_model_and_optimizer, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distiller_ng.config import config_component_from_file_by_class, dict_config, file_config
from distiller_ng.errors import ScheduleError, ScheduleWarning

RICH = """\
version: 1
pruners:
  levels: {class: SparsityLevelParameterPruner, levels: {conv1.weight: 0.5, '*': 0.1}, pattern: '2:4'}
  ramp:
    class: AutomatedGradualPruner
    schedule: {class: MultiStep, milestones: [0.2, 0.6], levels: [0.1, 0.3]}
    scope: global
    weights: ['re:conv.*weight', fc.weight]
  filters:
    class: L1RankedStructureParameterPruner_AGP
    initial_sparsity: 0.1
    final_sparsity: 0.5
    group_type: Filters
    group_dependency: Leader
    weights: [conv1.weight, conv1.weight]
  blocks: {class: L1RankedStructureParameterPruner, group_type: Blocks, desired_sparsity: 0.5,
           kwargs: {block_shape: [1, 4, 1, 1]}, weights: conv2.weight}
  splice: {class: SplicingPruner, sensitivities: {fc.weight: 1}, low_thresh_mult: 0.9, hi_thresh_mult: 1.1}
  baidu: {class: BaiduRNNPruner, q: 0.1, ramp_epoch_offset: 1, ramp_slope_mult: 2, weights: [fc.weight]}
  random: {class: RandomLevelStructureParameterPruner, sparsity_range: [0.1, 0.2], group_type: 3D, weights: [conv1.weight]}
  structure: {class: StructureParameterPruner, reg_regims: {conv1.weight: [0.1, 3D]}, threshold_criteria: Max}
regularizers:
  lasso: {class: GroupLassoRegularizer, reg_regims: {conv1.weight: [0.1, 3D], fc.weight: [0.1, Rows]}}
  l1: {class: L1Regularizer, reg_regims: {fc.weight: 1e-4}, threshold_criteria: Mean_Abs}
  variance: {class: GroupVarianceRegularizer, reg_regims: {conv2.weight: [0.1, Channels]}}
lr_schedulers:
  decay: {class: MultiStepMultiGammaLR, milestones: [3, 5], gammas: [0.1, 0.2]}
  plateau: {class: ReduceLROnPlateau, patience: 2, mode: max}
  cycle: {class: OneCycleLR, max_lr: 0.5, total_steps: 10, unit: step}
  chain:
    class: SequentialLR
    schedulers: [{class: LinearLR, total_iters: 2}, {class: CosineAnnealingLR, T_max: 5}]
    milestones: [2]
policies:
  - pruner: {instance_name: levels, args: {levels: 0.3, keep_mask: true}}
    epochs: [0, 3]
  - pruner: {instance_name: ramp, args: {mini_batch_pruning_frequency: 3}}
    starting_epoch: 1.5
    ending_epoch: 4.5
    frequency: 0.25
  - pruner: {instance_name: filters, args: {mask_on_forward_only: true, mask_gradients: true}}
    starting_epoch: 5
    ending_epoch: 9
    frequency: 2
  - pruner: {instance_name: blocks}
    epochs: [20]
  - pruner: {instance_name: splice, starting_epoch: 30, ending_epoch: 34}
  - pruner: {instance_name: baidu}
    starting_epoch: 40
    ending_epoch: 50
  - pruner: {instance_name: random}
    epochs: [60]
  - pruner: {instance_name: structure}
    epochs: [70]
  - regularizer: {instance_name: lasso, args: {keep_mask: false}}
    starting_epoch: 0
    ending_epoch: -1
  - regularizer: {instance_name: l1}
    epochs: [1]
  - regularizer: {instance_name: variance}
    epochs: [2]
  - lr_scheduler: {instance_name: decay}
    starting_epoch: 0
    ending_epoch: 9
  - lr_scheduler: {instance_name: plateau}
    epochs: [10, 11]
  - lr_scheduler: {instance_name: cycle, args: {unit: step}}
    epochs: [12]
  - lr_scheduler: {instance_name: chain}
    epochs: [13]
"""
TEXTS = (RICH, VALID)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["conv1.weight", "fc.weight", "fc", "re:(", "re:.*", "__ALL__", "*", "AGP", "StepLR", "Filters", ""]
    ),
    st.dates().map(str),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(0, 3), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(data: Any, here: tuple = ()) -> list[tuple]:
    """The path of every value below the top."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [found for key, value in items for found in [(*here, key), *paths(value, (*here, key))]]


def parent(data: Any, path: tuple) -> Any:
    for part in path[:-1]:
        data = data[part]
    return data


@st.composite
def mutated(draw) -> dict:
    """A valid schedule with one to three things changed."""
    data = yaml.safe_load(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 3))):
        everywhere = paths(data)
        if not everywhere:
            break
        path = draw(st.sampled_from(everywhere))
        holder, key = parent(data, path), path[-1]
        action = draw(st.sampled_from(["delete", "replace", "rename", "swap", "add", "wrap"]))
        if action == "delete":
            del holder[key]
        elif action == "replace":
            holder[key] = draw(VALUES)
        elif action == "wrap":
            holder[key] = draw(st.sampled_from([[holder[key]], {"class": holder[key]}, [holder[key]] * 2]))
        elif action == "add" and isinstance(holder[key], dict):
            holder[key][draw(st.text(max_size=6) | st.sampled_from(["name", "optimizer", "epochs"]))] = draw(VALUES)
        elif action == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=6) | st.integers() | st.just(f"{key}s"))] = holder.pop(key)
        elif action == "swap":
            other = draw(st.sampled_from(everywhere))
            value = copy.deepcopy(parent(data, other)[other[-1]])
            holder[key] = value
    return data


@st.composite
def damaged(draw) -> bytes:
    """A valid text with characters, lines or its end lost, moved or replaced."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(text) - 1, 0)))
        action = draw(st.sampled_from(["truncate", "insert", "delete", "lines", "duplicate"]))
        if action == "truncate":
            text = text[:at]
        elif action == "insert":
            text = (
                text[:at]
                + draw(st.text(max_size=4) | st.sampled_from(["&a ", "*a", "!!int ", "- ", ": ", "\t"]))
                + text[at:]
            )
        elif action == "delete":
            text = text[:at] + text[at + draw(st.integers(1, 30)) :]
        else:
            lines = text.splitlines(keepends=True) or [""]
            first, second = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
            if action == "lines":
                lines[first], lines[second] = lines[second], lines[first]
            else:
                lines.insert(second, lines[first])
            text = "".join(lines)
    return text.encode("utf-8", "surrogatepass")


def check(load) -> None:
    """Load with ``load(model, optimizer)``; only success or a located ScheduleError will do."""
    model, optimizer = new_model_and_optimizer()
    before = snapshot(model, optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            load(model, optimizer)
        except ScheduleError as error:
            assert error.problems
            assert all(p.message and ((p.line >= 1 and p.column >= 1) or p.source == "<dict>") for p in error.problems)
            assert_untouched(model, optimizer, before)
        else:  # the step hooks are there now, all the rest is as it was
            assert_untouched(model, optimizer, (*before[:-1], snapshot(model, optimizer)[-1]))
    assert all(issubclass(w.category, ScheduleWarning) for w in caught), [str(w.message) for w in caught]


def load_bytes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "schedule.yaml"
        path.write_bytes(content)
        check(lambda model, optimizer: file_config(model, optimizer, path))


FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))


def test_the_schedules_that_are_mutated_are_valid():
    for text in TEXTS:
        model, optimizer = new_model_and_optimizer()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScheduleWarning)
            assert dict_config(model, optimizer, yaml.safe_load(text.replace("1e-4", "0.0001"))).schedule


@FEW
@given(mutated())
def test_changed_data_in_a_file(data):
    load_bytes(yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass"))


@FEW
@given(mutated(), st.sampled_from(["error", "warn"]))
def test_changed_data_in_a_dictionary(data, on_unmatched):
    original = copy.deepcopy(data)
    check(lambda model, optimizer: dict_config(model, optimizer, data, on_unmatched=on_unmatched))
    assert repr(data) == repr(original)


@FEW
@given(damaged())
def test_damaged_text(content):
    load_bytes(content)


@FEW
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes(content):
    load_bytes(content)


@FEW
@given(VALUES)
def test_any_data(data):
    check(lambda model, optimizer: dict_config(model, optimizer, data))


@FEW
@given(damaged(), st.sampled_from(["AutomatedGradualPruner", "L1Regularizer", "StepLR", ""]))
def test_one_component_of_damaged_text(content, class_name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "schedule.yaml"
        path.write_bytes(content)
        check(lambda model, optimizer: config_component_from_file_by_class(model, path, class_name))


@pytest.mark.slow
@MANY
@given(mutated())
def test_much_changed_data(data):
    load_bytes(yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass"))


@pytest.mark.slow
@MANY
@given(damaged())
def test_much_damaged_text(content):
    load_bytes(content)
