"""First schedules: they load, they train, and they reach what they promised."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller
from distiller_ng.automatic import Candidates, UnreachableTarget, first_schedule
from distiller_ng.automatic._first_target import Target
from distiller_ng.config import check_schedule
from distiller_ng.errors import ArgumentError, GraphError

X = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.b1 = nn.BatchNorm2d(2 * width)
        self.act = nn.ReLU()
        self.c2 = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x):
        return x + self.c2(self.act(self.b1(self.c1(x))))


def residual():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), Block(8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    )


def depthwise():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 64, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.h, self.o = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.a(x.flatten(1)))
        return self.o(torch.relu(self.h(torch.relu(self.h(x)))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.out = nn.Linear(32, 50, bias=False)
        self.out.weight = self.tokens.weight

    def forward(self, tokens):
        return self.out(self.layer(self.tokens(tokens)))


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = self.a(x.flatten(1))
        return self.o(x if x.sum() > 0 else -x)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(data.target)


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    model = residual()
    train(model, DataLoader(TensorDataset(*(part[:1400] for part in digits)), 64, shuffle=True), 4, lr=0.1)
    return model.eval()


def train(model, loader, epochs, text=None, lr=0.02):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = text or "policies: []\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error" if text else "ignore", distiller.ScheduleWarning)
        scheduler = distiller.file_config(model, optimizer, schedule, example_inputs=(X,))
        model.train()
        for _ in scheduler.epochs(epochs):
            for images, labels in scheduler.minibatches(loader):
                optimizer.zero_grad()
                scheduler.backward(F.cross_entropy(model(images), labels))
                optimizer.step()


class Accuracy:
    def __init__(self, digits):
        self.images, self.labels = (part[1400:] for part in digits)
        self.calls = 0

    @torch.no_grad()
    def __call__(self, model):
        self.calls += 1
        outputs = model(self.images)
        top1 = 100 * (outputs.argmax(1) == self.labels).float().mean().item()
        return top1, 100.0, F.cross_entropy(outputs, self.labels).item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "technique", "epochs", "expected"),
    [
        ("macs=0.5", None, 6, "filters"),
        ("macs=0.5", None, 2, "filters"),
        ("size=0.4", None, 6, "weights"),
        ("size=0.4", None, 1, "weights"),
        ("size=0.9", "2:4", 5, "2:4"),
        ("size=0.15", None, 6, "weights+int8"),
        ("macs=0.6", "filters+int8", 6, "filters+int8"),
    ],
)
def test_it_trains_and_reaches_what_it_promised(digits, trained, target, technique, epochs, expected):
    model, accuracy = copy.deepcopy(trained), Accuracy(digits)
    before, started = accuracy(model)[0], accuracy.calls
    made = first_schedule(
        model, (X,), target=target, technique=technique, epochs=epochs, evaluate=accuracy, levels=(0.5,)
    )
    assert made.technique.name == expected and accuracy.calls > started + 2
    assert 0.85 * made.target.share < made.reached <= 1.002 * made.target.share or technique == "2:4"
    assert made.metric == "loss" and "top-1" in made.text and "NO DATA" not in made.text
    loader = DataLoader(TensorDataset(*(part[:1400] for part in digits)), 128, shuffle=True)
    torch.manual_seed(1)
    train(model, loader, epochs, made.text)
    assert sum(p.numel() for p in model.parameters()) == made.after.parameters
    assert sum(int((p != 0).sum()) for p in model.parameters()) == pytest.approx(made.after.nonzero, abs=2)
    if expected == "filters":
        left = Candidates(model, (X,), group="filter").cost({}).macs
        assert left == made.after.macs == pytest.approx(made.reached * made.before.macs)
    model.eval()
    assert accuracy(model)[0] > before - 5


MODELS = {"residual": residual, "depthwise": depthwise, "mlp": mlp, "shared": Shared, "one": lambda: mlp()[:2]}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize(
    ("target", "technique"),
    [("size=0.45", "weights"), ("macs=0.6", None), ("size=0.45", "int8"), ("size=0.25", "weights+int8")],
)
def test_models_of_all_kinds(name, target, technique):
    torch.manual_seed(0)
    model = MODELS[name]().train()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    if name == "one" and technique is None:
        with pytest.raises(UnreachableTarget, match="nothing of it can go"):
            first_schedule(model, (X,), target=target)
        return
    made = first_schedule(model, (X,), target=target, technique=technique)
    found = check_schedule(made.text, model, example_inputs=(X,))
    assert found.problems == () and found.warnings == ()
    assert made.reached <= made.target.share * 1.002 and ("RANDOM input" in made.text) == (technique != "int8")
    assert made.text == first_schedule(model, (X,), target=target, technique=technique).text
    assert model.training and all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert max(map(len, made.text.splitlines())) <= 120


def test_what_the_comments_say():
    torch.manual_seed(0)
    text = first_schedule(residual(), (X,), target="size=0.4", technique="weights").text
    assert "# 0.weight: 72 weights (2.7 % of all); the first layer has few weights" in text and "[Gale]" in text
    assert "1902.09574" in text and "1710.01878" in text and "1806.08342" not in text
    tied = " ".join(first_schedule(residual(), (X,), target="macs=0.6").text.replace("#", " ").split())
    assert "tied to 2.c2.weight: their outputs are added" in tied and "class: FilterRemover" in tied
    light = first_schedule(depthwise(), (X,), target="size=0.5", technique="weights")
    assert light.choices["2.weight"].sparsity == 0 and "depthwise convolutions have few weights" in light.text
    twice = " ".join(first_schedule(Shared(), (X,), target="size=0.6", technique="weights").text.split())
    assert "runs several times" in twice


def test_transformers_and_tied_weights():
    torch.manual_seed(0)
    tokens = torch.randint(0, 50, (1, 7))
    made = first_schedule(Tied(), (tokens,), target="size=0.4", technique="weights")
    assert "the same weights serve as out.weight" in " ".join(made.text.split())
    assert "layer.self_attn.in_proj_weight" in made.choices and made.reached <= 0.401
    heads = first_schedule(Tied(), (tokens,), target="macs=0.7")
    assert heads.technique.name == "filters" and heads.reached <= 0.7


def test_latency_is_measured_on_a_copy(monkeypatch):
    from distiller_ng.automatic import _first_planning as planning

    seen = []

    def timed(small, model, inputs, *, seconds):
        whole, left = (Candidates(one, inputs, group="filter").cost({}).macs for one in (model, small))
        seen.append(left / whole)
        return 0.2 + 0.8 * left / whole

    monkeypatch.setattr(planning, "latency_share", timed)
    torch.manual_seed(0)
    made = first_schedule(mlp(), (X,), target="latency=0.6")
    assert 0.5 < made.reached <= 0.6 and len(seen) > 1
    assert "PyTorch, on this machine, for one sample" in " ".join(made.text.replace("#", " ").split())
    both = first_schedule(mlp(), (torch.cat([X, X]),), target="latency=0.6")
    assert "this machine, for a batch of 2" in " ".join(both.text.replace("#", " ").split())
    assert all(re.search("MACs +2,960 ->", one.text) for one in (made, both))  # of one sample
    with pytest.raises(UnreachableTarget, match="latency=0.10 is out of reach") as caught:
        first_schedule(mlp(), (X,), target="latency=0.1")
    assert caught.value.least > 0.2 and "such as --input-shape 64,..." in str(caught.value)


def test_filters_of_a_transposed_convolution_are_counted_along_its_outputs():
    net = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 12, 2, 2), nn.ReLU(), nn.Conv2d(12, 3, 1)),
    )
    lines = first_schedule(net, (X,), target="macs=0.3").text.splitlines()
    place = next(number for number, line in enumerate(lines) if "4.weight" in line)
    said = lines[place] if "filters" in lines[place] else lines[place - 1]
    assert "12 filters" in said and "32 filters" not in said


def test_small_shares_keep_two_digits():
    assert str(Target("macs", 0.0243)) == "macs=0.024" and str(Target("size", 0.05)) == "size=0.05"


def test_targets_that_ask_too_much_name_what_is_possible():
    with pytest.raises(
        UnreachableTarget, match=r"size=0.01 is out of reach .* ask for size=\S+ or more, or try --tech"
    ):
        first_schedule(residual(), (X,), target="size=0.01", technique="weights")
    relaxed = first_schedule(depthwise(), (X,), target="size=0.14", technique="weights")
    assert "so they are pruned too" in " ".join(relaxed.text.replace("#", " ").split())
    assert relaxed.choices["2.weight"].sparsity > 0


def test_models_that_cannot_be_followed():
    with pytest.raises(GraphError, match=r"filters cannot be removed.*--technique weights --target size="):
        first_schedule(Branch(), (X,), target="macs=0.5")
    assert first_schedule(Branch(), (X,), target="size=0.4").reached <= 0.401


@pytest.mark.slow
def test_processes_measure_the_same(digits, trained):
    one, two = (
        first_schedule(trained, (X,), target="macs=0.5", evaluate=Accuracy(digits), levels=(0.5,), processes=number)
        for number in (1, 2)
    )
    assert one.choices == two.choices


def test_a_small_time_budget_measures_fewer_levels(digits, trained):
    made = first_schedule(trained, (X,), target="size=0.5", evaluate=Accuracy(digits), seconds=1e-6)
    text = " ".join(made.text.replace("#", " ").split())
    assert "lost 50 % of its weights" in text and "no time to measure 30 % and 70 %" in text


def test_evaluations_without_a_loss_and_with_nothing_sensible(digits, trained):
    accuracy = Accuracy(digits)
    made = first_schedule(trained, (X,), target="size=0.5", evaluate=lambda model: (accuracy(model)[0], 100.0, 0.0))
    assert made.metric == "top1"
    with pytest.raises(ArgumentError, match="NaN for the model as it is"):
        first_schedule(trained, (X,), target="macs=0.5", evaluate=lambda model: (float("nan"),) * 3)
    with pytest.raises(ArgumentError, match=r"must return top-1 in percent, or .*got \(0\.9, 0\.1\)"):
        first_schedule(trained, (X,), target="size=0.5", evaluate=lambda model: (0.9, 0.1))
    alone = first_schedule(trained, (X,), target="size=0.5", evaluate=lambda model: accuracy(model)[0])
    assert alone.metric == "top1" and "nan" not in alone.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"technique": "filter"}, "unknown technique 'filter'. Did you mean 'filters'"),
        ({"technique": "weights"}, "cannot meet macs=0.50: a dense runtime multiplies by zeros"),
        ({"technique": "int8"}, "cannot meet macs=0.50: as many numbers are multiplied"),
        ({"levels": ()}, "levels are shares"),
        ({"levels": (1.5,)}, "levels are shares"),
        ({"epochs": 1}, "give 2 epochs or more"),
    ],
)
def test_wrong_arguments(settings, said):
    with pytest.raises(ArgumentError, match=said):
        first_schedule(residual(), (X,), target="macs=0.5", **settings)


def test_models_with_nothing_to_compress():
    with pytest.raises(ArgumentError, match="must be a torch.nn.Module"):
        first_schedule("resnet", (X,), target="macs=0.5")
    with pytest.raises(ArgumentError, match="nothing to compress"):
        first_schedule(nn.ReLU(), (X,), target="size=0.5")
    silent = mlp()
    for parameter in silent.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(ArgumentError, match="outputs on random input are all zero"):
        first_schedule(silent, (X,), target="size=0.5")


def test_saving_does_not_overwrite(tmp_path):
    made = first_schedule(mlp(), (X,), target="size=0.5")
    made.save(tmp_path / "first.yaml")
    assert (tmp_path / "first.yaml").read_text() == made.text
    with pytest.raises(ArgumentError, match="is there already"):
        made.save(tmp_path / "first.yaml")
    made.save(tmp_path / "first.yaml", overwrite=True)
    assert (
        str(made).splitlines()[1]
        == made.promise
        == f"wanted size=0.50, this schedule is predicted to reach {made.reached:.2f}"
    )
