"""Structured pruning to half the MACs, against Torch-Pruning on the same models in the same run.

    python benchmarks/thinning.py [--quick] [--output benchmarks/results/thinning.json]

Times are process CPU time on one thread, medians of rounds, after one trace that loads torch's exporter (reported as
``thinning.first_trace``). Trace, plan and apply are timed apart (apply includes the four forward passes that compare
outputs); Torch-Pruning's plan and application are one call, and as it takes a ratio of channels, no budget, its users
search: ``search_s`` is a bisection in six steps. ``total_s`` is the way to the budget without knowing the ratio. Errors
are relative, of eval outputs, against the same model with the same channels zeroed (ours only: the peer does not say
what it removed). ``latency`` is time before over time after, eager, batch 16. A model a tool fails on is listed with
the reason. ``--accuracy`` fine-tunes ResNet-20 on Fashion-MNIST, with the same MACs, epochs and data order for both.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measuring import machine
from _networks import NETWORKS
from torch import Tensor, nn

from distiller_ng.errors import DistillerError
from distiller_ng.graph.provider import ModelGraph
from distiller_ng.policies.one_shot import plan_structures
from distiller_ng.reports.compute import layer_costs
from distiller_ng.thinning.apply import apply_plan

BUDGET = 0.5
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError, DistillerError)


def macs(model: nn.Module, x: Tensor) -> int:
    return sum(cost.macs for cost in layer_costs(model, x))


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def ours(model: nn.Module, x: Tensor) -> dict[str, Any]:
    provider = ModelGraph(model, x)
    trace_s, _ = timed(provider.dependency)
    plan_s, plan = timed(lambda: plan_structures(model, x, target={"macs": BUDGET}, importance="l2", graph=provider))
    apply_s, report = timed(lambda: apply_plan(model, plan, x, warn=False))
    return {"trace_s": trace_s, "plan_s": plan_s, "apply_s": apply_s, "error": report.error}


def theirs(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Torch-Pruning, with the ratio of channels that reaches the budget, found by bisection on copies."""
    search_s, ratio = timed(lambda: ratio_for_budget(model, x))
    return {"ratio": ratio, "search_s": search_s, **prune_theirs(model, x, ratio)}


def prune_theirs(model: nn.Module, x: Tensor, ratio: float, uniform: bool = False) -> dict[str, Any]:
    import torch_pruning as tp

    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv")}
    importance = tp.importance.GroupMagnitudeImportance(p=2)

    def build() -> Any:
        return tp.pruner.MetaPruner(
            model,
            x,
            importance=importance,
            pruning_ratio=ratio,
            global_pruning=not uniform,
            max_pruning_ratio=0.9,
            ignored_layers=[last],
            num_heads=heads,
            prune_num_heads=bool(heads),
        )

    trace_s, pruner = timed(build)
    step_s, _ = timed(pruner.step)
    if heads:
        for module in model.modules():
            if hasattr(module, "qkv"):
                module.num_heads = pruner.num_heads[module.qkv]
                module.head_dim = module.qkv.out_features // (3 * module.num_heads)
    with torch.no_grad():
        model(x)
    return {"trace_s": trace_s, "plan_and_apply_s": step_s}


def ratio_for_budget(model: nn.Module, x: Tensor) -> float:
    low, high = 0.0, 0.9
    dense = macs(model, x)
    for _ in range(6):
        middle = (low + high) / 2
        trial = copy.deepcopy(model)
        prune_theirs(trial, x, middle)
        low, high = (middle, high) if macs(trial, x) / dense > BUDGET else (low, middle)
    return high


def latency(dense: nn.Module, small: nn.Module, x: Tensor, rounds: int) -> float:
    """Median time of the dense model over that of the small one."""
    samples: dict[str, list[float]] = {"dense": [], "small": []}
    with torch.no_grad():
        for round_number in range(rounds + 1):
            for name, model in (("dense", dense), ("small", small)):
                seconds, _ = timed(lambda m=model: m(x))
                if round_number:
                    samples[name].append(seconds)
    return statistics.median(samples["dense"]) / statistics.median(samples["small"])


def measure(name: str, tool: Callable[..., dict[str, Any]], rounds: int) -> dict[str, Any]:
    build, make = NETWORKS[name]
    torch.manual_seed(0)
    dense = build().eval()
    x = make(2)
    results = []
    for _ in range(rounds):
        model = copy.deepcopy(dense)
        try:
            results.append(tool(model, x))
        except FAILURES as error:
            return {"fails": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}
    found = {key: statistics.median(r[key] for r in results) for key in results[0]}
    found["macs"] = macs(model, x) / macs(dense, x)
    found["latency"] = latency(dense, model, make(16 if name != "mobilenet_v1" else 2), 5)
    return found


def report(metric: str, value: Any, unit: str, peers: dict[str, Any], goal: str, met: bool) -> dict[str, Any]:
    line = {"metric": metric, "value": value, "unit": unit, "peers": peers, "goal": goal, "met": met}
    print(json.dumps(line), flush=True)
    return line


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}


def structure(names: list[str], rounds: int) -> list[dict[str, Any]]:
    cold, _ = timed(lambda: ModelGraph(nn.Linear(2, 2), torch.zeros(1, 2)).dependency())
    lines = [report("thinning.first_trace", float(f"{cold:.4g}"), "s", {}, "under 5, once in a process", cold < 5)]
    failed: dict[str, list[str]] = {"distiller_ng": [], "torch-pruning": []}
    for name in names:
        mine, peer = rounded(measure(name, ours, rounds)), rounded(measure(name, theirs, rounds))
        if "fails" in mine:
            failed["distiller_ng"].append(name)
        if "fails" in peer:
            failed["torch-pruning"].append(name)
        total = sum(mine.get(key, 0.0) for key in ("trace_s", "plan_s", "apply_s"))
        theirs_total = sum(peer.get(key, 0.0) for key in ("search_s", "trace_s", "plan_and_apply_s"))
        exact = "fails" not in mine and mine["error"] <= 1e-4 and abs(mine["macs"] - BUDGET) <= 0.02 * BUDGET + 1e-9
        goal = "half the MACs within 2 %, error <= 1e-4" + ("" if "fails" in peer else ", at the budget sooner")
        faster = "fails" in peer or total <= theirs_total
        value = {**mine, "total_s": round(total, 4)}
        peers = {"torch-pruning": {**peer, "total_s": round(theirs_total, 4)}}
        lines.append(report(f"thinning.{name}", value, "s, ratios", peers, goal, exact and faster))
    none = "none of our own"
    lines.append(
        report("thinning.models_failed", failed["distiller_ng"], "names", failed, none, not failed["distiller_ng"])
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four small models, one round")
    parser.add_argument("--output", type=Path, help="also write the lines as JSON, with the machine")
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), help="only these")
    parser.add_argument("--accuracy", type=int, metavar="EPOCHS", help="fine-tune ResNet-20 on Fashion-MNIST instead")
    parser.add_argument("--dense", type=Path, help="state dict of the trained ResNet-20, for --accuracy")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if args.accuracy:
        from _thinning_accuracy import accuracy

        lines = [report(*accuracy(args.dense, args.accuracy, prune_theirs))]
    else:
        names = args.models or (["resnet20", "inception", "unet", "lstm"] if args.quick else list(NETWORKS))
        lines = structure(names, 1 if args.quick else 5)
    if args.output:
        args.output.write_text(json.dumps({"machine": machine(), "quick": args.quick, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
