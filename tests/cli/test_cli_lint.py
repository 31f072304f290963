"""``distiller-ng lint``, and the arguments that name a model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest_cli import fails_with

from distiller_ng.cli.main import main
from distiller_ng.config.checking import check_schedule

WRONG = """\
pruners:
  p:
    class: AutomatedGradualPruner
    initial_sparsity: 0.05
    final_sparsity: 1.5
    weights: [convv.weight, "re:(unclosed"]
policies:
  - pruner: {instance_name: p}
    starting_epoch: 4
    ending_epoch: 2
    frequency: 1
"""
QUANTIZED = """\
quantizers:
  q:
    class: QuantAwareTrainRangeLinearQuantizer
    bits_weights: 8
    overrides:
      nowhere: {bits_weights: 4}
policies:
  - quantizer: {instance_name: q}
    starting_epoch: 0
    ending_epoch: 3
    frequency: 1
"""
TAUGHT = """\
distillers:
  d:
    class: KnowledgeDistiller
    teacher: big
    loss_weights: {student: 0.5, distillation: 0.5}
policies:
  - distiller: {instance_name: d}
    starting_epoch: 0
    ending_epoch: 3
    frequency: 1
"""


@pytest.fixture
def wrong(folder):
    (folder / "wrong.yaml").write_text(WRONG)
    return "wrong.yaml"


def test_without_a_model_all_but_names_is_checked(wrong, capsys):
    assert main(["lint", wrong, "agp.yaml"]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 5
    assert lines[0].startswith("wrong.yaml:5:21: pruners.p.final_sparsity: final_sparsity must be a number from 0 to 1")
    assert lines[1].startswith("wrong.yaml:6:29: pruners.p.weights[1]: 're:(unclosed' is not a valid regular")
    assert lines[2].startswith("wrong.yaml:10:19: policies[0].ending_epoch: ")
    assert lines[3] == "wrong.yaml: names and shapes were not checked: no model was given"
    assert lines[4] == "agp.yaml: names and shapes were not checked: no model was given"


def test_with_a_model_names_are_checked_too(wrong, own, capsys):
    assert main(["lint", wrong, "agp.yaml", *own]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[1].startswith("wrong.yaml:6:15: pruners.p.weights[0]: 'convv.weight' matches no parameter")
    assert "Did you mean 'conv.weight'" in lines[1]
    assert lines[4] == "agp.yaml: no problems"


def test_sound_files_end_in_0(folder, capsys):
    assert main(["lint", "agp.yaml"]) == 0
    assert main(["lint", "agp.yaml", "--arch", "simplenet_cifar"]) == 1
    assert "'conv.weight' matches no parameter" in capsys.readouterr().out


def test_json(wrong, own, capsys):
    assert main(["lint", wrong, "missing.yaml", "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert [problem["line"] for problem in first["problems"]] == [5, 6, 10]
    assert first["unchecked"] and second["problems"][0]["message"].startswith("file not found")
    assert main(["lint", "agp.yaml", "--json", *own]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"source": "agp.yaml", "problems": [], "warnings": [], "unchecked": []}
    ]


def test_quantizers_are_not_measured_against_the_stand_in(folder, own, capsys):
    (folder / "q.yaml").write_text(QUANTIZED)
    assert main(["lint", "q.yaml", "--strict"]) == 0
    (folder / "q.yaml").write_text(QUANTIZED.replace("bits_weights: 8", "bits_weights: eight"))
    assert main(["lint", "q.yaml"]) == 1
    assert "q.yaml:4:19: quantizers.q.bits_weights: expected a whole number" in capsys.readouterr().out


def test_distillers_are_read_without_their_teachers(folder, own, capsys):
    (folder / "kd.yaml").write_text(TAUGHT)
    assert main(["lint", "kd.yaml", *own]) in (0, 1)
    out = capsys.readouterr().out
    assert "kd.yaml: distillers were checked without their teachers" in out and "big" not in out
    (folder / "kd.yaml").write_text(TAUGHT.replace("teacher: big", "teachr: big"))
    assert main(["lint", "kd.yaml", *own]) == 1
    assert "has no argument 'teachr'. Did you mean 'teacher'" in capsys.readouterr().out


@pytest.mark.parametrize("teacher", ["self", "{ema: 0.99}", "[self, {ema: 0.9}]"])
def test_a_distiller_that_makes_its_teacher_needs_none(folder, own, capsys, teacher):
    text = TAUGHT.replace("teacher: big", f"teacher: {teacher}").replace("distillation: 0.5", "distill: 0.5")
    (folder / "kd.yaml").write_text(text)
    assert main(["lint", "kd.yaml", *own]) == 0
    assert capsys.readouterr().out == "kd.yaml: no problems\n"


def test_teachers(folder, own, capsys):
    (folder / "kd.yaml").write_text(TAUGHT.replace("distillation: 0.5", "distill: 0.5"))
    assert main(["lint", "kd.yaml", *own, "--teacher", "big=tiny_net.py:TinyNet"]) == 0
    assert capsys.readouterr().out == "kd.yaml: no problems\n"
    assert main(["lint", "kd.yaml", *own, "--teacher", "other=tiny_net.py:TinyNet"]) == 1
    assert "kd.yaml:4:14: distillers.d.teacher: " in capsys.readouterr().out
    fails_with(capsys, ["lint", "kd.yaml", *own, "--teacher", "big=no.py:Big"], "--teacher: there is no file 'no.py'")


def test_the_hook_for_pre_commit(folder):
    """What other repositories get: its command, run on a file as pre-commit does."""
    root = Path(__file__).parents[2]
    (hook,) = yaml.safe_load((root / ".pre-commit-hooks.yaml").read_text())
    assert hook["id"] == "distiller-ng-lint" and hook["language"] == "python" and hook["entry"] == "distiller-ng lint"
    assert hook["types_or"] == ["yaml", "markdown"] and hook["files"]
    pattern = re.compile(hook["files"])
    assert pattern.search("schedules/agp.yaml") and pattern.search("a/recipes/sparse.md")
    assert not pattern.search("docs/index.md") and not pattern.search(".github/workflows/ci.yaml")
    (folder / "wrong.yaml").write_text(WRONG)
    _, *words = hook["entry"].split()
    command = [sys.executable, "-m", "distiller_ng.cli", *words, "agp.yaml", "wrong.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 1 and done.stderr == "" and "wrong.yaml:5:21: " in done.stdout


def test_strict_counts_warnings(folder, own, capsys):
    text = (folder / "agp.yaml").read_text()
    (folder / "agp.yaml").write_text(text.replace("lr_schedulers:", "  unused: {class: L1RankedStructureParameterPruner, "
        "group_type: Filters, desired_sparsity: 0.5, weights: [conv.weight]}\nlr_schedulers:"))  # fmt: skip
    assert main(["lint", "agp.yaml", *own]) == 0
    assert "pruner 'unused' is defined but no policy uses it (warning)" in capsys.readouterr().out
    assert main(["lint", "agp.yaml", "--strict", *own]) == 1


def test_recipe_args(folder, capsys):
    (folder / "r.yaml").write_text(
        "n: 3\nmodifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(n)}\n"
        "  - !SetLearningRateModifier {start_epoch: 0, learning_rate: 0.1}\n"
    )
    assert main(["lint", "r.yaml", "--recipe-args", "n=5"]) == 0
    capsys.readouterr()
    fails_with(capsys, ["lint", "r.yaml", "--recipe-args", "m=5"], "m")


def test_nothing_on_the_model_changes():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check = check_schedule(QUANTIZED, model)
    assert str(check) and type(model[0]) is torch.nn.Linear
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("tiny_net.py:fails", "fails() failed: RuntimeError: no weights"),
        ("tiny_net.py:returns_a_number", "returns_a_number() returned a int, not a torch.nn.Module"),
        ("tiny_net:size", "size is a int, not a class or function"),
        ("tiny_net:TinyNett", "there is no 'TinyNett' in it. Did you mean 'TinyNet'?"),
        ("no_such_module:Net", "no_such_module cannot be imported: ModuleNotFoundError"),
        ("no_such_file.py:Net", "there is no file 'no_such_file.py'"),
        ("tiny_net", "write package.module:name or file.py:name"),
        ("tiny_net:", "write package.module:name"),
        (".tiny:Net", "cannot be imported"),
        ("broken.py:Net", "broken.py cannot be imported: SyntaxError"),
    ],
)
def test_models_that_are_none(folder, capsys, model, said):
    (folder / "broken.py").write_text("def (:\n")
    fails_with(capsys, ["lint", "agp.yaml", "--model", model], said)


@pytest.mark.parametrize(
    "model", ["tiny_net:TinyNet", "tiny_net.py:built", "tiny_net.py:Parts.Net", "my-net.py:TinyNet"]
)
def test_ways_to_name_a_model(folder, capsys, model):
    (folder / "my-net.py").write_text((folder / "tiny_net.py").read_text())
    assert main(["lint", "agp.yaml", "--model", model]) == 0
    assert capsys.readouterr().out == "agp.yaml: no problems\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "resnet20_cifr"], "unknown architecture 'resnet20_cifr'. Did you mean 'resnet20_cifar'"),
        (["--arch", "resnet20_cifar", "--dataset", "cifr10"], "unknown data set 'cifr10'. Did you mean 'cifar10'"),
        (["--dataset", "cifar10"], "--dataset needs a model"),
        (["--checkpoint", "x.pt"], "--checkpoint needs a model"),
        (["--model", "tiny_net:TinyNet", "--checkpoint", "x.pt"], "there is no file 'x.pt'"),
        (["--model", "tiny_net:TinyNet", "--checkpoint", "agp.yaml"], "agp.yaml: damaged, or not a checkpoint"),
        (["--model", "tiny_net:TinyNet", "--checkpoint", "other.pt"], "does not fit TinyNet"),
        (["--model", "tiny_net:TinyNet", "--checkpoint", "agp.pth.tar"], "agp.pth.tar"),
        (["--model", "tiny_net:TinyNet", "--input-shape", "1,3,8,8"], "does not run on input of shape 1,3,8,8"),
    ],
)
def test_wrong_model_arguments(folder, capsys, arguments, said):
    torch.save({"weight": torch.zeros(1)}, "other.pt")
    (folder / "agp.pth.tar").write_text("no checkpoint")
    fails_with(capsys, ["lint", "agp.yaml", *arguments], said)


@pytest.mark.parametrize("shape", ["1,3,x", "0,3", "", "-1,2"])
def test_wrong_shapes_are_a_wrong_command_line(folder, capsys, shape):
    with pytest.raises(SystemExit) as caught:
        main(["lint", "agp.yaml", "--model", "tiny_net:TinyNet", f"--input-shape={shape}"])
    assert caught.value.code == 2 and "--input-shape" in capsys.readouterr().err


def test_weights_are_loaded(folder, own, capsys):
    from tiny_net import TinyNet

    from distiller_ng import checkpoint

    model = TinyNet()
    torch.save(model.state_dict(), "weights.pt")
    assert main(["lint", "agp.yaml", *own, "--checkpoint", "weights.pt"]) == 0
    checkpoint.save_checkpoint(0, "tiny", model, name="run", dir=str(folder))
    assert main(["lint", "agp.yaml", *own, "--checkpoint", "run_checkpoint.pth.tar"]) == 0


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["lint", "--help"])
    assert caught.value.code == 0 and "example:\n  distiller-ng lint agp.yaml --model" in capsys.readouterr().out
