"""The application's command line: Distiller's flags, abbreviations, ranges, and flags that wait for their feature."""

import argparse

import pytest

from distiller_ng.apputils.classifier_args import init_classifier_compression_arg_parser
from distiller_ng.apputils.classifier_setup import infer_implicit_args_, make_optimizer, set_up_device_
from distiller_ng.errors import ArgumentError
from distiller_ng.models import create_model


def parse(*arguments):
    return init_classifier_compression_arg_parser(True).parse_args(list(arguments))


def test_defaults_are_distillers():
    args = parse()
    expected = {
        "arch": "resnet18",
        "epochs": 90,
        "batch_size": 256,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "print_freq": 10,
        "validation_split": 0.1,
        "effective_train_size": 1.0,
        "effective_valid_size": 1.0,
        "effective_test_size": 1.0,
        "num_best_scores": 1,
        "output_dir": "logs",
        "data": None,
        "compress": None,
        "resumed_checkpoint_path": "",
        "load_model_path": "",
        "seed": None,
        "deterministic": False,
        "evaluate": False,
        "activation_stats": [],
        "activation_histograms": None,
    }
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--batch=64"], "batch_size", 64),
        (["--eval"], "evaluate", True),
        (["--gpu=0"], "gpus", "0"),
        (["--learning-rate", "0.5"], "lr", 0.5),
        (["--wd", "0"], "weight_decay", 0.0),
        (["--vs", "0"], "validation_split", 0.0),
        (["--valid-size", "0.2"], "validation_split", 0.2),
        (["--etrs", "0.01"], "effective_train_size", 0.01),
        (["--evs=0.5"], "effective_valid_size", 0.5),
        (["--etes=0.5"], "effective_test_size", 0.5),
        (["--det"], "deterministic", True),
        (["-j", "2"], "workers", 2),
        (["--summary", "compute", "--summary", "modules"], "summary", ["compute", "modules"]),
        (["--act-stats", "train", "valid"], "activation_stats", ["train", "valid"]),
        (["--activation-stats", "test"], "activation_stats", ["test"]),
        (["--act-hist", "0.1"], "activation_histograms", 0.1),
        (["--confusion"], "display_confusion", True),
        (["--param-hist"], "log_params_histograms", True),
        (["--out-dir", "x"], "output_dir", "x"),
        (["--resume-from", "c"], "resumed_checkpoint_path", "c"),
        (["--resume", "c"], "deprecated_resume", "c"),
        (["--exp-load-weights-from", "c"], "load_model_path", "c"),
        (["some/dir"], "data", "some/dir"),
        (["--opt", "adamw"], "opt", "adamw"),
        (["--qe"], "quantize_eval", True),
        (["--sense", "filter"], "sensitivity", "filter"),
        (["--sense-range", "0", "0.9", "0.1"], "sensitivity_range", [0.0, 0.9, 0.1]),
        (["--qe-bits-w", "6"], "qe_bits_wts", 6),
        (["--qe-calibration=0.1"], "qe_calibration", 0.1),
        (["--export-onnx"], "export_onnx", "model.onnx"),
        (["--export-onnx", "a.onnx"], "export_onnx", "a.onnx"),
    ],
)
def test_flags_and_abbreviations(arguments, name, value):
    assert getattr(parse(*arguments), name) == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "-1"], "whole number from 0"),
        (["--epochs", "1.5"], "not a whole number"),
        (["--batch-size", "0"], "whole number from 1"),
        (["--lr", "nan"], "number from 0"),
        (["--lr", "-0.1"], "number from 0"),
        (["--vs", "1"], "< 1.0"),
        (["--etrs", "0"], "> 0.0"),
        (["--opt", "sdg"], "invalid choice"),
        (["--act-stats", "training"], "invalid choice"),
        (["--act-hist", "0"], "> 0.0"),
        (["--resume-from", "a", "--exp-load-weights-from", "b"], "not allowed with"),
    ],
)
def test_bad_values_exit_with_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--earlyexit_lossweights", "0.2", "0.3"], "earlyexit_lossweights", [0.2, 0.3]),
        (["--earlyexit-thresholds", "0.9"], "earlyexit_thresholds", [0.9]),
        (["--earlyexit_measure", "confidence"], "earlyexit_measure", "confidence"),
        (["--load-serialized"], "load_serialized", True),
    ],
)
def test_flags_that_distiller_had(arguments, name, value):
    assert getattr(parse(*arguments), name) == value
    assert getattr(parse(), name) in (None, "entropy", False)


def test_thresholds_are_numbers(capsys):
    for wrong in ("-1", "sure", "nan"):
        with pytest.raises(SystemExit):
            parse("--earlyexit_thresholds", wrong)
        assert "earlyexit_thresholds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arch", "dataset", "classes"),
    [
        ("digits_cnn", "digits", 10),
        ("simplenet_mnist", "mnist", 10),
        ("resnet20_cifar", "cifar10", 10),
        ("resnet18", "imagenet", 1000),
    ],
)
def test_data_set_follows_from_the_architecture(arch, dataset, classes):
    args = infer_implicit_args_(parse("--arch", arch))
    assert (args.dataset, args.num_classes) == (dataset, classes)


def test_given_data_set_wins_and_missing_arguments_get_defaults():
    args = infer_implicit_args_(argparse.Namespace(arch="resnet20_cifar", dataset="fashion-mnist"))
    assert (args.dataset, args.batch_size, args.opt) == ("fashion-mnist", 256, "sgd")


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_optimizers(name, kind):
    model = create_model(False, "digits", "digits_cnn")
    optimizer = make_optimizer(parse("--opt", name, "--lr", "0.25", "--wd", "0.5"), model)
    assert type(optimizer).__name__ == kind
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.25, 0.5)


def test_cpu_unless_a_gpu_is_asked_for():
    for arguments in ([], ["--cpu", "--gpus", "0"]):
        args = parse(*arguments)
        set_up_device_(args)
        assert args.device == "cpu"
    with pytest.raises(ArgumentError, match="--gpus takes the number"):
        set_up_device_(parse("--gpus", "first"))
