"""The command line of the image-classification application: Distiller's flags and a few of ours (layer 5)."""

from __future__ import annotations

import argparse

from distiller_ng.apputils.classifier_activations import add_activation_arguments
from distiller_ng.apputils.classifier_exits import add_early_exit_arguments
from distiller_ng.apputils.classifier_exporting import add_export_arguments
from distiller_ng.apputils.classifier_sensitivity import add_sensitivity_arguments
from distiller_ng.apputils.classifier_thinning import add_thinning_arguments
from distiller_ng.quantization.ptq_arguments import add_post_train_quant_args
from distiller_ng.reports.summary import PICTURES, SUMMARIES
from distiller_ng.utils import float_range_argparse_checker

__all__ = ["OPTIMIZERS", "init_classifier_compression_arg_parser"]

OPTIMIZERS = ("sgd", "adam", "adamw")

_EPILOG = """\
examples:
  compress_classifier.py --arch digits_cnn --compress schedules/agp_digits_cnn.yaml --epochs 24 --lr 0.05
  compress_classifier.py --arch resnet20_cifar --dataset fashion-mnist --epochs 10 --batch-size 128 \\
                         --compress schedules/agp_resnet20_fmnist.yaml
  compress_classifier.py --arch digits_cnn --resume-from logs/<run>/checkpoint.pth.tar
  compress_classifier.py --arch digits_cnn --exp-load-weights-from logs/<run>/best.pth.tar --evaluate
  compress_classifier.py --arch digits_cnn --exp-load-weights-from logs/<run>/best.pth.tar --evaluate \\
                         --quantize-eval --qe-calibration 0.2
"""


def init_classifier_compression_arg_parser(include_ptq_lapq_args: bool = False) -> argparse.ArgumentParser:
    """A parser with every flag of Distiller's.

    Flags may be abbreviated (``--batch=64``, ``--eval``). ``include_ptq_lapq_args`` adds the ``--qe-lapq`` family.
    """
    parser = argparse.ArgumentParser(
        description="Train, compress and evaluate image classifiers",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", metavar="DIR", nargs="?", help="where the data set is; digits and synthetic need none")
    parser.add_argument("--arch", "-a", metavar="ARCH", default="resnet18", help="architecture (default: resnet18)")
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="data set: digits, fashion-mnist, mnist, cifar10, imagenet, synthetic[:CxHxW] (default: by architecture)",
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="log more, the sparsity table of each epoch too")
    _add_optimization(parser)
    _add_loading(parser)
    _add_data(parser)
    _add_compression(parser)
    _add_machine(parser)
    _add_output(parser)
    add_activation_arguments(parser)
    add_thinning_arguments(parser)
    add_export_arguments(parser)
    add_sensitivity_arguments(parser)
    add_post_train_quant_args(parser, include_ptq_lapq_args, calibrate_and_evaluate=True)
    add_early_exit_arguments(parser)
    return parser


def _add_optimization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Optimization")
    group.add_argument("--epochs", type=_whole(0), metavar="N", default=90, help="epochs in all (default: 90)")
    group.add_argument("-b", "--batch-size", type=_whole(1), metavar="N", default=256, help="images (default: 256)")
    group.add_argument("--opt", choices=OPTIMIZERS, default="sgd", help="optimizer (default: sgd)")
    group.add_argument("--lr", "--learning-rate", type=_at_least(0.0), metavar="LR", default=0.1, help="default: 0.1")
    group.add_argument("--momentum", type=_at_least(0.0), metavar="M", default=0.9, help="of sgd (default: 0.9)")
    group.add_argument("--weight-decay", "--wd", type=_at_least(0.0), metavar="W", default=1e-4, help="default: 1e-4")


def _add_loading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Loading").add_mutually_exclusive_group()
    group.add_argument("--resume", dest="deprecated_resume", default="", metavar="PATH", help=argparse.SUPPRESS)
    group.add_argument(
        "--resume-from",
        dest="resumed_checkpoint_path",
        default="",
        metavar="PATH",
        help="continue a run exactly: weights, masks, schedule, optimizer, epoch and random generators",
    )
    group.add_argument(
        "--exp-load-weights-from", dest="load_model_path", default="", metavar="PATH", help="load weights alone"
    )
    parser.add_argument(
        "--load-serialized", action="store_true", help="accepted, no effect: models are never wrapped in DataParallel"
    )
    parser.add_argument("--pretrained", action="store_true", help="refused: nothing is downloaded")
    parser.add_argument(
        "--reset-optimizer",
        action="store_true",
        help="after --resume-from: keep weights and masks, begin anew with epoch 0 and a new optimizer",
    )
    parser.add_argument("--evaluate", "-e", action="store_true", help="measure the loaded model on the test set")


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Data")
    group.add_argument("--workers", "-j", type=_whole(0), metavar="N", default=0, help="loading processes (default: 0)")
    group.add_argument(
        "--validation-split",
        "--valid-size",
        "--vs",
        dest="validation_split",
        type=float_range_argparse_checker(exc_max=True),
        default=0.1,
        help="fraction of the training set put aside for validation (default: 0.1)",
    )
    for name, short in (("train", "etrs"), ("valid", "evs"), ("test", "etes")):
        group.add_argument(
            f"--effective-{name}-size",
            f"--{short}",
            dest=f"effective_{name}_size",
            type=float_range_argparse_checker(exc_min=True),
            default=1.0,
            metavar="FRACTION",
            help=f"fraction of the {name} set used in an epoch (default: 1.0)",
        )


def _add_compression(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Compression")
    group.add_argument("--compress", dest="compress", metavar="FILE", help="schedule to compress the model with")
    group.add_argument("--masks-sparsity", action="store_true", help="log the sparsity of the masks after each epoch")
    group.add_argument(
        "--summary",
        action="append",
        choices=(*SUMMARIES, *PICTURES),
        help="log a summary of the model and stop; may be repeated",
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Machine")
    group.add_argument("--cpu", action="store_true", help="use the CPU even where --gpus is given")
    group.add_argument("--gpus", metavar="ID", help="use this GPU, e.g. 0 (default: the CPU)")
    group.add_argument("--deterministic", "--det", action="store_true", help="the same results in every run")
    group.add_argument("--seed", type=_whole(0), metavar="N", help="seed of all random generators")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Output")
    group.add_argument("--name", "-n", metavar="NAME", help="name of the run, part of its folder's name")
    group.add_argument(
        "--out-dir", "-o", dest="output_dir", metavar="DIR", default="logs", help="parent of run folders (logs)"
    )
    group.add_argument("--print-freq", "-p", type=_whole(1), metavar="N", default=10, help="steps a line (default: 10)")
    group.add_argument(
        "--param-hist",
        dest="log_params_histograms",
        action="store_true",
        help="log histograms of the parameters (TensorBoard only)",
    )
    group.add_argument("--confusion", dest="display_confusion", action="store_true", help="log the confusion matrix")
    group.add_argument(
        "--num-best-scores", type=_whole(1), metavar="N", default=1, help="best epochs to list (default: 1)"
    )


class _Number:
    """A ``type=`` for argparse: a number of one kind from ``least`` on."""

    def __init__(self, kind: type[int] | type[float], least: float) -> None:
        self.kind, self.least = kind, least

    def __call__(self, text: str) -> int | float:
        noun = "whole number" if self.kind is int else "number"
        try:
            value = self.kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {noun}") from None
        if not value >= self.least or value == float("inf"):  # also refuses NaN
            raise argparse.ArgumentTypeError(f"must be a {noun} from {self.least} on, got {text}")
        return value


def _whole(least: int) -> _Number:
    return _Number(int, least)


def _at_least(least: float) -> _Number:
    return _Number(float, least)
