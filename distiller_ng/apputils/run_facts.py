"""What a model is at one moment of a run: size, MACs, layers with their bits, weights as histograms (layer 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from distiller_ng.core._batches import split_batch
from distiller_ng.core.hooks import HookDriver
from distiller_ng.core.policy_list import PolicyList
from distiller_ng.core.resume import capture_rng, restore_rng
from distiller_ng.errors import DistillerError
from distiller_ng.graph.inputs import ExampleInputs, with_batch
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.sparsity import count_nonzero
from distiller_ng.ops.weights import counted_weights
from distiller_ng.policies.quantization import QuantizationPolicy
from distiller_ng.reports._plan_sizes import quantized_bits
from distiller_ng.reports.compute import layer_costs

__all__ = ["bits_by_module", "first_inputs", "layer_facts", "model_facts", "weight_histograms"]

_WEIGHT_DIMS = (2, 3, 4, 5)
_BINS = 48
#: What running a model on inputs that were guessed may raise; facts are left out then, training goes on.
_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError)


def model_facts(
    model: nn.Module, inputs: ExampleInputs | None = None, scheduler: HookDriver | None = None
) -> dict[str, Any]:
    """``parameters``, ``nonzero``, ``bytes`` (parameters and buffers as they are in memory), ``sparsity``, ``macs``.

    ``nonzero`` leaves out zeros of tensors with two dimensions or more, and those that the masks of ``scheduler`` make:
    others of biases and norms, which many models begin with, say nothing. ``sparsity`` is the fraction of zeros in the
    weights that count, ``macs`` of one sample of ``inputs``, None where they are not known or the model does not run on
    them. ``bytes_at_bits``: the bytes with every parameter at the bits that quantizers of ``scheduler`` give it.
    Linear(4, 2) has 10 parameters, 40 bytes and 8 MACs.
    """
    bare = unwrap(model)
    parameters = {canonical_name(name): parameter for name, parameter in bare.named_parameters()}
    weights = list(counted_weights(bare))
    total = sum(weight.numel() for _, weight in weights)
    nonzero = sum(count_nonzero(weight) for _, weight in weights)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in bare.buffers())
    sizes = {name: p.numel() * 8 * p.element_size() for name, p in parameters.items()}
    policies = [] if scheduler is None else [entry.policy for entry in scheduler.entries]
    bits = {k: n for one in policies if isinstance(one, QuantizationPolicy) for k, n in quantized_bits(one).items()}
    masks = {} if scheduler is None else scheduler.masks.masked()
    quantized = {name: parameters[name].numel() * n for name, n in bits.items() if name in parameters}
    return {
        "parameters": sum(p.numel() for p in parameters.values()),
        "nonzero": sum(_counted(p, masks.get(name)) for name, p in parameters.items()),
        "bytes": buffers + sum(sizes.values()) // 8,
        "bytes_at_bits": buffers + math.ceil(sum((sizes | quantized).values()) / 8),
        "sparsity": 1 - nonzero / total if total else 0.0,
        "macs": None if inputs is None else _macs(bare, inputs),
    }


def first_inputs(loader: Iterable[Any] | None) -> ExampleInputs | None:
    """What a model is called with for the first sample of a loader (a ``DataLoader`` or a list); None if unknown.

    The sample is read apart from the loader, whose order and workers are not touched, and random generators are put
    back.
    """
    rng = capture_rng()
    try:
        if isinstance(loader, DataLoader):
            if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
                return None
            args, kwargs, _ = split_batch(loader.collate_fn([loader.dataset[0]]))
        elif isinstance(loader, list | tuple) and loader:
            args, kwargs, _ = split_batch(loader[0])
        else:
            return None
        return ExampleInputs(tuple(args), dict(kwargs))
    except (DistillerError, *_FAILURES):
        return None
    finally:
        restore_rng(rng)


def layer_facts(model: nn.Module, bits: Mapping[str, tuple[int | None, int | None]]) -> list[dict[str, Any]]:
    """One row a weight: ``name``, ``shape``, ``nonzero``, ``sparsity``, ``bits`` and ``activation_bits`` (or None).

    ``bits`` is what :func:`bits_by_module` gives.
    """
    rows = []
    for name, weight in counted_weights(unwrap(model), _WEIGHT_DIMS):
        nonzero = count_nonzero(weight)
        of_weight, of_activations = bits.get(name.rpartition(".")[0], (None, None))
        rows.append(
            {
                "name": name,
                "shape": list(weight.shape),
                "nonzero": nonzero,
                "sparsity": 1 - nonzero / weight.numel() if weight.numel() else 0.0,
                "bits": of_weight,
                "activation_bits": of_activations,
            }
        )
    return rows


def bits_by_module(scheduler: PolicyList | None) -> dict[str, tuple[int | None, int | None]]:
    """``{module: (bits of its weight, bits of its activations)}`` of what the schedule's quantizers quantize."""
    found: dict[str, tuple[int | None, int | None]] = {}
    for entry in () if scheduler is None else scheduler.entries:
        if isinstance(entry.policy, QuantizationPolicy):
            rows = entry.policy.quantizer.plan().rows
            found |= {row.module: (row.weights, row.activations) for row in rows if row.is_quantized}
    return found


def weight_histograms(model: nn.Module, bins: int = _BINS) -> dict[str, dict[str, Any]]:
    """``{weight: {"low", "high", "counts", "zeros"}}``: equal bins over the values that are not zero.

    Zeros are counted apart: in a pruned weight they would hide everything else. Weights without finite values, or with
    none but zeros, are left out.
    """
    found = {}
    for name, weight in counted_weights(unwrap(model), _WEIGHT_DIMS):
        values = weight.detach().float().flatten()
        values = values[torch.isfinite(values) & (values != 0)]
        if not values.numel():
            continue
        low, high = float(values.min()), float(values.max())
        if low == high:
            low, high = low - abs(low) / 2, high + abs(high) / 2
        counts = torch.histc(values.cpu(), bins=bins, min=low, max=high)
        zeros = int((weight == 0).sum())
        found[name] = {"low": low, "high": high, "counts": [int(count) for count in counts], "zeros": zeros}
    return found


def _counted(parameter: Tensor, mask: Tensor | None) -> int:
    """Values that are not zero; of one dimension, those that are not masked."""
    if parameter.dim() > 1:
        return count_nonzero(parameter)
    return parameter.numel() if mask is None else count_nonzero(mask)


def _macs(model: nn.Module, inputs: ExampleInputs) -> int | None:
    """MACs of one sample; None for a model that does not run by itself on one."""
    rng = capture_rng()
    try:
        one = with_batch(inputs, 1)
        costs = layer_costs(model, one)
        return sum(cost.macs for cost in costs) or None
    except _FAILURES:
        return None
    finally:
        restore_rng(rng)
