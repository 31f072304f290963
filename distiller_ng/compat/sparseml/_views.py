"""Modifiers as ported code looks at them: objects whose attributes are the resolved properties."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distiller_ng.config.spec import ModifierSpec
from distiller_ng.errors import did_you_mean

__all__ = ["ModifierLists", "ModifierView"]

_KINDS = {
    "pruning": ("Pruning", "TopKAST", "RigL"),
    "quantization": ("Quantization",),
    "distillation": ("Distillation",),
    "learning_rate": ("LearningRate",),
    "epoch": ("EpochRange",),
    "structural": ("Quantization", "LayerPruning", "StructuredPruning", "LayerThinning"),
}


@dataclass(frozen=True)
class ModifierView:
    """One modifier of a manager, or one to give to ``from_yaml(add_modifiers=[...])``.

    >>> ModifierView("EpochRangeModifier", {"start_epoch": 0.0, "end_epoch": 2.0}).end_epoch
    2.0
    """

    tag: str
    properties: Mapping[str, Any] = field(default_factory=dict)
    stage: str = ""

    def __getattr__(self, name: str) -> Any:
        properties = self.__dict__.get("properties", {})
        if name in properties:
            return properties[name]
        if name in ("start_epoch", "end_epoch", "update_frequency"):
            return -1.0
        raise AttributeError(f"{self.__dict__.get('tag')} has no property {name!r}. {did_you_mean(name, properties)}")

    def is_kind(self, kind: str) -> bool:
        """Whether it belongs to a group: pruning, quantization, distillation, learning_rate, epoch or structural."""
        return any(part in self.tag for part in _KINDS[kind])

    @classmethod
    def of(cls, modifier: ModifierSpec) -> ModifierView:
        """The view of a recipe's modifier."""
        return cls(modifier.tag, dict(modifier.properties), modifier.stage)


class ModifierLists(ABC):
    """The modifiers of a manager by what they do."""

    @abstractmethod
    def iter_modifiers(self) -> Iterator[ModifierView]:
        """All modifiers."""

    @property
    def pruning_modifiers(self) -> list[ModifierView]:
        """Those that prune."""
        return self._of_kind("pruning")

    @property
    def quantization_modifiers(self) -> list[ModifierView]:
        """Those that quantize."""
        return self._of_kind("quantization")

    @property
    def distillation_modifiers(self) -> list[ModifierView]:
        """Those that distil."""
        return self._of_kind("distillation")

    @property
    def learning_rate_modifiers(self) -> list[ModifierView]:
        """Those that set learning rates."""
        return self._of_kind("learning_rate")

    @property
    def epoch_modifiers(self) -> list[ModifierView]:
        """Those that give the run its length."""
        return self._of_kind("epoch")

    @property
    def structural_modifiers(self) -> list[ModifierView]:
        """Those that change the model's modules or shapes."""
        return self._of_kind("structural")

    def qat_active(self, epoch: float) -> bool:
        """Whether quantization has begun by ``epoch``."""
        return any(modifier.start_epoch <= epoch for modifier in self.quantization_modifiers)

    def _of_kind(self, kind: str) -> list[ModifierView]:
        return [modifier for modifier in self.iter_modifiers() if modifier.is_kind(kind)]
