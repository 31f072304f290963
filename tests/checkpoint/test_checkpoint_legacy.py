"""Files as Distiller wrote them: class references become placeholders, nothing is imported or run."""

import sys
import types
from collections import OrderedDict, namedtuple
from enum import Enum

import pytest
import torch
from torch import nn

from distiller_ng.checkpoint import load_checkpoint, read_checkpoint
from distiller_ng.checkpoint.legacy import placeholder_name
from distiller_ng.errors import CheckpointError


def model_like_distillers():
    return nn.Sequential(OrderedDict(conv1=nn.Conv2d(1, 2, 3), fc=nn.Linear(8, 2)))


@pytest.fixture
def distiller_classes():
    """A package called distiller with the classes its files refer to; gone again when the file is read."""
    modules = {}
    for name in ("distiller", "distiller.thinning", "distiller.quantization", "distiller.quantization.range_linear"):
        modules[name] = sys.modules[name] = types.ModuleType(name)
    thinning, quantization = modules["distiller.thinning"], modules["distiller.quantization.range_linear"]
    thinning.ThinningRecipe = namedtuple("ThinningRecipe", ["modules", "parameters"])
    thinning.ThinningRecipe.__module__ = "distiller.thinning"
    quantization.PostTrainLinearQuantizer = type("PostTrainLinearQuantizer", (), {"__module__": quantization.__name__})
    mode = Enum("LinearQuantMode", {"SYMMETRIC": 1}, module=quantization.__name__, qualname="LinearQuantMode")
    quantization.LinearQuantMode = mode
    yield thinning, quantization
    for name in modules:
        sys.modules.pop(name, None)


def distiller_content(**more):
    model = nn.DataParallel(model_like_distillers())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    mask = torch.ones(2, 8)
    mask[1] = 0
    masks = OrderedDict((name, None) for name, _ in model.named_parameters())
    masks["module.fc.weight"] = mask
    return {
        "epoch": 179,
        "state_dict": model.state_dict(),
        "arch": "mynet",
        "is_parallel": True,
        "dataset": "cifar10",
        "optimizer_type": torch.optim.SGD,
        "optimizer_state_dict": optimizer.state_dict(),
        "compression_sched": {"masks_dict": masks},
        "extras": {"best_top1": 92.5},
    } | more


def forget_distiller():
    for name in [name for name in sys.modules if name.split(".")[0] == "distiller"]:
        del sys.modules[name]


@pytest.mark.parametrize("new_format", [True, False])
def test_a_trained_checkpoint_loads(tmp_path, new_format):
    content = distiller_content(thinning_recipes=[])
    torch.save(content, tmp_path / "d.pth.tar", _use_new_zipfile_serialization=new_format)
    model, scheduler, optimizer, start_epoch = load_checkpoint(model_like_distillers(), tmp_path / "d.pth.tar")
    assert start_epoch == 180
    assert torch.equal(model.fc.weight, content["state_dict"]["module.fc.weight"])
    assert scheduler.masks["fc.weight"].mask.sum() == 8
    assert scheduler.masks["conv1.weight"].mask is None
    assert type(optimizer) is torch.optim.SGD
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.5, 0.9)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_optimizer_classes_become_names(tmp_path, kind):
    torch.save(distiller_content(optimizer_type=kind), tmp_path / "d.pth.tar")
    assert read_checkpoint(tmp_path / "d.pth.tar").optimizer_type == f"torch.optim.{kind.__name__}"


def thinned_content(thinning):
    """The model after Distiller removed its first filter: what the file says is kept, and the small weights."""
    recipe = thinning.ThinningRecipe(
        OrderedDict({"module.conv1": {"out_channels": 1}, "module.fc": {"in_features": 4}}),
        {
            "module.conv1.weight": [(0, torch.tensor([1]))],
            "module.conv1.bias": [(0, torch.tensor([1]))],
            # seen as (outputs, channels, height, width), then as the matrix it is
            "module.fc.weight": [(1, torch.tensor([1]), (2, 2, 2, 2), (2, 4))],
        },
    )
    content = distiller_content(thinning_recipes=[recipe])
    state = content["state_dict"]
    state["module.conv1.weight"] = state["module.conv1.weight"][1:]
    state["module.conv1.bias"] = state["module.conv1.bias"][1:]
    state["module.fc.weight"] = state["module.fc.weight"][:, 4:]
    masks = content["compression_sched"]["masks_dict"]
    masks["module.fc.weight"] = masks["module.fc.weight"][:, 4:]
    del content["optimizer_state_dict"], content["optimizer_type"]
    return content


@pytest.mark.parametrize("new_format", [True, False])
def test_a_thinned_one_loads_as_often_as_one_likes(tmp_path, distiller_classes, new_format):
    content = thinned_content(distiller_classes[0])
    torch.save(content, tmp_path / "d.pth.tar", _use_new_zipfile_serialization=new_format)
    forget_distiller()
    model = model_like_distillers()
    for _ in range(3):
        _, scheduler, _, _ = load_checkpoint(model, tmp_path / "d.pth.tar")
        assert (model.conv1.out_channels, model.fc.in_features) == (1, 4)
        assert torch.equal(model.fc.weight, content["state_dict"]["module.fc.weight"])
        assert torch.equal(model.conv1.bias, content["state_dict"]["module.conv1.bias"])
        assert scheduler.masks["fc.weight"].mask.shape == (2, 4)


def test_a_recipe_that_does_not_fit_leaves_the_model_alone(tmp_path, distiller_classes):
    thinning, _ = distiller_classes
    recipe = thinning.ThinningRecipe({}, {"conv1.weight": [(0, torch.tensor([7]))]})
    torch.save(distiller_content(thinning_recipes=[recipe]), tmp_path / "d.pth.tar")
    forget_distiller()
    model = model_like_distillers()
    with pytest.raises(CheckpointError, match=r"recipes do not fit.*conv1\.weight"):
        load_checkpoint(model, tmp_path / "d.pth.tar")
    assert model.conv1.weight.shape == (2, 1, 3, 3)


def test_one_that_only_says_it_is_quantized_is_refused(tmp_path, distiller_classes):
    _, quantization = distiller_classes
    metadata = {
        "type": quantization.PostTrainLinearQuantizer,
        "params": {"bits_activations": 8, "mode": quantization.LinearQuantMode.SYMMETRIC},
    }
    torch.save(distiller_content(quantizer_metadata=metadata), tmp_path / "d.pth.tar")
    forget_distiller()
    with pytest.raises(CheckpointError, match="quantized by Distiller"):
        load_checkpoint(model_like_distillers(), tmp_path / "d.pth.tar")


def test_other_classes_are_refused_by_name(tmp_path, distiller_classes):
    module = sys.modules["distiller"]
    module.Whatever = type("Whatever", (), {"__module__": "distiller"})
    torch.save(distiller_content(extras={"x": module.Whatever}), tmp_path / "d.pth.tar")
    forget_distiller()
    with pytest.raises(CheckpointError, match=r"refers to code \(distiller\.Whatever\)"):
        load_checkpoint(model_like_distillers(), tmp_path / "d.pth.tar")


def test_placeholders_are_not_left_allowed(tmp_path):
    before = set(map(str, torch.serialization.get_safe_globals()))
    torch.save(distiller_content(), tmp_path / "d.pth.tar")
    load_checkpoint(model_like_distillers(), tmp_path / "d.pth.tar")
    assert set(map(str, torch.serialization.get_safe_globals())) == before
    assert placeholder_name("SGD") is None
