"""``distiller-ng plan`` and the timeline behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest_cli import fails_with

from distiller_ng.cli.main import main
from distiller_ng.config import dict_config
from distiller_ng.errors import ArgumentError
from distiller_ng.reports import schedule_plan, schedule_timeline


def test_plan_in_text(folder, own, capsys):
    assert main(["plan", "agp.yaml", *own]) == 0
    out = capsys.readouterr().out
    assert "6 epochs of 100 optimizer steps" in out
    lines = out.splitlines()
    assert (
        "fine    pruning        0 to 3  5 % to 50 % of the weights in 1 tensor become zero (AutomatedGradualPruner)"
        in out
    )
    assert "steps   learning rate  0 to 5  MultiStepLR: milestones [3, 5], gamma 0.1" in out
    assert next(line for line in lines if line.startswith("         3  fine")).split()[2:] == [
        *("1,490", "(100", "%)", "1,472", "(98.8", "%)"),
        *("2,736", "(100", "%)", "5.82", "KiB", "(100", "%)"),
    ]
    fine = next(line for line in lines if line.startswith("fine  ") and "█" in line)
    assert fine.count("█") == 40 and fine.endswith("░" * 20 + " 5 % to 50 %")
    assert next(line for line in lines if line.startswith("learning rate")).endswith("0.1 to 0.001")
    assert "acts 4 times" not in out and max(map(len, lines)) <= 120
    assert main(["plan", "agp.yaml", *own, "--details"]) == 0
    out = capsys.readouterr().out
    assert "acts 4 times, at epochs 0, 1, 2, 3" in out and "1 parameters, 36 weights: conv.weight" in out


def test_plan_as_json(folder, own, capsys):
    assert main(["plan", "agp.yaml", *own, "--epochs", "4", "--lr", "0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["epochs"] == 4 and [row["name"] for row in found["policies"]] == ["fine", "steps"]
    timeline = found["timeline"]
    assert timeline["policies"][0]["active"] == [[0, 4]]
    levels = [value for _, value in timeline["policies"][0]["sparsity"]]
    assert levels == pytest.approx([0.05, 0.5 - 0.45 * (2 / 3) ** 3, 0.5 - 0.45 * (1 / 3) ** 3, 0.5])
    assert [rate for _, rate in timeline["learning_rate"]] == pytest.approx([0.2, 0.2, 0.2, 0.02])


@pytest.mark.parametrize(("name", "head"), [("plan.svg", b"<?xml"), ("plan.PNG", b"\x89PNG")])
def test_pictures(folder, own, capsys, name, head):
    assert main(["plan", "agp.yaml", *own, "--picture", name]) == 0
    assert (folder / name).read_bytes().startswith(head)


def test_the_curve_is_what_training_sets(folder):
    """Learning rates and spans against the hooks themselves."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    schedule = {
        "lr_schedulers": {"warm": {"class": "LinearLR", "start_factor": 0.5, "total_iters": 3}},
        "policies": [
            {"lr_scheduler": {"instance_name": "warm"}, "starting_epoch": 0, "ending_epoch": 5, "frequency": 1}
        ],
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    scheduler = dict_config(model, optimizer, schedule)
    wanted = schedule_timeline(scheduler, 2, 6, optimizer=optimizer).learning_rate
    seen = []
    for epoch in range(6):
        scheduler.on_epoch_begin(epoch, optimizer)
        seen.append((float(epoch), optimizer.param_groups[0]["lr"]))
        for step in range(2):
            scheduler.on_minibatch_begin(epoch, step, 2, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, 2, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)
    assert [rate for _, rate in wanted] == pytest.approx([rate for _, rate in seen])
    assert seen[0][1] == pytest.approx(0.2) and seen[5][1] == pytest.approx(0.4)


def test_windows_of_all_kinds():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    levels = {"class": "SparsityLevelParameterPruner", "levels": {"0.weight": 0.25}}
    schedule = {
        "pruners": {name: dict(levels) for name in "abc"},
        "policies": [
            {"pruner": {"instance_name": "a"}, "epochs": [0, 1, 3]},
            {"pruner": {"instance_name": "b"}, "starting_epoch": 4, "ending_epoch": -1, "frequency": 1},
            {"pruner": {"instance_name": "c"}, "starting_epoch": 4.5, "ending_epoch": 5.25, "frequency": 0.25},
        ],
    }
    with pytest.warns(UserWarning, match="in the same epoch"):
        scheduler = dict_config(model, None, schedule)
    timeline = schedule_timeline(scheduler, 4)
    assert timeline.epochs == 6 and timeline.learning_rate == ()
    assert [row.active for row in timeline.policies] == [((0, 2), (3, 4)), ((4, 6),), ((4.5, 5.25),)]
    assert [row.sparsity[-1][1] for row in timeline.policies] == [0.25] * 3
    first, second, *_ = timeline.text(12, ascii_only=True).splitlines()[1:]
    assert first.endswith("####--##---- 25 %") and second.endswith("........#### 25 %")


TAUGHT = """\
pruners:
  half: {class: L1RankedStructureParameterPruner, group_type: Filters, desired_sparsity: 0.5, weights: [conv.weight]}
extensions:
  thin: {class: FilterRemover, thinning_func_str: remove_filters}
distillers:
  kd: {class: KnowledgeDistiller, teacher: big, temperature: 4.0, loss_weights: {distill: {1: 0.9, 3: 0.5}, student: 0.3}}
quantizers:
  low: {class: QuantAwareTrainRangeLinearQuantizer, bits_weights: 8, bits_activations: 8, overrides: {conv: {bits_weights: 4}}}
lr_schedulers:
  plateau: {class: ReduceLROnPlateau, mode: min, patience: 1}
policies:
  - {pruner: {instance_name: half}, epochs: [1]}
  - {extension: {instance_name: thin}, epochs: [2]}
  - {distiller: {instance_name: kd}, starting_epoch: 1, ending_epoch: 4, frequency: 1}
  - {quantizer: {instance_name: low}, starting_epoch: 4, ending_epoch: 6, frequency: 1}
  - {lr_scheduler: {instance_name: plateau}, starting_epoch: 2, ending_epoch: 6, frequency: 1}
"""


def test_everything_in_one_schedule(folder, own, capsys):
    """Half of four filters go, with half of what reads them; then the weights become small."""
    (folder / "all.yaml").write_text(TAUGHT)
    teacher = ["--teacher", "big=tiny_net.py:TinyNet"]
    assert main(["plan", "all.yaml", *own, *teacher, "--json", "--picture", "all.png"]) == 0
    found = json.loads(capsys.readouterr().out)
    fc, kept = 10 * 36 * 4 + 10, 2 * 9 + 2 + 10 * 36 * 2 + 10
    start, pruned, thinned, quantized = found["sizes"]
    assert (start["parameters"], start["macs"], start["size_bytes"]) == (40 + fc, 4 * 9 * 36 + 1440, 4 * (40 + fc))
    assert pruned["epoch"] == 1 and pruned["parameters"] == 40 + fc and pruned["nonzero"] == kept, (
        "what reads a filter goes with it"
    )
    assert (thinned["parameters"], thinned["nonzero"], thinned["macs"]) == (kept, kept, 2 * 9 * 36 + 720)
    assert thinned["epoch"] == 2 and thinned["size_bytes"] == 4 * kept and thinned["approximate"] == []
    bits = {layer["layer"]: layer["weights"] for layer in found["policies"][3]["layers"]}
    assert bits["conv"] == 4 and bits["fc"] == 8
    assert quantized["epoch"] == 4 and quantized["parameters"] == kept and quantized["size_bytes"] < 1.2 * kept
    assert found["timeline"]["rate_unknown_from"] == 3 and len(found["timeline"]["learning_rate"]) == 3
    assert (folder / "all.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plan", "all.yaml", *own, *teacher]) == 0
    out = capsys.readouterr().out
    assert "learns from big: loss weights labels 0.3, teacher 0.9 to 0.5; temperature 4" in out
    assert "0.1 to 0.1, then ?" in out and "note: plateau: lowers the learning rate when results" in out
    assert max(map(len, out.splitlines())) <= 120


def test_a_prediction_is_what_training_gives(folder):
    """The same schedule, trained: sizes as the plan said."""
    from tiny_net import TinyNet

    schedule = yaml.safe_load(TAUGHT)
    del schedule["distillers"], schedule["quantizers"], schedule["lr_schedulers"]
    schedule["policies"] = schedule["policies"][:2]
    model, images = TinyNet(), torch.randn(2, 1, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = dict_config(model, optimizer, schedule, example_inputs=(images,))
    planned = schedule_plan(scheduler, 2, 4, predict=True).sizes[-1]
    assert [p.numel() for p in model.parameters()] == [36, 4, 1440, 10], "nothing changed"
    for _ in scheduler.epochs(4):
        for batch in scheduler.minibatches([images, images]):
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    scheduler.finish()
    assert sum(p.numel() for p in model.parameters()) == planned.parameters == 750


def test_unknown_numbers_are_not_guessed(folder, own, capsys):
    (folder / "t.yaml").write_text(
        "pruners:\n  t: {class: SensitivityPruner, sensitivities: {conv.weight: 0.5}}\n"
        "policies:\n  - {pruner: {instance_name: t}, starting_epoch: 0, ending_epoch: 2, frequency: 1}\n"
    )
    assert main(["plan", "t.yaml", *own]) == 0
    out = capsys.readouterr().out
    assert "the weights decide how many of 36 weights become zero" in out
    assert "note: t: the weights decide how much it prunes, so how many values are not zero from epoch 0 on" in out
    assert next(line for line in out.splitlines() if line.startswith("         1  t")).split()[5] == "?"


ROOT = Path(__file__).parents[2]
ZOO = sorted(
    [*ROOT.glob("schedules/**/*.yaml"), *ROOT.glob("examples/recipes/*.yaml"), *ROOT.glob("examples/recipes/*.md")]
)
ZOO = [
    pytest.param(path, id=path.name, marks=[pytest.mark.slow] if "resnet20" in path.name else [])
    for path in ZOO
    if path.name != "README.md"
]


@pytest.mark.parametrize("path", ZOO)
def test_every_schedule_of_ours_is_planned(path, capsys):
    arch = "resnet20_cifar" if "resnet20" in path.name else "digits_cnn"
    data = "fashion-mnist" if "fmnist" in path.name else ("cifar10" if "resnet20" in path.name else "digits")
    teacher = ["--teacher", "digits_cnn"] if "transfer" in path.name else []
    words = ["plan", str(path), "--arch", arch, "--dataset", data, "--steps-per-epoch", "5", *teacher]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "cannot be tried" not in out and max(map(len, out.splitlines())) <= 120
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(row["kind"] and row["class_name"] and row["spans"] for row in found["policies"])
    table = out.split("Predicted size")[0]
    for row in found["policies"]:
        assert row["name"].rpartition(".")[2] in table
    assert found["sizes"][0]["parameters"] > 0 and found["sizes"][0]["macs"] > 0


def test_the_console_entry(folder, own):
    command = [sys.executable, "-m", "distiller_ng.cli", "plan", "agp.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    given: dict = {"capture_output": True, "text": True, "env": environment, "cwd": folder, "check": False}
    done = subprocess.run([*command, *own], **given)
    assert done.returncode == 0 and "Predicted size" in done.stdout and done.stderr == ""
    wrong = subprocess.run([*command, *own, "--teacher", "big=nowhere.py:Big"], **given)
    assert wrong.returncode == 1 and wrong.stdout == "" and len(wrong.stderr.splitlines()) == 1
    assert "--teacher: there is no file 'nowhere.py'" in wrong.stderr


@pytest.mark.parametrize(
    ("teachers", "said"),
    [
        (["=tiny_net.py:TinyNet"], "write NAME=file.py:factory"),
        (["big="], "write NAME=file.py:factory"),
        (["big=tiny_net.py:size"], "size is a int, not a class or function"),
        (["big=tiny_net.py:TinyNet", "big=tiny_net.py:TinyNet"], "there is a teacher 'big' already"),
        (["other=tiny_net.py:TinyNet"], "big"),
        ([], "big"),
        (["resnet20_cifr"], "unknown architecture 'resnet20_cifr'"),
    ],
)
def test_wrong_teachers(folder, own, capsys, teachers, said):
    (folder / "all.yaml").write_text(TAUGHT)
    fails_with(capsys, ["plan", "all.yaml", *own, *(word for one in teachers for word in ("--teacher", one))], said)


def test_wrong_input(folder, own, capsys):
    fails_with(capsys, ["plan", "agp.yaml"], "give a model: --model package.module:factory")
    fails_with(capsys, ["plan", "missing.yaml", *own], "file not found")
    fails_with(
        capsys,
        ["plan", "agp.yaml", *own, "--picture", "plan.gif"],
        "--picture plan.gif: the name must end in .svg or .png",
    )
    fails_with(capsys, ["plan", "agp.yaml", "--arch", "simplenet_cifar"], "'conv.weight' matches no parameter")
    for wrong in (["--epochs", "0"], ["--steps-per-epoch", "-1"], ["--lr", "nan"], ["--epochs", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(["plan", "agp.yaml", *own, *wrong])
        assert caught.value.code == 2
    capsys.readouterr()


def test_narrow_timelines_are_refused(folder, own):
    scheduler = dict_config(torch.nn.Linear(2, 2), None, {"policies": [], "pruners": {}})
    timeline = schedule_timeline(scheduler, 1)
    assert str(timeline) == "nothing happens: the schedule has no epochs"
    with pytest.raises(ArgumentError, match="10 columns wide or more, got 5"):
        timeline.text(5)
