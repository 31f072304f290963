"""``distiller-ng plan`` and the timeline behind it."""

from __future__ import annotations

import json

import pytest
import torch
from conftest_cli import fails_with

from distiller_ng.cli.main import main
from distiller_ng.config import dict_config
from distiller_ng.errors import ArgumentError
from distiller_ng.reports import schedule_timeline


def test_plan_in_text(folder, own, capsys):
    assert main(["plan", "agp.yaml", *own]) == 0
    out = capsys.readouterr().out
    assert "6 epochs of 100 optimizer steps" in out
    assert "acts 4 times, at epochs 0, 1, 2, 3" in out and "1 parameters, 36 weights: conv.weight" in out
    lines = out.splitlines()
    fine = next(line for line in lines if line.startswith("fine  "))
    assert fine.count("█") == 40 and fine.endswith("·" * 20)
    assert next(line for line in lines if line.startswith("  sparsity")).endswith("0.05 to 0.50")
    assert next(line for line in lines if line.startswith("learning rate")).endswith("0.1 to 0.001")


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
    first, _, second, *_ = timeline.text(12, ascii_only=True).splitlines()[1:]
    assert first.endswith("####..##....") and second.endswith("........####")


def test_wrong_input(folder, own, capsys):
    fails_with(capsys, ["plan", "agp.yaml"], "give a model: --model package.module:factory")
    fails_with(capsys, ["plan", "missing.yaml", *own], "file not found")
    fails_with(capsys, ["plan", "agp.yaml", *own, "--picture", "plan.gif"], "drawn as .svg or .png, got 'plan.gif'")
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
