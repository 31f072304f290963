"""Neural Compressor's configuration object of a distillation (layer 5)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from distiller_ng.compat.neural_compressor._settings import Settings, read_dict, read_file
from distiller_ng.errors import ArgumentError

__all__ = ["ConfigurationLike", "DistillationConf"]

#: A YAML file, a dictionary of the same shape, or an object that holds such a dictionary as ``usr_cfg``.
ConfigurationLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | DistillationConf | None"


class DistillationConf:
    """A configuration, read and checked: ``DistillationConf("distillation.yaml")``.

    ``cfg`` is a YAML file, a dictionary of the same shape, or None for an empty one. ``usr_cfg`` is a copy of what was
    given, as plain data. Sections and values are those of the reference::

        model: {name: resnet18, framework: pytorch}
        distillation:
          train:
            start_epoch: 0
            end_epoch: 10
            optimizer: {SGD: {learning_rate: 0.1, momentum: 0.9}}
            criterion: {KnowledgeDistillationLoss: {temperature: 4.0, loss_types: [CE, KL], loss_weights: [0.5, 0.5]}}
        tuning: {random_seed: 9527}

    Raises ``FileNotFoundError``, :class:`ScheduleError` with everything that is wrong in it, each as
    ``file:line:column: path: message``, and :class:`ArgumentError` for anything else than a file or a dictionary.
    """

    def __init__(self, cfg: ConfigurationLike = None) -> None:
        self.settings: Settings
        self.usr_cfg: dict[str, Any]
        held = getattr(cfg, "usr_cfg", cfg)
        if held is None:
            self.settings, self.usr_cfg = Settings(), {}
        elif isinstance(held, Mapping):
            self.settings, self.usr_cfg = read_dict(held)
        elif isinstance(held, str | os.PathLike):
            self.settings, self.usr_cfg = read_file(held)
        else:
            raise ArgumentError(
                f"a configuration is the path of a YAML file, a DistillationConf or a dictionary; got a "
                f"{type(cfg).__name__}",
                argument=("conf_fname_or_obj",),
            )
