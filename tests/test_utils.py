"""Distiller's helper names: seeds, dummy inputs, YAML files, arguments."""

import argparse
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from distiller_ng import utils
from distiller_ng.errors import ArgumentError


def test_every_helper_of_distiller_has_its_name():
    text = """model_device optimizer_device_name to_np size2str size_to_str pretty_int MutableNamedTuple
    assign_layer_fq_names find_module_by_fq_name normalize_module_name denormalize_module_name volume density sparsity
    sparsity_3D density_3D sparsity_2D density_2D non_zero_channels sparsity_ch density_ch sparsity_blocks
    sparsity_matrix sparsity_cols sparsity_rows density_cols density_rows model_sparsity model_params_size
    model_params_stats model_numel norm_filters activation_channels_l1 activation_channels_means
    activation_channels_apoz get_dummy_input set_model_input_shape_attr make_non_parallel_copy
    get_nonparallel_clone_model set_seed set_deterministic yaml_ordered_load yaml_ordered_save
    float_range_argparse_checker filter_kwargs convert_tensors_recursively_to model_setattr param_name_2_module_name
    is_scalar has_children log_training_progress log_activation_statistics log_weights_sparsity log_model_buffers
    model_find_param_name model_find_module_name model_find_param model_find_module"""
    names = text.split()
    assert [name for name in names if name not in utils.__all__ or not callable(getattr(utils, name))] == []


def test_to_np():
    parameter = nn.Parameter(torch.tensor([1.5, 2.0]))
    assert utils.to_np(parameter).tolist() == [1.5, 2.0]
    assert utils.to_np(torch.ones(1, dtype=torch.bfloat16)).dtype == np.float32


def test_size2str():
    assert utils.size2str(torch.Size([2, 3])) == utils.size2str(torch.ones(2, 3)) == "(2, 3)"
    with pytest.raises(TypeError, match=r"torch\.Size or a tensor, got list"):
        utils.size2str([2, 3])


def test_is_scalar():
    values = [1, 2.5, np.float32(1), torch.tensor(1.0), torch.ones(1), [1]]
    assert [utils.is_scalar(v) for v in values] == [True, True, True, True, False, False]


def test_mutable_named_tuple():
    args = utils.MutableNamedTuple({"lr": 0.1})
    args.lr, args.epochs = 0.2, 3
    assert args == {"lr": 0.2, "epochs": 3} and args.lr == 0.2
    with pytest.raises(AttributeError):
        args.missing  # noqa: B018


def test_seeds_make_all_generators_repeat():
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    utils.set_seed(7)
    first = draw()
    utils.set_deterministic(7)
    assert draw() == first
    utils.set_deterministic(None)
    zero = draw()
    utils.set_seed(0)
    assert draw() == zero


def test_dummy_input_from_shapes():
    assert utils.get_dummy_input(input_shape=(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    nested = utils.get_dummy_input(input_shape=((1, 2), ((3,), (4, 5))), device="cpu")
    assert nested[0].shape == (1, 2) and nested[1][0].shape == (3,) and nested[1][1].shape == (4, 5)


def test_dummy_input_of_a_data_set_beats_a_shape():
    assert utils.get_dummy_input("cifar10", input_shape=(1, 2)).shape == (1, 3, 32, 32)
    assert utils.get_dummy_input("mnist").shape == (1, 1, 28, 28)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({}, ValueError),
        ({"dataset": "cifar100"}, ValueError),
        ({"input_shape": (1, -3, 8)}, ValueError),
        ({"input_shape": ((1, 2), (3, -4))}, ValueError),
        ({"input_shape": 5}, TypeError),
        ({"input_shape": [1, 3]}, TypeError),
        ({"input_shape": ("1", 3)}, TypeError),
        ({"input_shape": (1, (2, 3))}, TypeError),
        ({"input_shape": ((1, 2), [3])}, TypeError),
        ({"input_shape": (1.0, 2)}, TypeError),
        ({"input_shape": (True, 2)}, TypeError),
    ],
)
def test_bad_shapes(kwargs, error):
    with pytest.raises(error) as raised:
        utils.get_dummy_input(**kwargs)
    assert isinstance(raised.value, ArgumentError)
    with pytest.raises(error):
        utils.set_model_input_shape_attr(nn.ReLU(), **kwargs)


def test_input_shape_attribute_is_set_once():
    model = nn.ReLU()
    utils.set_model_input_shape_attr(model, input_shape=(1, 4))
    utils.set_model_input_shape_attr(model, dataset="cifar10")
    assert model.input_shape == (1, 4)


def test_yaml_round_trip(tmp_path):
    data = OrderedDict(z=OrderedDict(b=1, a=[1, 2.5]), y={"k": np.float64(0.5), "n": np.int64(3)}, x=(1, 2))
    path = tmp_path / "stats.yaml"
    utils.yaml_ordered_save(path, data)
    assert path.read_text().splitlines()[0] == "z:"
    with open(path) as file:
        loaded = utils.yaml_ordered_load(file)
    assert isinstance(loaded, OrderedDict) and isinstance(loaded["z"], OrderedDict)
    assert list(loaded) == ["z", "y", "x"] and list(loaded["z"]) == ["b", "a"]
    assert loaded["y"] == {"k": 0.5, "n": 3} and loaded["x"] == [1, 2]


def test_yaml_is_loaded_safely():
    with pytest.raises(ArgumentError, match="not valid YAML"):
        utils.yaml_ordered_load("!!python/object/apply:os.getcwd []")
    with pytest.raises(ArgumentError, match="not valid YAML"):
        utils.yaml_ordered_load("a: [1")
    assert utils.yaml_ordered_load("base: &b {x: 1}\nuse: {<<: *b, y: 2}")["use"] == {"x": 1, "y": 2}


def test_float_range():
    check = utils.float_range_argparse_checker(0, 1, exc_min=True)
    assert check("0.5") == 0.5 and check("1") == 1.0
    for bad in ("0", "1.01", "nan", "half"):
        with pytest.raises(argparse.ArgumentTypeError):
            check(bad)
    with pytest.raises(argparse.ArgumentTypeError, match="must be >= 0.0 and < 1.0, got 1.0"):
        utils.float_range_argparse_checker(exc_max=True)("1")
    with pytest.raises(ValueError, match="less than"):
        utils.float_range_argparse_checker(1, 1)


def test_filter_kwargs():
    def function(a, /, b, *args, c=1, **rest):
        return a, b, args, c, rest

    assert utils.filter_kwargs({"a": 1, "b": 2, "c": 3, "d": 4}, function) == ({"b": 2, "c": 3}, {"a": 1, "d": 4})
