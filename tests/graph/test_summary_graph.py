"""The summary graph: Distiller's expectations on real models, and names on odd ones."""

from __future__ import annotations

import logging
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError, GraphError
from distiller_ng.models import create_model
from distiller_ng.summary_graph import AdjacentsEntry, OpSimpleMetadata, SummaryGraph, onnx_name_2_pytorch_name


def wrap(model, how):
    return {"plain": lambda m: m, "parallel": nn.DataParallel, "compiled": torch.compile}[how](model)


PREFIX = {"plain": "", "parallel": "module.", "compiled": "_orig_mod."}


@pytest.fixture(scope="module", params=list(PREFIX))
def wrapped_resnet(request):
    model = wrap(create_model(False, "cifar10", "resnet20_cifar", parallel=False), request.param)
    return SummaryGraph(model, torch.randn(1, 3, 32, 32)), PREFIX[request.param]


@pytest.fixture(params=[True, False], ids=["own_names", "plain_names"])
def denorm_names(request):
    return request.param


def test_resnet20_operations(wrapped_resnet):
    graph, _ = wrapped_resnet
    kinds = Counter(op["type"] for op in graph.ops.values())
    assert kinds == {
        "Conv": 21, "BatchNormalization": 21, "Relu": 19, "Add": 9, "AveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip
    assert graph.edges[0] == SummaryGraph.Edge("input.1", "conv1")
    assert (graph.edges[0].src, graph.edges[0].dst) == ("input.1", "conv1")


def test_resnet20_neighbours(wrapped_resnet, denorm_names):
    graph, prefix = wrapped_resnet
    prefix = prefix if denorm_names else ""
    norm = graph.find_op("bn1")
    read = ["conv1:0", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"]
    for _ in range(2):
        assert graph.predecessors(norm, 1, denorm_names=denorm_names) == read
    assert graph.predecessors(norm, 2, denorm_names=denorm_names) == [f"{prefix}conv1"]
    assert graph.predecessors(norm, 3, denorm_names=denorm_names) == ["input.1", "conv1.weight"]
    assert graph.predecessors(norm, 10, denorm_names=denorm_names) == []
    assert graph.successors(norm, 2, denorm_names=denorm_names) == [f"{prefix}relu"]
    behind = graph.successors(graph.find_op("layer1.0.relu2"), 4, denorm_names=denorm_names)
    assert behind == [f"{prefix}layer1.1.bn1", f"{prefix}layer1.1.relu2"]


@pytest.mark.parametrize(
    ("query", "start", "kind", "expected"),
    [
        ("successors_f", "layer1.0.conv1", "Conv", ["layer1.0.conv2"]),
        (
            "successors_f",
            "relu",
            "Conv",
            ["layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1", "layer2.0.conv1", "layer2.0.downsample.0"],
        ),
        ("successors_f", "relu", "Gemm", ["fc"]),
        ("successors_f", "layer3.2", "Conv", []),
        ("successors_f", "layer3.2.conv2", ["Conv"], []),
        ("successors_f", "layer3.2.conv2", ["Conv", "Gemm"], ["fc"]),
        ("predecessors_f", "conv1", "Conv", []),
        ("predecessors_f", "layer1.0.conv2", "Conv", ["layer1.0.conv1"]),
        ("predecessors_f", "layer1.0.conv1", "Conv", ["conv1"]),
        ("predecessors_f", "layer1.1.conv1", "Conv", ["conv1", "layer1.0.conv2"]),
        ("predecessors_f", "layer1.1.conv1", {"Add"}, ["layer1.0.residual_eltwiseadd"]),
    ],
)
def test_resnet20_search_by_type(wrapped_resnet, denorm_names, query, start, kind, expected):
    graph, prefix = wrapped_resnet
    prefix = prefix if denorm_names else ""
    for name in (start, f"module.{start}"):
        found = getattr(graph, query)(name, kind, [], logging, denorm_names=denorm_names)
        assert found == [prefix + layer for layer in expected]


def test_search_from_a_tensor_and_with_a_done_list(wrapped_resnet):
    graph, prefix = wrapped_resnet
    assert graph.successors_f("input.1", "Conv") == [f"{prefix}conv1"]
    assert graph.successors("conv1:0", 1) == [f"{prefix}bn1"]
    done = ["layer1.0.conv1"]
    assert graph.successors_f("relu", ("Conv",), done)[0] == f"{prefix}layer1.1.conv1"
    assert "layer1.1.conv1" in done
    assert graph.successors("relu", 2, ["layer1.0.conv1"], False) == ["layer1.0.residual_eltwiseadd"]


def test_an_unknown_node_has_no_neighbours(wrapped_resnet, caplog):
    graph, _ = wrapped_resnet
    with caplog.at_level(logging.WARNING):
        assert graph.predecessors_f("nothing", "Conv") == []
    assert "nothing" in caplog.text
    assert graph.find_op("nothing") is None
    assert graph.find_param("nothing") is None
    assert graph.successors("nothing", 2) == []


def test_simplenet_and_vgg():
    graph = SummaryGraph(create_model(False, "cifar10", "simplenet_cifar", parallel=False), torch.randn(1, 3, 32, 32))
    assert graph.predecessors_f("module.conv1", "Conv") == []
    assert graph.predecessors_f("module.conv2", "Conv") == ["conv1"]
    graph = SummaryGraph(create_model(False, "cifar10", "vgg19_cifar", parallel=False), torch.randn(1, 3, 32, 32))
    convolutions = [name for name, op in graph.ops.items() if op["type"] == "Conv"]
    for before, after in pairwise(convolutions):
        assert graph.successors_f(before, "Conv") == [after]
    assert graph.successors_f(convolutions[-1], "Conv") == []


@pytest.mark.parametrize("how", PREFIX)
@pytest.mark.parametrize("arch", ["resnet20_cifar", "vgg16_cifar"])
def test_layers_of_parameters_are_found(arch, how):
    model = wrap(create_model(False, "cifar10", arch, parallel=False), how)
    graph = SummaryGraph(model, torch.randn(1, 3, 32, 32))
    triples = list(graph.named_params_layers())
    assert [(n, p) for _, n, p in triples] == list(model.named_parameters())
    assert all(graph.find_op(layer)["module-name"] == layer for layer, _, _ in triples)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert graph.find_op(name)["attrs"]["weights_vol"] == module.weight.numel()


def test_macs_are_those_of_the_compute_summary():
    model = create_model(False, "imagenet", "mobilenet", parallel=False)
    x = torch.randn(1, 3, 224, 224)
    graph = SummaryGraph(model, x)
    table = distiller.model_performance_summary(model, x)
    measured = dict(zip(table["Name"], table["MACs"], strict=True))
    assert {name: graph.find_op(name)["attrs"]["MACs"] for name in measured} == measured
    assert sum(graph.get_attr("MACs")) == 568740352
    assert graph.get_attr("MACs", lambda op: op["type"] == "Gemm") == [1024000]


def test_attributes_of_layers():
    model = nn.Sequential(nn.Conv2d(4, 6, (3, 1), 2, 1, groups=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 5))
    graph = SummaryGraph(model, torch.randn(2, 4, 3, 4))
    conv, fc = graph.find_op("0")["attrs"], graph.find_op("3")["attrs"]
    assert graph.param_shape("0:0") == (2, 6, 2, 3)
    assert graph.param_volume("0:0") == graph.volume((2, 6, 2, 3)) == 72
    assert conv == {
        "kernel_shape": [3, 1], "group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1],
        "MACs": 72 * 6, "footprint": 96 + 72 + 36, "fm_vol": 168, "weights_vol": 36, "n_ifm": 4, "n_ofm": 6,
        "ai": 2,
    }  # fmt: skip
    assert (fc["MACs"], fc["n_ifm"], fc["n_ofm"], fc["weights_vol"]) == (2 * 30, 6, 5, 30)
    assert graph.find_op("1")["attrs"]["footprint"] == 72 + 2 * 6
    assert [op["name"] for op in graph.get_ops("fm_vol")] == ["0", "3"]
    assert [op["name"] for op in graph.get_ops("fm_vol", lambda op: op["type"] == "Gemm")] == ["3"]
    assert graph.find_param("0.weight") == {"id": "0.weight", "shape": (6, 2, 3, 1)}
    assert graph.find_op("0")["params"] == ["0.weight", "0.bias"]


def test_padding_of_average_pooling_is_no_operation():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.avgpool = nn.Conv2d(3, 10, 5), nn.AvgPool2d(2, padding=1)

        def forward(self, x):
            return self.avgpool(self.conv(x))

    graph = SummaryGraph(Pooled(), distiller.get_dummy_input(input_shape=(1, 3, 50, 50)))
    assert [(op["name"], op["type"]) for op in graph.ops.values()] == [("conv", "Conv"), ("avgpool", "AveragePool")]


@pytest.mark.parametrize("workarounds", [True, False])
def test_dropout_does_not_take_the_name_of_its_neighbours(workarounds):
    model = nn.Sequential()
    sizes = {"fc1": (100, 50), "fc2": (50, 25), "fc3": (25, 1)}
    for name, part in [
        ("drop1", nn.Dropout()), ("fc1", None), ("relu1", nn.ReLU(inplace=True)), ("drop2", nn.Dropout()),
        ("fc2", None), ("relu2", nn.ReLU(inplace=True)), ("fc3", None), ("drop3", nn.Dropout()),
    ]:  # fmt: skip
        model.add_module(name, part or nn.Linear(*sizes[name]))
    graph = SummaryGraph(model.train(), torch.randn(1, 100), apply_scope_name_workarounds=workarounds)
    assert list(graph.ops) == ["fc1", "relu1", "fc2", "relu2", "fc3"]
    assert [op["type"] for op in graph.ops.values()] == ["Gemm", "Relu", "Gemm", "Relu", "Gemm"]
    assert graph.successors("relu1", 2) == ["fc2"]
    assert model.training


class Functional(nn.Module):
    """A convolution whose output goes on twice; the second time into an addition that is no module."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 10, 5), nn.BatchNorm2d(10)
        self.post_conv_bn = nn.ModuleList([nn.Tanh(), nn.ReLU()])

    def forward(self, x):
        res = self.conv(x)
        y = self.bn(res)
        for module in self.post_conv_bn:
            y = module(y)
        return y + res


@pytest.mark.parametrize("how", PREFIX)
@pytest.mark.parametrize("dedicated", [False, True])
def test_adjacency_map(how, dedicated):
    graph = SummaryGraph(wrap(Functional(), how), torch.randn(1, 3, 10, 10))
    prefix = PREFIX[how]
    conv, norm, add = (
        OpSimpleMetadata(f"{prefix}conv", "Conv"),
        OpSimpleMetadata(f"{prefix}bn", "BatchNormalization"),
        OpSimpleMetadata("top_level_op", "Add"),
    )
    tanh, relu = (
        OpSimpleMetadata(f"{prefix}post_conv_bn.0", "Tanh"),
        OpSimpleMetadata(f"{prefix}post_conv_bn.1", "Relu"),
    )
    expected = {
        conv.name: AdjacentsEntry(conv, [], [norm] if dedicated else [norm, add]),
        norm.name: AdjacentsEntry(norm, [conv], [tanh]),
        tanh.name: AdjacentsEntry(tanh, [norm], [relu]),
        relu.name: AdjacentsEntry(relu, [tanh], [] if dedicated else [add]),
    }
    if not dedicated:
        expected[add.name] = AdjacentsEntry(add, [relu, conv])
    graph.adjacency_map(dedicated_modules_only=not dedicated)  # must not be what the next call returns
    found = graph.adjacency_map(dedicated_modules_only=dedicated)
    assert found == expected
    assert list(found) == list(expected)
    assert graph.missing_modules() == ["top_level_op"]
    assert graph.top_level_ops() == {"conv"}
    order = graph.layers_topological_order()
    assert order == [conv.name, norm.name, tanh.name, relu.name]


class Lists(nn.Module):
    """Lists in lists, and the same list under two names."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 5)
        inner = nn.ModuleList([nn.Tanh(), nn.MaxPool2d(2)])
        self.post_conv1 = nn.ModuleList([nn.BatchNorm2d(10), nn.ModuleList([nn.ReLU(), inner])])
        self.conv2 = nn.Conv2d(10, 20, 3)
        self.post_conv2 = nn.ModuleList([nn.ReLU6(), nn.Sigmoid()])
        self.again = self.post_conv2

    def forward(self, x):
        x = self.post_conv1[1][0](self.post_conv1[0](self.conv1(x)))
        for module in self.post_conv1[1][1]:
            x = module(x)
        x = self.conv2(x)
        for module in (*self.post_conv2, *self.again):
            x = module(x)
        return x


def test_names_in_module_lists():
    graph = SummaryGraph(Lists(), torch.randn(1, 3, 30, 30))
    assert [(op["name"], op["type"]) for op in graph.ops.values()] == [
        ("conv1", "Conv"),
        ("post_conv1.0", "BatchNormalization"),
        ("post_conv1.1.0", "Relu"),
        ("post_conv1.1.1.0", "Tanh"),
        ("post_conv1.1.1.1", "MaxPool"),
        ("conv2", "Conv"),
        ("post_conv2.0", "Clip"),
        ("post_conv2.1", "Sigmoid"),
        ("post_conv2.0_Clip_1", "Clip"),
        ("post_conv2.1_Sigmoid_1", "Sigmoid"),
    ]
    assert graph.module_ops_map["post_conv2.0"] == ["post_conv2.0", "post_conv2.0_Clip_1"]
    assert graph.find_op("again.0") is graph.find_op("post_conv2.0")
    assert "post_conv2.0" not in graph.adjacency_map(True)
    assert graph.adjacency_map(True)["conv2"].successors == []


def test_a_module_of_the_users_own_called_module():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x):
            return self.module(x) + 1

    graph = SummaryGraph(nn.DataParallel(Inner()), torch.randn(2, 4))
    assert list(graph.ops) == ["module.0", "module.1", "top_level_op"]
    assert list(graph.adjacency_map()) == ["module.module.0", "module.module.1", "top_level_op"]
    assert graph.find_op("module.module.0") is graph.find_op("module.0")


def test_a_part_inside_data_parallel():
    model = nn.Sequential()
    model.add_module("features", nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())))
    graph = SummaryGraph(model, torch.randn(1, 3, 4, 4))
    assert list(graph.ops) == ["features.0", "features.1"]
    assert graph.find_op("features.module.0")["module-name"] == "features.module.0"
    assert graph.successors_f("features.module.0", "Relu") == ["features.module.1"]


def test_recurrent_layers_several_inputs_and_outputs():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.lstm, self.fc = nn.Embedding(9, 4), nn.LSTM(4, 6), nn.Linear(6, 3)

        def forward(self, words, scale=None):
            y, (h, _) = self.lstm(self.embed(words))
            return self.fc(y) * scale, torch.cat([h, h])

    graph = SummaryGraph(Recurrent(), {"words": torch.zeros(5, 2, dtype=torch.long), "scale": torch.ones(3)})
    names = {op["name"]: op["type"] for op in graph.ops.values()}
    assert names == {
        "embed": "Gather", "lstm": "LSTM", "fc": "Gemm", "top_level_op": "Mul", "top_level_op_Concat_1": "Concat",
    }  # fmt: skip
    assert graph.find_op("lstm")["outputs"] == ["lstm:0", "lstm:1", "lstm:2"]
    assert graph.successors("lstm", 2) == ["fc", "top_level_op_Concat_1"]
    assert graph.find_op("top_level_op")["inputs"] == ["fc:0", "input.2"]
    assert graph.layers_topological_order(recurrent=True) == ["embed", "lstm", "fc"]
    assert graph.find_op("fc")["attrs"]["MACs"] == 10 * 18
    assert set(graph.dummy_input) == {"words", "scale"}


def test_products_of_activations_are_counted_apart():
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x) + torch.softmax(x @ x.transpose(-1, -2), -1) @ x

    graph = SummaryGraph(Attention(), torch.randn(1, 2, 5, 3))
    kinds = [op["type"] for op in graph.ops.values()]
    assert kinds == ["Attention", "Transpose", "MatMul", "Softmax", "MatMul", "Add"]
    assert graph.get_attr("MACs") == [0] * 6
    assert graph.get_attr("product_MACs") == [300, 150, 150]


def test_what_no_input_reaches_is_no_operation():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 1))
            self.place = nn.Parameter(torch.zeros(1, 9, 1, 1))

        def forward(self, x):
            return self.conv(x) + self.place[:, :4] + torch.arange(4).view(4, 1, 1) * 2

    graph = SummaryGraph(Constant(), torch.randn(1, 3, 5, 5))
    assert [(op["name"], op["type"]) for op in graph.ops.values()] == [
        ("conv", "Conv"), ("top_level_op", "Add"), ("top_level_op_Add_1", "Add"),
    ]  # fmt: skip
    originals = [f"conv.parametrizations.weight.original{n}" for n in (1, 0)]
    assert graph.find_op("conv")["params"] == [*originals, "conv.bias"]
    assert graph.param_shape(originals[0]) == (4, 3, 1, 1)
    assert graph.find_op("conv")["attrs"]["weights_vol"] == 12
    assert graph.find_op("top_level_op")["inputs"] == ["conv:0", "place"]
    assert graph.param_shape("place") == (1, 9, 1, 1)


def test_what_is_changed_in_place_is_read_changed():
    class InPlace(nn.Module):
        def forward(self, x):
            y = x + 1
            F.relu_(y)
            return torch.sigmoid(y)

    graph = SummaryGraph(InPlace(), torch.randn(3))
    assert [op["type"] for op in graph.ops.values()] == ["Add", "Relu", "Sigmoid"]
    assert graph.predecessors_f("top_level_op_Sigmoid_2", "Relu") == ["top_level_op_Relu_1"]


@pytest.mark.parametrize(
    ("apply", "kind"),
    [
        (lambda x: x - 1, "Sub"),
        (lambda x: x / 2, "Div"),
        (lambda x: F.adaptive_avg_pool2d(x, 1), "GlobalAveragePool"),
        (lambda x: F.adaptive_avg_pool2d(x, 2), "AveragePool"),
        (lambda x: F.adaptive_max_pool2d(x, 1), "GlobalMaxPool"),
        (lambda x: F.max_pool2d(x, 2), "MaxPool"),
        (lambda x: x.chunk(2, 1)[0], "Split"),
        (lambda x: torch.cat([x, x], 1), "Concat"),
        (lambda x: F.interpolate(x, scale_factor=2), "Resize"),
        (lambda x: F.pad(x, (1, 1)), "Pad"),
        (lambda x: x.flatten(1), "Flatten"),
        (lambda x: x.reshape(-1), "Reshape"),
        (lambda x: x.permute(0, 2, 3, 1), "Transpose"),
        (lambda x: x.softmax(1), "Softmax"),
        (lambda x: F.log_softmax(x, 1), "LogSoftmax"),
        (lambda x: x.tanh(), "Tanh"),
        (lambda x: F.leaky_relu(x), "LeakyRelu"),
        (lambda x: F.gelu(x), "Gelu"),
        (lambda x: F.silu(x), "Swish"),
        (lambda x: F.hardtanh(x), "Clip"),
        (lambda x: F.hardswish(x), "HardSwish"),
        (lambda x: x.mean((2, 3)), "ReduceMean"),
        (lambda x: x.sum(1), "ReduceSum"),
        (lambda x: x.exp(), "Exp"),
        (lambda x: x.sqrt(), "Sqrt"),
        (lambda x: F.pixel_shuffle(x, 2), "DepthToSpace"),
        (lambda x: x[:, 1:], "Slice"),
        (lambda x: x.double(), "Cast"),
        (lambda x: F.dropout(x, training=True), "Dropout"),
        (lambda x: F.instance_norm(x), "InstanceNormalization"),
        (lambda x: F.layer_norm(x, [4, 4]), "LayerNormalization"),
        (lambda x: F.group_norm(x, 2), "GroupNormalization"),
        (lambda x: torch.roll(x, 1, 0), "Roll"),
    ],
)
def test_operation_types(apply, kind):
    class Model(nn.Module):
        def forward(self, x):
            return apply(x)

    graph = SummaryGraph(Model(), torch.rand(1, 4, 4, 4))
    assert [op["type"] for op in graph.ops.values()][-1] == kind


def test_transposed_convolution_and_norms():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2, output_padding=1), nn.PReLU(4), nn.LogSigmoid())
    graph = SummaryGraph(model, torch.randn(1, 3, 5, 5))
    assert graph.find_op("0")["type"] == "ConvTranspose"
    assert graph.find_op("0")["attrs"]["MACs"] == 25 * 3 * 4 * 4
    assert graph.find_op("0")["attrs"]["output_padding"] == [1, 1]
    assert (graph.find_op("0")["attrs"]["n_ifm"], graph.find_op("0")["attrs"]["n_ofm"]) == (3, 4)


def test_queries_of_a_deep_residual_network_take_no_exponential_time():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(2, 2) for _ in range(60))

        def forward(self, x):
            for part in self.parts:
                x = x + torch.relu(part(x))
            return x

    graph = SummaryGraph(Deep(), torch.randn(1, 2))
    assert graph.predecessors_f("parts.59", "Nothing") == []
    assert len(graph.successors_f("parts.0", "Gemm")) == 59
    assert graph.predecessors("parts.59", 1000) == []
    assert len(graph.layers_topological_order()) == 60


@pytest.mark.parametrize("depth", [0, -1, 1.5, True])
def test_wrong_depths(wrapped_resnet, depth):
    with pytest.raises(ArgumentError, match="depth"):
        wrapped_resnet[0].predecessors("conv1", depth)


def test_wrong_names_and_inputs(wrapped_resnet):
    with pytest.raises(ArgumentError, match="name"):
        wrapped_resnet[0].find_op(3)
    with pytest.raises(ArgumentError, match="example_inputs"):
        SummaryGraph(nn.Linear(2, 2), None)
    with pytest.raises(GraphError, match="Linear cannot be traced"):
        SummaryGraph(nn.Linear(2, 2), torch.randn(1, 3))


def test_a_model_that_returns_an_object_of_its_own():
    @dataclass
    class Output:
        logits: torch.Tensor
        features: torch.Tensor

    class Returning(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            features = self.conv(x).mean((2, 3))
            return Output(logits=self.fc(features), features=features)

    graph = SummaryGraph(Returning(), torch.randn(1, 3, 4, 4))
    assert list(graph.adjacency_map()) == ["conv", "top_level_op", "fc"]
    assert graph.adjacency_map(True)["conv"].op_meta.type == "Conv"


def test_a_graph_can_be_copied():
    graph = SummaryGraph(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.randn(1, 2))
    assert deepcopy(graph).adjacency_map() == graph.adjacency_map()


def test_half_precision_and_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(torch.bfloat16)
    x = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    assert list(SummaryGraph(model, x).ops) == ["0", "1"]


def test_onnx_names():
    assert onnx_name_2_pytorch_name("ResNet/Sequential[layer3]/BasicBlock[0]/ReLU[relu]") == "layer3.0.relu"
    assert onnx_name_2_pytorch_name("VGG/[features]/Sequential/Conv2d[34]") == "features.34"
    assert onnx_name_2_pytorch_name("NameWithNoModule") == ""
    assert distiller.onnx_name_2_pytorch_name is onnx_name_2_pytorch_name
    assert distiller.SummaryGraph is SummaryGraph
