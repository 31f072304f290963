"""``distiller-ng quantize --evaluate``: the accuracy of the model and of the file it became."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from conftest_cli import fails_with

import distiller_ng as distiller
from distiller_ng.checkpoint import save_checkpoint
from distiller_ng.cli.main import main

pytestmark = pytest.mark.slow

DATA = """\
import torch

batches = lambda: list(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)).split(16))


def accuracy(model):
    scores = model(torch.cat(batches()))
    return 100.0 * (scores.shape == (64, 10)), 50.0, 0.5


def text(model):
    return "99 %"
"""


@pytest.fixture
def command(folder, own):
    (folder / "own_data.py").write_text(DATA)
    return ["quantize", *own, "--loader", "own_data.py:batches", "--effort", "fast", "-o", "int8.onnx"]


def test_model_and_file_are_measured(command, capsys):
    assert main([*command, "--evaluate", "own_data.py:accuracy"]) == 0
    assert capsys.readouterr().out.endswith("top-1 100.00 % -> 100.00 %, the file in its runtime\n")


def test_scores_in_json(command, capsys):
    assert main([*command, "--evaluate", "own_data.py:accuracy", "--json"]) == 0
    scores = {"top1": 100.0, "top5": 50.0, "loss": 0.5}
    assert json.loads(capsys.readouterr().out)["accuracy"] == {"model": scores, "file": scores}


def test_other_results_are_refused(command, capsys):
    fails_with(capsys, [*command, "--evaluate", "own_data.py:text"], "0.25); got '99 %'")


@pytest.fixture
def trained(folder):
    """A checkpoint of a model whose weights a schedule rounds, and whose activations it does not."""
    torch.manual_seed(0)
    spec = importlib.util.spec_from_file_location("net_of_test", folder / "tiny_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.TinyNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    arguments = {"class": "QuantAwareTrainRangeLinearQuantizer", "bits_weights": 8, "bits_activations": None}
    policies = [{"quantizer": {"instance_name": "q"}, "epochs": [0]}]
    scheduler = distiller.dict_config(net, optimizer, {"quantizers": {"q": arguments}, "policies": policies})
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches([torch.rand(2, 1, 8, 8)]):
            scheduler.backward(net(batch).sum())
            optimizer.step()
    save_checkpoint(0, None, net, optimizer, scheduler, dir=folder)
    return ["--checkpoint", "checkpoint.pth.tar"]


def test_a_model_quantized_in_training_keeps_its_weights(command, trained, capsys):
    short = [word for word in command if word not in ("--effort", "fast")]
    assert main([*short, *trained, "--evaluate", "own_data.py:accuracy"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("quantized in training: its own scales are kept, activations that had none are calibrated\n")
    assert "2 of 2 layers compute with integers" in out and out.endswith("the file in its runtime\n")
    fails_with(capsys, [*command, *trained], "--effort does not go with this checkpoint: it was quantized in training")
