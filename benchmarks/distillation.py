"""What distillation costs a training step, against the bare sum of its parts measured in the same run.

    python benchmarks/distillation.py [--quick] [--output benchmarks/results/distillation.json]

With a teacher: the policy's step against a plain student step plus a bare forward pass of the teacher under
``no_grad``. With stored logits: the policy's step, batches taken from a loader, against the plain student step over the
same loader. Variants are interleaved in one process and compared by medians of process CPU time on one thread, so that
other load on the machine matters little.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _measuring import Step, interleave, ratio, run_benchmark
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.knowledge_distillation import CachedTeacher, DistillationLossWeights, WithSampleIds, cache_teacher
from distiller_ng.models import create_model
from distiller_ng.policies.knowledge_distillation import KnowledgeDistillationPolicy

WEIGHTS, TEMPERATURE = DistillationLossWeights(0.7, 0.3, 0), 4.0
BATCHES = 4  # different ones, over and over


class Mlp(nn.Module):
    """``width`` hidden units twice, 784 inputs, 10 classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Transformer(nn.Module):
    """An encoder of so many layers, width 128."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def resnet(name: str) -> Callable[[], nn.Module]:
    """A model of the zoo, for CIFAR's images."""
    return lambda: create_model(False, "cifar10", name)


#: Student, teacher, shape of a batch, and a layer of each whose features are compared in one more variant.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "resnet20_from_resnet56_b64": (
        resnet("resnet20_cifar"), resnet("resnet56_cifar"), (64, 3, 32, 32), {"layer3": "layer3"},
    ),
    "resnet20_from_resnet56_b8": (
        resnet("resnet20_cifar"), resnet("resnet56_cifar"), (8, 3, 32, 32), {"layer3": "layer3"},
    ),
    "mlp_from_mlp_b256": (lambda: Mlp(800), lambda: Mlp(2400), (256, 784), {"body": "body"}),
    "transformer_2_from_6_b16": (
        lambda: Transformer(2), lambda: Transformer(6), (16, 32, 128), {"encoder": "encoder"},
    ),
}  # fmt: skip


class Plain:
    """The student's own step over a loader."""

    def __init__(self, student: nn.Module, teacher: nn.Module, data: WithSampleIds, batch: int) -> None:
        self.model, self.teacher, self.data, self.batch = copy.deepcopy(student).train(), teacher, data, batch
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        self.prepare()
        self.stream = self.batches()

    def prepare(self) -> None:
        """What the variant does before training."""

    def loader(self) -> Any:
        """Batches of tensors; the data set itself, which knows no ids."""
        return DataLoader(self.data.dataset, batch_size=self.batch)

    def batches(self) -> Iterator[Any]:
        """Without end."""
        while True:
            yield from self.loader()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of the student, against the labels."""
        return nn.functional.cross_entropy(self.model(images), labels)

    def __call__(self) -> None:
        images, labels, *_ = next(self.stream)
        loss = self.loss(images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class BareSum(Plain):
    """The plain step, and a bare forward pass of the teacher."""

    def prepare(self) -> None:
        self.teacher = copy.deepcopy(self.teacher).eval()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher(images)
        return super().loss(images, labels)


class ByHand(Plain):
    """The distillation loop people write themselves."""

    def prepare(self) -> None:
        self.teacher = copy.deepcopy(self.teacher).eval()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(images)
        output = self.model(images)
        soft = nn.functional.log_softmax(output / TEMPERATURE, 1)
        distance = nn.functional.kl_div(soft, torch.softmax(target / TEMPERATURE, 1), reduction="batchmean")
        own = nn.functional.cross_entropy(output, labels)
        return WEIGHTS.student * own + WEIGHTS.distill * TEMPERATURE**2 * distance


class Scheduled(Plain):
    """Our policy, all hooks called."""

    options: dict[str, Any] = {}  # noqa: RUF012 - replaced in subclasses, never changed

    def prepare(self) -> None:
        self.scheduler = CompressionScheduler(self.model, optimizer=self.optimizer)
        policy = KnowledgeDistillationPolicy(self.model, self.used_teacher(), TEMPERATURE, WEIGHTS, **self.options)
        self.scheduler.add_policy(policy, starting_epoch=0, ending_epoch=1, frequency=1)
        self.scheduler.on_epoch_begin(0)
        self.minibatch = 0

    def used_teacher(self) -> nn.Module:
        """A module of its own: hooks of one variant must not slow another."""
        return copy.deepcopy(self.teacher)

    def __call__(self) -> None:
        images, labels, *_ = next(self.stream)
        scheduler, i, n = self.scheduler, self.minibatch, 10**9
        scheduler.on_minibatch_begin(0, i, n, self.optimizer)
        loss = scheduler.before_backward_pass(0, i, n, self.loss(images, labels), self.optimizer)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        scheduler.before_parameter_optimization(0, i, n, self.optimizer)
        self.optimizer.step()
        scheduler.on_minibatch_end(0, i, n, self.optimizer)
        self.minibatch += 1


class Cached(Scheduled):
    """The policy with stored logits."""

    def used_teacher(self) -> nn.Module:
        path = Path(tempfile.mkdtemp(dir=FOLDER)) / "logits.bin"
        self.cached: CachedTeacher = cache_teacher(self.teacher, DataLoader(self.data, batch_size=self.batch), path)
        return self.cached

    def loader(self) -> Any:
        return self.cached.batches(DataLoader(self.data, batch_size=self.batch), check=False)


FOLDER = ""  # of the stored logits, set in main


def measure(case: str, seconds: float, least: int) -> Iterator[dict[str, Any]]:
    """Both goals for one pair of models, and what features of a layer cost beside them."""
    make_student, make_teacher, shape, layers = CASES[case]
    torch.manual_seed(0)
    student, teacher = make_student(), make_teacher().eval()
    count = BATCHES * shape[0]
    data = WithSampleIds(TensorDataset(torch.randn(count, *shape[1:]), torch.arange(count) % 10))
    with_layers = type("WithLayers", (Scheduled,), {"options": {"layers": layers}})
    kinds: dict[str, type[Plain]] = {
        "plain": Plain,
        "bare_sum": BareSum,
        "by_hand": ByHand,
        "policy": Scheduled,
        "policy_and_layer": with_layers,
        "cached": Cached,
    }
    steps: dict[str, Step] = {name: kind(student, teacher, data, shape[0]) for name, kind in kinds.items()}
    times = interleave(steps, seconds, least)
    milliseconds = {f"{name}_ms": round(1e3 * statistics.median(times[name]), 3) for name in ("plain", "bare_sum")}
    value = ratio(times, "policy", "bare_sum")
    yield {
        "metric": f"step_with_teacher_over_bare_sum/{case}",
        "value": round(value, 4),
        "unit": "ratio of CPU time per step",
        "peers": {
            "loop written by hand": round(ratio(times, "by_hand", "bare_sum"), 4),
            "ours, features of a layer too": round(ratio(times, "policy_and_layer", "bare_sum"), 4),
            **milliseconds,
        },
        "goal": "<= 1.03",
        "met": value <= 1.03,
    }
    value = ratio(times, "cached", "plain")
    yield {
        "metric": f"step_with_stored_logits_over_plain/{case}",
        "value": round(value, 4),
        "unit": "ratio of CPU time per step",
        "peers": {"ours, teacher in every step": round(ratio(times, "policy", "plain"), 4), **milliseconds},
        "goal": "<= 1.05",
        "met": value <= 1.05,
    }


def measured(quick: bool) -> Iterator[dict[str, Any]]:
    """Every case, one after the other."""
    global FOLDER
    seconds, least = (8.0, 5) if quick else (75.0, 30)
    with tempfile.TemporaryDirectory() as FOLDER:
        for case in CASES:
            yield from measure(case, seconds, least)


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measured))
