"""Post-training quantization from the command line: statistics, quantized evaluation, checkpoints, LAPQ, ONNX."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
import yaml

from distiller_ng.apputils import close_pylogger
from distiller_ng.apputils.classifier_quantization import check_quantization_flags, quantize_and_test_model
from distiller_ng.apputils.image_classifier import ClassifierCompressor, init_classifier_compression_arg_parser
from distiller_ng.checkpoint import read_checkpoint
from distiller_ng.errors import ArgumentError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "classifier_compression" / "compress_classifier.py"
ARCH = ("--arch", "digits_cnn", "--batch-size", "64", "--det")


@pytest.fixture(autouse=True)
def quiet_after():
    package = logging.getLogger("distiller_ng")
    level = package.level
    yield
    close_pylogger()
    package.setLevel(level)


@pytest.fixture(scope="module", autouse=True)
def level_before():
    """The level is what it was, also where these fixtures for all tests ran an application first."""
    package = logging.getLogger("distiller_ng")
    level = package.level
    yield
    package.setLevel(level)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of a network trained for two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = [*ARCH, "--epochs", "2", "--lr", "0.05", "--out-dir", str(folder)]
    app = ClassifierCompressor(init_classifier_compression_arg_parser().parse_args(arguments), folder)
    app.run_training_loop()
    close_pylogger()
    return str(Path(app.logdir) / "checkpoint.pth.tar")


@pytest.fixture
def main(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.delitem(sys.modules, "parser", raising=False)
    spec = importlib.util.spec_from_file_location("example_for_quantization", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.main


def only_file(folder, name):
    (found,) = folder.rglob(name)
    return found


def top1(folder):
    return json.loads(only_file(folder, "summary.json").read_text())["top1_after"]


@pytest.fixture(scope="module")
def dense(weights, tmp_path_factory):
    """Top-1 in floating point."""
    folder = tmp_path_factory.mktemp("dense")
    arguments = [*ARCH, "--evaluate", "--exp-load-weights-from", weights, "--out-dir", str(folder)]
    app = ClassifierCompressor(init_classifier_compression_arg_parser().parse_args(arguments), folder)
    score = app.evaluate()[0]
    close_pylogger()
    return score


def test_calibrate_quantize_save_and_load(main, weights, dense, tmp_path, capsys):
    load = (*ARCH, "--exp-load-weights-from", weights)
    assert main([*load, "--qe-calibration", "0.2", "--out-dir", "calibration"]) == 0
    stats = only_file(tmp_path / "calibration", "acts_quantization_stats.yaml")
    assert "conv1" in yaml.safe_load(stats.read_text())

    quantize = ("--evaluate", "--quantize-eval", "--qe-per-channel", "--qe-clip-acts", "--qe-mode-acts", "asym_u")
    assert main([*load, *quantize, "--qe-stats-file", str(stats), "--out-dir", "static", "--name", "mine"]) == 0
    quantized = top1(tmp_path / "static")
    assert abs(quantized - dense) < 3
    saved = only_file(tmp_path / "static", "mine_quantized_checkpoint.pth.tar")
    assert read_checkpoint(saved).extras["quantized_top1"] == pytest.approx(quantized, abs=0.01)
    assert "conv1" in yaml.safe_load(only_file(tmp_path / "static", "layer_quant_params.yaml").read_text())

    assert main([*ARCH, "--evaluate", "--resume-from", str(saved), "--out-dir", "again"]) == 0
    assert top1(tmp_path / "again") == quantized
    assert main([*ARCH, "--evaluate", "--quantize-eval", "--resume-from", str(saved), "--out-dir", "twice"]) == 2
    assert "quantized already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--qe-dynamic"],
        ["--qe-calibration", "0.3", "--qe-bits-wts", "6"],
        ["--qe-no-quant-layers", "fc"],
        ["--qe-calibration", "0.3", "--qe-lapq", "--lapq-maxfev", "3", "--lapq-eval-size", "0.5",
         "--lapq-eval-memoize-dataloader", "--lapq-init-mode", "l2"],
    ],
)  # fmt: skip
def test_ways_to_quantize(main, weights, dense, tmp_path, flags):
    load = (*ARCH, "--exp-load-weights-from", weights, "--evaluate", "--quantize-eval")
    assert main([*load, *flags, "--out-dir", "out"]) == 0
    assert abs(top1(tmp_path / "out") - dense) < 5
    assert only_file(tmp_path / "out", "quantized_checkpoint.pth.tar").is_file()


def test_a_configuration_file_and_a_search_without_statistics(main, weights, tmp_path):
    (tmp_path / "ptq.yaml").write_text(
        "quantizers:\n  mine:\n    class: PostTrainLinearQuantizer\n    bits_activations: null\n"
        "    bits_parameters: 4\n"
    )
    load = (*ARCH, "--exp-load-weights-from", weights, "--evaluate", "--qe-config-file", "ptq.yaml")
    assert main([*load, "--qe-lapq", "--lapq-maxfev", "2", "--out-dir", "out"]) == 0
    state = read_checkpoint(only_file(tmp_path / "out", "quantized_checkpoint.pth.tar")).state_dict
    assert state["fc.wrapped_module.weight"].unique().numel() <= 16


def test_onnx(main, weights, tmp_path, capsys):
    load = (*ARCH, "--exp-load-weights-from", weights)
    assert main([*load, "--export-onnx", "--out-dir", "float"]) == 0
    floating = only_file(tmp_path / "float", "model.onnx").stat().st_size
    quantize = ("--evaluate", "--quantize-eval", "--qe-calibration", "0.2", "--qe-mode-acts", "asym_u")
    assert main([*load, *quantize, "--out-dir", "static"]) == 0
    saved = only_file(tmp_path / "static", "quantized_checkpoint.pth.tar")
    assert main([*ARCH, "--resume-from", str(saved), "--export-onnx", "small.onnx", "--out-dir", "onnx"]) == 0
    assert only_file(tmp_path / "onnx", "small.onnx").stat().st_size < 0.5 * floating
    assert "layers compute with integers" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_real_integers_in_onnx_runtime(main, weights, dense, tmp_path, backend):
    load = (*ARCH, "--exp-load-weights-from", weights, "--evaluate", "--quantize-eval", "--qe-calibration", "0.2")
    convert = ("--qe-convert-pytorch", "--qe-pytorch-backend", backend, "--qe-mode-wts", "sym_restr")
    assert main([*load, *convert, "--out-dir", "out"]) == 0
    assert abs(top1(tmp_path / "out") - dense) < 3
    assert only_file(tmp_path / "out", "quantized.onnx").is_file()
    saved = only_file(tmp_path / "out", "quantized_checkpoint.pth.tar")
    again = [*ARCH, "--evaluate", "--resume-from", str(saved), *convert[:3], "--out-dir", "again"]
    assert main(again) == 0
    assert top1(tmp_path / "again") == top1(tmp_path / "out")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--quantize-eval"], "--evaluate"),
        (["--qe-lapq"], "--evaluate"),
        (["--qe-convert-pytorch"], "--evaluate"),
        (["--evaluate", "--qe-convert-pytorch"], "quantize-eval"),
        (["--evaluate", "--quantize-eval", "--qe-clip-acts", "n_std"], "--qe-clip-n-stds"),
        (["--evaluate", "--quantize-eval", "--qe-stats-file", "nowhere.yaml"], "nowhere.yaml"),
        (["--evaluate", "--quantize-eval", "--qe-no-quant-layers", "fcc"], "fc"),
        (["--evaluate", "--quantize-eval", "--qe-config-file", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes(main, flags, message, capsys):
    assert main([*ARCH, *flags, "--etes", "0.1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_flags_without_effect_are_told(main, weights, capsys):
    load = (*ARCH, "--exp-load-weights-from", weights, "--evaluate", "--etes", "0.1")
    assert main([*load, "--qe-bits-wts", "4", "--qe-clip-acts"]) == 0
    told = capsys.readouterr()
    for flag in ("--qe-bits-wts", "--qe-clip-acts"):
        assert f"{flag} has no effect without --quantize-eval" in told.out + told.err


def test_as_functions(weights):
    """Without a folder nothing is written; the model stays as it is."""
    args = init_classifier_compression_arg_parser().parse_args(
        [*ARCH, "--evaluate", "--quantize-eval", "--etes", "0.2", "--exp-load-weights-from", weights]
    )
    app = ClassifierCompressor(args, None)
    app.load_datasets()
    before = app.model.conv1.weight.clone()
    scores = quantize_and_test_model(app.test_loader, app.model, app.criterion, app.args)
    assert len(scores) == 3
    assert torch.equal(app.model.conv1.weight, before)
    with pytest.raises(ArgumentError, match="--evaluate"):
        check_quantization_flags(argparse.Namespace(quantize_eval=True, evaluate=False))
