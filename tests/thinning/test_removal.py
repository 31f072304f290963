"""remove_filters, remove_channels and contract_model, with the expectations of Distiller's own tests."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from thinning_checks import State
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError, GraphError
from distiller_ng.models import create_model


def masks_of(model):
    return distiller.create_model_masks_dict(model)


def zero(model, masks, name, indices, dim=0):
    """Mask structures of a weight by hand and apply the mask."""
    weight = dict(model.named_parameters())[name]
    masks[name].mask = torch.ones_like(weight).index_fill_(dim, torch.tensor(indices), 0)
    masks[name].apply_mask(weight)


class Net(nn.Module):
    """Two convolutions with norms and a linear layer behind a map of 4 x 3."""

    def __init__(self, norm=True, bias=True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 6, 3, bias=bias), nn.BatchNorm2d(6) if norm else nn.Identity()
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, bias=bias), nn.BatchNorm2d(8) if norm else nn.Identity()
        self.fc = nn.Linear(8 * 4 * 3, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.view(x.size(0), -1))


IMAGE = torch.randn(2, 2, 8, 7)


def step(model, optimizer, x=IMAGE):
    optimizer.zero_grad()
    model.train()
    model(x).square().mean().backward()
    optimizer.step()


def test_ranked_channels_of_resnet20():
    model = create_model(False, "cifar10", "resnet20_cifar", parallel=False)
    masks = masks_of(model)
    weight = model.layer1[0].conv1.weight
    before = weight.detach().clone()
    distiller.pruning.L1RankedStructureParameterPruner.rank_and_prune_channels(
        0.1, weight, "layer1.0.conv1.weight", masks
    )
    assert torch.equal(weight, before)
    assert masks["layer1.0.conv1.weight"].mask[0, :, 0, 0].sum() == 15
    masks["layer1.0.conv1.weight"].apply_mask(weight)
    distiller.remove_channels(model, masks, "resnet20_cifar", "cifar10", None)
    assert model.conv1.out_channels == 15
    assert model.layer1[0].conv1.in_channels == 15
    assert model.bn1.num_features == 15
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arch", "first", "second", "ratio", "parallel"),
    [
        ("resnet20_cifar", "layer1.0.conv1", "layer1.0.conv2", 0.1, True),
        ("resnet20_cifar", "layer1.0.conv1", "layer1.0.conv2", 0.5, False),
        ("simplenet_cifar", "conv1", "conv2", 0.5, True),
        ("simplenet_cifar", "conv1", "conv2", 0.2, False),
    ],
)
def test_ranked_filters(arch, first, second, ratio, parallel):
    model = create_model(False, "cifar10", arch, parallel=False)
    masks = masks_of(model)
    modules = dict(model.named_modules())
    weight = modules[first].weight
    count = weight.shape[0]
    pruner = distiller.pruning.L1RankedStructureParameterPruner("pruner", "Filters", ratio, first + ".weight")
    pruner.set_param_mask(weight, first + ".weight", masks, None)
    assert distiller.sparsity_3D(masks[first + ".weight"].mask) == pytest.approx(int(ratio * count) / count)
    masks[first + ".weight"].apply_mask(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    target = nn.DataParallel(model) if parallel else model
    step(target, optimizer, torch.randn(2, 3, 32, 32))
    masks[first + ".weight"].apply_mask(weight)
    distiller.remove_filters(target, masks, arch, "cifar10", optimizer)
    left = count - int(ratio * count)
    assert modules[first].out_channels == modules[second].in_channels == left
    assert masks[first + ".weight"].mask.shape == modules[first].weight.shape
    for _ in range(2):
        step(target, optimizer, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("removed", [[0, 2], [0, 1]])
@pytest.mark.parametrize("bias", [False, True])
def test_any_channels(removed, bias):
    model = Net(bias=bias)
    masks = masks_of(model)
    zero(model, masks, "conv2.weight", removed, dim=1)
    kept = [i for i in range(6) if i not in removed]
    running, first = model.bn1.running_var.clone().uniform_(), model.conv1.weight.detach().clone()
    model.bn1.running_var.copy_(running)
    distiller.remove_channels(model, masks, "net", None, None, example_inputs=(IMAGE,))
    assert (model.conv1.out_channels, model.conv2.in_channels, model.bn1.num_features) == (4, 4, 4)
    assert model.conv2.weight.shape == (8, 4, 3, 3)
    assert masks["conv2.weight"].mask.shape == (8, 4, 3, 3)
    assert torch.equal(model.conv1.weight, first[kept])
    assert torch.equal(model.bn1.running_var, running[kept])
    for tensor in (model.bn1.weight, model.bn1.bias, model.bn1.running_mean):
        assert tensor.shape == (4,)
    assert not bias or model.conv1.bias.shape == (4,)


@pytest.mark.parametrize("remove", ["remove_filters", "contract_model"])
def test_everything_zero_is_an_error(remove):
    model = Net()
    masks = masks_of(model)
    zero(model, masks, "conv1.weight", list(range(6)))
    before = State.of(model, None, masks)
    with pytest.raises(ValueError, match=r"all filters of 'conv1.weight' are zero.*not allowed"):
        getattr(distiller, remove)(model, masks, example_inputs=(IMAGE,))
    assert State.of(model, None, masks).values == before.values


def test_all_channels_zero_is_an_error():
    model = Net()
    with torch.no_grad():
        model.conv2.weight.zero_()
    with pytest.raises(ValueError, match=r"all channels of 'conv2.weight' are zero"):
        distiller.remove_channels(model, masks_of(model), example_inputs=(IMAGE,))


def test_nothing_to_remove_is_logged(caplog):
    model = Net()
    with caplog.at_level(logging.ERROR):
        report = distiller.remove_filters(model, masks_of(model), example_inputs=(IMAGE,))
    assert not report
    assert "no zero filters to remove" in caplog.text
    assert model.conv1.out_channels == 6


@pytest.mark.parametrize("norm", [True, False])
def test_convolution_in_front_of_a_linear_layer(norm):
    model = Net(norm=norm)
    masks = masks_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    zero(model, masks, "conv2.weight", [1, 4, 7])
    momentum = optimizer.state[model.fc.weight]["momentum_buffer"].clone()
    distiller.remove_filters(model, masks, optimizer=optimizer, example_inputs=(IMAGE,))
    assert model.fc.in_features == 5 * 12
    kept = [i * 12 + j for i in (0, 2, 3, 5, 6) for j in range(12)]
    assert torch.equal(optimizer.state[model.fc.weight]["momentum_buffer"], momentum[:, kept])
    assert model.fc.weight.grad.shape == (5, 60)
    for _ in range(2):
        step(model, optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["mobilenet", "vgg19_bn"])
def test_convolution_in_front_of_a_classifier(arch):
    model = create_model(False, "imagenet", arch, parallel=False)
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    linear = next(module for module in model.modules() if isinstance(module, nn.Linear))
    last = model.get_submodule(convolutions[-1])
    pixels = linear.in_features // last.out_channels
    count = last.out_channels
    masks = masks_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    zero(model, masks, convolutions[-1] + ".weight", list(range(0, count, 2)))
    distiller.remove_filters(model, masks, arch, "imagenet", optimizer)
    assert linear.in_features == pixels * count // 2
    for _ in range(2):
        step(model, optimizer, torch.randn(2, 3, 224, 224))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": torch.optim.Adam,
    "amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_state_follows(kind):
    """Thinned and dense go on alike: the weights that stay see the same gradients."""
    torch.manual_seed(1)
    dense = Net(norm=False)
    optimizer = OPTIMIZERS[kind](dense.parameters())
    step(dense, optimizer)
    removed, kept = [1, 4], [0, 2, 3, 5]
    with torch.no_grad():
        dense.conv1.weight[removed], dense.conv1.bias[removed] = 0, -1e-3  # behind relu: no value and no gradient
    thin, state = copy.deepcopy(dense), copy.deepcopy(optimizer.state_dict())
    other = OPTIMIZERS[kind](thin.parameters())
    other.load_state_dict(state)
    distiller.remove_filters(thin, optimizer=other, example_inputs=(IMAGE,))
    assert thin.conv1.out_channels == 4
    for model, opt in ((dense, optimizer), (thin, other)):
        step(model, opt)
    assert torch.allclose(thin.conv1.weight, dense.conv1.weight[kept], atol=1e-6)
    assert torch.allclose(thin.conv2.weight, dense.conv2.weight[:, kept], atol=1e-5)
    assert torch.allclose(thin.fc.weight, dense.fc.weight, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS])
def test_state_that_cannot_follow_is_refused(kind):
    model = Net()
    optimizer = kind(model.parameters())

    def closure():
        optimizer.zero_grad()
        loss = model(IMAGE).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        model.conv2.weight[0] = 0
    before = State.of(model, optimizer)
    with pytest.raises(GraphError, match=kind.__name__):
        distiller.remove_filters(model, optimizer=optimizer, example_inputs=(IMAGE,))
    assert State.of(model, optimizer).values == before.values


def test_masks_not_applied_yet_count():
    model = Net()
    masks = masks_of(model)
    masks["conv1.weight"].mask = torch.ones_like(model.conv1.weight).index_fill_(0, torch.tensor([3]), 0)
    masks["fc.weight"].mask = (torch.rand_like(model.fc.weight) > 0.5).float()
    kept = masks["fc.weight"].mask.clone()
    distiller.remove_filters(model, masks, example_inputs=(IMAGE,))
    assert model.conv1.out_channels == 5
    assert masks["conv1.weight"].mask.shape == (5, 2, 3, 3)
    assert torch.equal(masks["fc.weight"].mask, kept)


def test_round_to_keeps_hardware_friendly_widths():
    model = Net()
    with torch.no_grad():
        model.conv2.weight[:5] = 0
    distiller.remove_filters(model, example_inputs=(IMAGE,), round_to=4)
    assert model.conv2.out_channels == 4


@pytest.mark.parametrize("options", [{"round_to": 0}, {"round_to": True}, {"round_to": 2.0}, {"conflict": "last"}])
def test_wrong_options(options):
    with pytest.raises(ArgumentError):
        distiller.remove_filters(Net(), example_inputs=(IMAGE,), **options)


def test_inputs_are_needed():
    with pytest.raises(ArgumentError, match="example_inputs"):
        distiller.remove_filters(Net())
    with pytest.raises(GraphError, match="cannot be traced"):
        distiller.remove_filters(Net(), example_inputs=(torch.randn(1, 5, 8, 7),))


def test_compiled_and_wrapped_models_are_looked_through():
    model = Net()
    with torch.no_grad():
        model.conv1.weight[2] = 0
    distiller.remove_filters(torch.compile(model, backend="eager"), example_inputs=(IMAGE,))
    assert model.conv1.out_channels == 5
