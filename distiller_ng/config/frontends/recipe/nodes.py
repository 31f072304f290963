"""From YAML nodes to data in which tags and references to variables are kept (layer 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from distiller_ng.config.documents import AliasNode, Converter, Document, compose
from distiller_ng.config.marks import Path, as_part

__all__ = ["Reference", "Tagged", "load_recipe_document"]

_PREFIXES = ("pytorch.", "tensorflow_v1.", "keras.")


@dataclass(frozen=True, slots=True)
class Tagged:
    """A modifier as it is written: ``!EpochRangeModifier`` with its properties."""

    tag: str
    properties: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reference:
    """An alias of a variable, ``*num_epochs``: it follows the variable when that is overridden."""

    variable: Path


def load_recipe_document(text: str, source: str) -> Document:
    """Like ``load_document``, with :class:`Tagged` and :class:`Reference` in the data.

    >>> load_recipe_document("modifiers: [!EpochRangeModifier {end_epoch: 2}]", "demo").data
    {'modifiers': [Tagged(tag='EpochRangeModifier', properties={'end_epoch': 2})]}
    """
    return _RecipeConverter(*compose(text, source), source).document()


class _RecipeConverter(Converter):
    def document(self) -> Document:
        self._variables = self._find_variables(self._root, (), 2)
        return super().document()

    def _find_variables(self, node: yaml.Node | None, path: Path, levels: int) -> dict[int, Path]:
        """The nodes that variables name, at the top and in stages."""
        found: dict[int, Path] = {}
        if not isinstance(node, yaml.MappingNode) or not levels:
            return found
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and not isinstance(value, AliasNode):
                here = (*path, as_part(key.value))
                if isinstance(value, yaml.ScalarNode | yaml.SequenceNode) and "modifiers" not in key.value:
                    found[id(value)] = here
                found |= self._find_variables(value, here, levels - 1)
        return found

    def _alias(self, node: AliasNode, path: Path, depth: int) -> Any:
        data = super()._alias(node, path, depth)
        variable = self._variables.get(id(node.target))
        return data if variable is None else Reference(variable)

    def _convert(self, node: yaml.Node, path: Path, depth: int) -> Any:
        tag = None if isinstance(node, AliasNode) else _own_tag(node)
        if tag is None:
            return super()._convert(node, path, depth)
        self._tags.append(f"!{tag}")
        implicit = "map" if isinstance(node, yaml.MappingNode) else "str"
        node.tag = f"tag:yaml.org,2002:{implicit}"
        if isinstance(node, yaml.SequenceNode):
            node.tag = "tag:yaml.org,2002:seq"
        value = super()._convert(node, path, depth)
        node.tag = f"!{tag}"  # an anchor may bring it here again
        if isinstance(value, dict):
            return Tagged(tag, {str(key): entry for key, entry in value.items()})
        if value not in ("", None):
            self._report.error(path, f"!{tag} is followed by its properties, 'name: value' in lines of their own")
        return Tagged(tag)


def _own_tag(node: yaml.Node) -> str | None:
    """``X`` of ``!X`` or ``!pytorch.X``; None for YAML's own tags."""
    tag = str(node.tag)
    if not tag.startswith("!") or tag == "!":
        return None
    name = tag[1:]
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)
