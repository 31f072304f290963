"""Naming, finding and setting modules."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

from distiller_ng.errors import TargetError
from distiller_ng.ops import modules as m


def model() -> nn.Module:
    return nn.Sequential(OrderedDict(layer1=nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), fc=nn.Linear(2, 2)))


def test_normalize():
    names = ["module.layer1.0", "features.module.0", "features.module", "module", "_orig_mod.fc", "modules.0"]
    assert [m.normalize_module_name(n) for n in names] == ["layer1.0", "features.0", "features", "", "fc", "modules.0"]


def test_normalize_drops_only_the_first_wrapper_part():
    names = ["module.a.module.b", "a.module.b.module.c", "_orig_mod.module.a.module", "a._orig_mod.b"]
    assert [m.normalize_module_name(n) for n in names] == ["a.module.b", "a.b.module.c", "a.module", "a.b"]


def test_names_of_a_models_own_module_called_module_come_back():
    net = nn.DataParallel(nn.Sequential(OrderedDict(a=nn.ModuleDict({"module": nn.Sequential(nn.ReLU())}))))
    assert m.normalize_module_name("module.a.module.0") == "a.module.0"
    assert m.denormalize_module_name(net, "a.module.0") == "module.a.module.0"
    assert m.denormalize_module_name(net, "a.0") == "module.a.module.0"


def test_denormalize():
    net = model()
    assert m.denormalize_module_name(nn.DataParallel(net), "layer1.0") == "module.layer1.0"
    net.layer1 = nn.DataParallel(net.layer1)
    assert m.denormalize_module_name(net, "layer1.0") == "layer1.module.0"
    assert m.denormalize_module_name(net, "nothing") == "nothing"


def test_find_modules():
    net = model()
    assert m.model_find_module(net, "layer1.0") is net.layer1[0]
    assert m.model_find_module(net, "module.layer1.0") is net.layer1[0]
    assert m.model_find_module(nn.DataParallel(net), "layer1.0") is net.layer1[0]
    assert m.model_find_module(net, "layer1.7") is None
    assert m.model_find_module(net, "") is net
    assert m.find_module_by_fq_name(net, "fc") is net.fc
    assert m.model_find_module_name(net, net.layer1[0]) == "layer1.0"
    assert m.model_find_module_name(net, nn.ReLU()) is None


def test_find_parameters():
    net = model()
    assert m.model_find_param(net, "") is None
    assert m.model_find_param(net, "layer1.0.weight") is net.layer1[0].weight
    assert m.model_find_param(net, "module.fc.bias") is net.fc.bias
    assert m.model_find_param_name(net, net.fc.weight) == "fc.weight"
    assert m.model_find_param_name(net, net.fc.weight.data) == "fc.weight"
    assert m.model_find_param_name(net, torch.ones(2, 2)) is None
    assert m.param_name_2_module_name("layer1.0.weight") == "layer1.0"
    assert m.param_name_2_module_name("weight") == ""


def test_assign_names():
    net = model()
    m.assign_layer_fq_names(net)
    assert net.layer1[0].distiller_name == "layer1.0" and net.distiller_name is None
    m.assign_layer_fq_names(net, "net")
    assert net.fc.distiller_name == "net.fc"


def test_setattr():
    net = model()
    m.model_setattr(net, "layer1.0.note", 3)
    assert net.layer1[0].note == 3
    m.model_setattr(net, "fc.scale", torch.ones(2), register=True)
    assert "fc.scale" in dict(net.named_buffers())
    m.model_setattr(net, "gain", nn.Parameter(torch.ones(1)), register=True)
    assert "gain" in dict(net.named_parameters())
    with pytest.raises(TargetError, match="no module 'layer2'. Did you mean 'layer1'"):
        m.model_setattr(net, "layer2.x", 1)


def test_children_and_devices():
    net = model()
    assert m.has_children(net) and not m.has_children(net.fc)
    assert m.model_device(net) == "cpu" and m.model_device(nn.ReLU()) == "cpu"
    assert m.optimizer_device_name(torch.optim.SGD(net.parameters(), 0.1)) == "cpu"


def test_non_parallel_copy():
    net = model()
    net.layer1 = nn.DataParallel(net.layer1)
    copy = m.make_non_parallel_copy(nn.DataParallel(net))
    assert list(dict(copy.named_parameters())) == ["layer1.0.weight", "layer1.0.bias", "fc.weight", "fc.bias"]
    assert copy.fc.weight is not net.fc.weight and torch.equal(copy.fc.weight, net.fc.weight)
    assert isinstance(net.layer1, nn.DataParallel)
    with m.get_nonparallel_clone_model(net) as clone:
        assert not isinstance(clone.layer1, nn.DataParallel)


def test_convert_tensors():
    Pair = namedtuple("Pair", "a b")
    value = {"x": [torch.ones(1), 3], "p": Pair(torch.ones(1), (torch.zeros(2),))}
    converted = m.convert_tensors_recursively_to(value, torch.float64)
    assert converted["x"][0].dtype == torch.float64 and converted["x"][1] == 3
    assert isinstance(converted["p"], Pair) and converted["p"].b[0].dtype == torch.float64
    assert value["x"][0].dtype == torch.float32
