"""One battery over every registered extension, and over what recipes brought to the other registries."""

import inspect
import textwrap

import pytest
import torch
import yaml
from torch import nn

import distiller_ng as distiller
from distiller_ng.config.kinds import KINDS
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.pruning import PRUNERS
from distiller_ng.quantization.base import QUANTIZERS

OURS = [name for name in EXTENSIONS.names() if EXTENSIONS.get(name).cls.__module__.startswith("distiller_ng.")]
OTHERS = [(registry, entry.name) for registry in (PRUNERS, QUANTIZERS) for entry in registry if entry.recipe_tags]
# The smallest arguments with which each extension works on the network below.
MINIMAL = {
    "ActivationRegularizer": {"layers": ["1"], "alpha": 0.1},
    "ChannelRemover": {"thinning_func_str": "remove_channels"},
    "DropoutRate": {"probability": 0.1},
    "EpochRange": {},
    "FilterRemover": {"thinning_func_str": "remove_filters"},
    "GradualParam": {"weights": ["0.bias"], "init_val": 1.0, "final_val": 0.0},
    "LayerPruning": {"layers": ["1"]},
    "LayerThinning": {},
    "LowRankThinning": {"layers": ["5"], "rank": 1},
    "LearningRateFunction": {"lr_func": "linear", "init_lr": 0.1, "final_lr": 0.01},
    "LearningRate": {"lr_class": "StepLR", "lr_kwargs": {"gamma": 0.5, "step_size": 1.0}, "init_lr": 0.1},
    "Powerpropagation": {"alpha": 2.0},
    "SetLearningRate": {"learning_rate": 0.1},
    "SetParam": {"weights": ["0.bias"], "val": 1.0},
    "SetWeightDecay": {"weight_decay": 0.1},
    "SoftMovement": {},
    "SoftThreshold": {},
    "SparsityLog": {},
    "StructureRemover": {"thinning_func_str": "remove_filters"},
    "TopKAST": {"forward_sparsity": 0.8, "backward_sparsity": 0.5},
    "TrainableParams": {"weights": ["0.bias"], "trainable": False},
    "WeightRewinder": {},
}


def sample_of(cls):
    """The last block of a class's documentation that is a schedule."""
    found = {}
    for part in inspect.getdoc(cls).split("::\n\n")[1:]:
        block = []
        for line in part.splitlines():
            if line.strip() and not line.startswith(" "):
                break
            block.append(line)
        text = textwrap.dedent("\n".join(block))
        found = yaml.safe_load(text) if text.split(":")[0] in KINDS else found
    return found


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3)
    )


@pytest.mark.parametrize("name", OURS)
def test_every_extension_has_arguments_here(name):
    assert name in MINIMAL, f"add {name} to MINIMAL"


@pytest.mark.parametrize(
    ("registry", "name"),
    [*((EXTENSIONS, name) for name in OURS), *OTHERS],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_the_documentation_shows_a_schedule_that_is_right(registry, name):
    cls = registry.get(name).cls
    if "::\n" not in (inspect.getdoc(cls) or "") and cls.__bases__[0].__doc__:
        cls = cls.__bases__[0]  # another name of its base
    sample = sample_of(cls)
    assert sample
    for section, definitions in sample.items():
        if section == "policies":
            for policy in definitions:
                extra = set(policy) - {"epochs", "starting_epoch", "ending_epoch", "frequency", "trigger"}
                assert len(extra) == 1 and extra <= {kind.key for kind in KINDS.values()}
                when = {key: value for key, value in policy.items() if key not in extra}
                assert PolicyWindow.from_arguments(**when).is_active(
                    policy.get("starting_epoch", policy.get("epochs", [0])[0])
                )
            continue
        for definition in definitions.values():
            found = KINDS[section].classes.get(definition.pop("class"))
            assert set(definition) <= set(found.arguments)
            assert {key for key, value in found.arguments.items() if value.required} <= set(definition)


@pytest.mark.parametrize("name", OURS)
def test_an_extension_added_twice_over_leaves_the_model_alone_until_it_acts(name):
    model = network()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    policy = EXTENSIONS.get(name).cls(**MINIMAL[name])
    assert isinstance(policy, Policy) and policy.describe()
    scheduler = distiller.CompressionScheduler(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    scheduler.add_policy(policy, starting_epoch=3, ending_epoch=6)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    assert [type(module) for module in model] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.Flatten, nn.Dropout, nn.Linear]


@pytest.mark.parametrize("name", OURS)
def test_state_is_plain_and_fits_an_equal_extension(name, tmp_path):
    def started():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = distiller.CompressionScheduler(
            model, optimizer=optimizer, example_inputs=(torch.randn(1, 1, 6, 6),)
        )
        policy = EXTENSIONS.get(name).cls(**MINIMAL[name])
        scheduler.add_policy(policy, starting_epoch=0, ending_epoch=4)
        return model, optimizer, scheduler, policy

    model, optimizer, scheduler, policy = started()
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 2)
    loss = scheduler.before_backward_pass(0, 0, 2, model(torch.randn(2, 1, 6, 6)).square().mean())
    loss.backward()
    scheduler.before_parameter_optimization(0, 0, 2)
    optimizer.step()
    scheduler.on_minibatch_end(0, 0, 2)
    path = tmp_path / "state.pt"
    torch.save(scheduler.state_dict(), path)
    _, _, resumed, other = started()
    resumed.load_state_dict(torch.load(path, weights_only=True))
    assert repr(other.state_dict()) == repr(policy.state_dict())


@pytest.mark.parametrize("name", OURS)
def test_constructors_are_typed_and_have_no_mutable_defaults(name):
    for parameter in inspect.signature(EXTENSIONS.get(name).cls).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert not isinstance(parameter.default, list | dict | set)
