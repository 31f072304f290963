"""The activations themselves (layer 2)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.data_loggers._watching import main_output, refuse_data_parallel
from distiller_ng.data_loggers.activation_stats import ActivationStatsCollector
from distiller_ng.ops.files import write_tensors_atomically

__all__ = ["RawActivationsCollector"]


class RawActivationsCollector(ActivationStatsCollector):
    """Keeps every output of every module, on the CPU; memory grows with the data, so use a few batches.

    :meth:`value` joins the batches of a module along their first dimension: two outputs ``[4, 8]`` and ``[2, 8]`` give
    ``[6, 8]``. Where they differ in more than that, it is the list of outputs. Quantized tensors are dequantized.

    Raises :class:`ArgumentError` (a ``ValueError``) for a model that contains DataParallel.
    """

    def __init__(self, model: nn.Module, classes: Sequence[type[nn.Module]] | None = None) -> None:
        super().__init__(model, "raw_acts", classes)
        refuse_data_parallel(model)
        self._outputs: dict[str, list[Tensor]] = {}

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep a copy of the output."""
        tensor = main_output(module, output)
        if tensor is None:
            return
        values = tensor.detach()
        values = values.dequantize() if values.is_quantized else values
        copied = values.to("cpu", copy=True)  # later modules may work in place
        self._outputs.setdefault(name, []).append(copied)

    def value(self) -> dict[str, Tensor | list[Tensor]]:
        """The outputs of each module."""
        return self.in_model_order({name: _joined(outputs) for name, outputs in self._outputs.items()})

    def reset(self) -> None:
        """Forget what was collected."""
        self._outputs.clear()

    def save(self, fname: str | os.PathLike[str]) -> str:
        """Write ``<module name>.pt`` for each module into the folder ``fname``; the folder's name.

        Read them with ``torch.load(path, weights_only=True)``.
        """
        folder = Path(fname)
        for name, outputs in self.value().items():
            write_tensors_atomically(folder / f"{name}.pt", outputs)
        return str(folder)


def _joined(outputs: list[Tensor]) -> Tensor | list[Tensor]:
    if outputs[0].dim() == 0:
        return torch.stack(outputs) if all(one.dim() == 0 for one in outputs) else outputs
    same = all(one.shape[1:] == outputs[0].shape[1:] and one.dim() == outputs[0].dim() for one in outputs)
    return torch.cat(outputs) if same else outputs
