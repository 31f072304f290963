"""create_model and its registries: what they accept, attach, load and refuse."""

import os

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError, CheckpointError
from distiller_ng.models import (
    ALL_MODEL_NAMES,
    Architecture,
    DatasetShape,
    create_model,
    dataset_names,
    dataset_shape,
    is_inception,
    model_names,
    register_dataset_shape,
    register_user_model,
)
from distiller_ng.models._zoo import architecture
from distiller_ng.models.cifar10.resnet_cifar import resnet20_cifar


class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(x.flatten(1))


@pytest.fixture
def registries(monkeypatch):
    """Registrations of a test end with it."""
    for table in ("distiller_ng.models.factory._USER_MODELS", "distiller_ng.ops.dataset_shapes._SHAPES"):
        module, _, name = table.rpartition(".")
        current = dict(getattr(__import__(module, fromlist=[name]), name))
        monkeypatch.setattr(table, current)


@pytest.mark.parametrize(
    ("dataset", "shape", "classes"),
    [
        ("digits", (1, 1, 8, 8), 10),
        ("mnist", (1, 1, 28, 28), 10),
        ("fashion-mnist", (1, 1, 28, 28), 10),
        ("cifar10", (1, 3, 32, 32), 10),
        ("imagenet", (1, 3, 224, 224), 1000),
        ("synthetic", (1, 3, 32, 32), 10),
        ("synthetic:1x28x20", (1, 1, 28, 20), 10),
        ("synthetic:2x16x16:5", (1, 2, 16, 16), 5),
        ("Fashion_MNIST", (1, 1, 28, 28), 10),
    ],
)
def test_data_set_shapes(dataset, shape, classes):
    assert dataset_shape(dataset).input_shape == shape
    assert dataset_shape(dataset).input_size == shape[2:]
    assert dataset_shape(dataset).num_classes == classes


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("device_ids", [None, -1, [0, 1]])
def test_a_created_model_carries_its_description_and_no_wrapper(parallel, device_ids):
    model = create_model(False, "digits", "digits_cnn", parallel, device_ids)
    assert (model.arch, model.dataset, model.is_parallel, model.input_shape) == (
        "digits_cnn",
        "digits",
        False,
        (1, 1, 8, 8),
    )
    assert "conv1.weight" in dict(model.named_parameters())
    assert not any("arch" in name or "dataset" in name for name in model.state_dict())
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_the_data_sets_name_is_stored_in_its_one_spelling():
    assert create_model(False, "FASHION_MNIST", "simplenet_mnist").dataset == "fashion-mnist"


@pytest.mark.parametrize(
    ("arguments", "message", "path"),
    [
        (
            (False, "cifar100", "resnet20_cifar"),
            r"'cifar100'.*Did you mean 'cifar10'.*register_dataset_shape",
            "dataset",
        ),
        ((False, "nothing", "resnet20_cifar"), r"allowed: cifar10, digits", "dataset"),
        ((False, "cifar10", "resnet20_cfar"), r"'resnet20_cfar'.*Did you mean 'resnet20_cifar'", "arch"),
        ((False, "cifar10", "zzz"), r"allowed: alexnet", "arch"),
        ((True, "cifar10", "resnet20_cifar"), r"nothing is downloaded.*path of a local file", "pretrained"),
        (("", "cifar10", "resnet20_cifar"), r"nothing is downloaded", "pretrained"),
        (("no/such.pt", "digits", "digits_cnn"), r"no file 'no.such\.pt'", "pretrained"),
        ((False, "synthetic:0x8x8", "digits_cnn"), r"channels must be 1 or more", "channels"),
    ],
)
def test_refusals(arguments, message, path):
    with pytest.raises(ValueError, match=message) as caught:
        create_model(*arguments)
    assert isinstance(caught.value, ArgumentError)
    assert caught.value.argument == (path,)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"num_classes": 0}, "num_classes"), ({"in_channels": -1}, "in_channels"), ({"input_size": (8, 0)}, "input_size")],
)
@pytest.mark.parametrize("name", ["resnet20_cifar", "vgg11", "simplenet_mnist", "mobilenet_025", "resnet18"])
def test_constructors_refuse_sizes_below_one(name, sizes, message):
    from distiller_ng.models._zoo import _ARCHITECTURES

    with pytest.raises(ArgumentError, match=f"{message} must be 1 or more"):
        _ARCHITECTURES[name](**sizes)


def test_an_architecture_builds_with_the_defaults_of_its_home():
    assert isinstance(resnet20_cifar, Architecture)
    model = resnet20_cifar(num_classes=100)
    assert model.conv1.in_channels == 3
    assert model.fc.out_features == 100


def test_a_name_cannot_be_entered_twice():
    with pytest.raises(ArgumentError, match="'resnet20_cifar' is already in the zoo"):
        architecture("resnet20_cifar", "cifar10", MyNet)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("as_checkpoint", [False, True])
def test_weights_from_a_local_file(tmp_path, prefix, as_checkpoint):
    source = create_model(False, "digits", "digits_cnn")
    with torch.no_grad():
        source.bn1.running_mean.fill_(3.0)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save({"epoch": 4, "arch": "digits_cnn", "state_dict": state} if as_checkpoint else state, path)
    for given in (str(path), path):
        loaded = create_model(given, "digits", "digits_cnn").state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in source.state_dict().items())


def test_old_files_without_batch_counters_load(tmp_path):
    state = create_model(False, "digits", "digits_cnn").state_dict()
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, tmp_path / "old.pt")
    model = create_model(tmp_path / "old.pt", "digits", "digits_cnn")
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_weights_that_do_not_fit_are_listed_together(tmp_path):
    state = create_model(False, "mnist", "simplenet_mnist").state_dict()
    state["conv9.weight"] = state.pop("conv1.weight")
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(CheckpointError) as caught:
        create_model(tmp_path / "other.pt", "digits", "simplenet_mnist")
    message = str(caught.value)
    assert "1 missing: conv1.weight" in message
    assert "1 not in the model: conv9.weight (Did you mean 'conv1.weight'?)" in message
    assert "fc1.weight is [500, 800], the model's [500, 50]" in message


class Malicious:
    def __reduce__(self):
        return os.system, ("echo executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no state dict of tensors, but a dict with the keys epoch"),
        ([torch.zeros(1)], "holds a list, not the dictionary of a checkpoint"),
        ({"net": {"w": torch.zeros(1)}, "epoch": 3}, "Its weights are under 'net': save those alone"),
        ({}, "holds no state dict"),
        ({"state_dict": Malicious()}, "refers to code.*save model.state_dict"),
    ],
)
def test_files_with_something_else_are_refused(tmp_path, capfd, content, message):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=message):
        create_model(tmp_path / "file.pt", "digits", "digits_cnn")
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"PK\x03\x04broken", b"\x80\x02}q\x00.", bytes(range(256))]
)
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"file\.pt: (damaged: the file is empty|damaged, or not a checkpoint at all|holds )"
    ):
        create_model(tmp_path / "file.pt", "digits", "digits_cnn")


@pytest.mark.usefixtures("registries")
class TestUserModels:
    @pytest.mark.parametrize("constructor", [MyNet, lambda: MyNet()])
    def test_a_registered_model_is_found(self, constructor):
        register_user_model("mynet", "digits", constructor)
        model = create_model(False, "digits", "mynet")
        assert isinstance(model, MyNet)
        assert (model.arch, model.input_shape) == ("mynet", (1, 1, 8, 8))
        assert "mynet" in model_names()
        assert model_names("digits") == ["digits_cnn", "mynet"]

    def test_it_belongs_to_its_data_set(self):
        register_user_model("mynet", "digits", MyNet)
        with pytest.raises(ArgumentError, match="registered for digits, not for mnist"):
            create_model(False, "mnist", "mynet")
        assert "mynet" not in model_names("mnist")

    def test_weights_load_into_it(self, tmp_path):
        register_user_model("mynet", "digits", MyNet)
        state = MyNet().state_dict()
        torch.save(state, tmp_path / "w.pt")
        assert torch.equal(create_model(tmp_path / "w.pt", "digits", "mynet").fc.weight, state["fc.weight"])

    def test_the_same_model_may_be_registered_again_another_may_not(self):
        register_user_model("mynet", "digits", MyNet)
        register_user_model("mynet", "digits", MyNet)
        with pytest.raises(ArgumentError, match="already registered for 'digits'"):
            register_user_model("mynet", "digits", nn.Identity)
        register_user_model("mynet", "mnist", nn.Identity)
        assert isinstance(create_model(False, "mnist", "mynet"), nn.Identity)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("mynet", "digit", MyNet), "Did you mean 'digits'"),
            (("mynet", "digits", MyNet()), "not a MyNet instance"),
            (("mynet", "digits", "MyNet"), "not a str"),
            (("resnet20_cifar", "cifar10", MyNet), "is an architecture of the zoo"),
        ],
    )
    def test_bad_registrations(self, arguments, message):
        with pytest.raises(ArgumentError, match=message):
            register_user_model(*arguments)

    def test_a_constructor_must_return_a_module(self):
        register_user_model("mynet", "digits", dict)
        with pytest.raises(ArgumentError, match="returned a dict"):
            create_model(False, "digits", "mynet")

    def test_misspelt_user_models_are_suggested(self):
        register_user_model("mynet", "digits", MyNet)
        with pytest.raises(ArgumentError, match="Did you mean 'mynet'"):
            create_model(False, "digits", "mynett")

    def test_a_data_set_of_ones_own(self):
        shape = DatasetShape(channels=2, height=16, width=12, num_classes=5)
        register_dataset_shape("My_Leaves", shape)
        register_dataset_shape("my-leaves", shape)
        assert "my-leaves" in dataset_names()
        model = create_model(False, "my-leaves", "resnet20_cifar").eval()
        assert model(torch.zeros(model.input_shape)).shape == (1, 5)
        with pytest.raises(ArgumentError, match="already registered"):
            register_dataset_shape("my-leaves", DatasetShape(channels=1, height=16, width=12))


def test_model_names():
    assert model_names() == sorted(ALL_MODEL_NAMES)
    assert model_names("fashion-mnist") == ["simplenet_mnist", "simplenet_v2_mnist"]


@pytest.mark.parametrize(("arch", "expected"), [("googlenet", True), ("inception_v3", True), ("resnet18", False)])
def test_is_inception(arch, expected):
    assert is_inception(arch) is expected
