"""Registries: the one place where a class gets the name users write in a schedule, or in a recipe (layer 0).

A registry imports its folder on first use, so adding an algorithm is adding one file; installed packages add to it
through the entry-point group ``distiller_ng.plugins`` (each entry point names a module to import).
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["PLUGIN_GROUP", "EndRule", "RecipeTag", "Registered", "Registry"]

PLUGIN_GROUP = "distiller_ng.plugins"

T = TypeVar("T")
C = TypeVar("C", bound=type)

_NOTHING: Mapping[str, Any] = MappingProxyType({})

#: What ``end_epoch`` may be: ``never``: only -1; ``open``: -1, or from ``start_epoch`` on; ``from_start``: from
#: ``start_epoch`` on; ``after_start``: later than ``start_epoch``; ``run``: the same, and -1 is the last epoch of the
#: run (the latest end of the other modifiers); ``ignored``: the modifier acts once.
EndRule: TypeAlias = Literal["never", "open", "from_start", "after_start", "run", "ignored"]


@dataclass(frozen=True, slots=True)
class RecipeTag:
    """How a SparseML recipe writes a component: the tag, and what its properties become.

    A class that is a modifier says so where it is registered. ``recipe_tag="OBSPruningModifier"`` alone is enough for a
    pruner whose constructor takes the recipe's names: ``start_epoch``, ``end_epoch`` and ``update_frequency`` (all must
    be given) become the policy's window, ``params`` the constructor's ``weights``, ``leave_enabled`` an argument of the
    pruning policy, and every other property goes to the constructor argument of the same name, whose type and default
    hold. Anything else is said here::

        @EXTENSIONS.register(
            "SetLearningRate",
            recipe_tag=RecipeTag(
                "SetLearningRateModifier", start_epoch=-1.0, ends="ignored", update_frequency=0.0, params=None
            ),
        )

    Times: ``start_epoch``, ``end_epoch`` and ``update_frequency`` are the defaults of these properties, None where a
    recipe must give one. ``fixed_frequency``: a recipe's own is ignored; -1 acts in every step, 0 only at start and
    end. The policy gets a window with ``trigger: step`` (see :class:`PolicyWindow`): ``on_update`` is called at the
    start and then every ``update_frequency`` epochs, ``on_window_end`` once, in the first step at or after
    ``end_epoch``, each after backward and before that optimizer step; minibatch hooks are called while the window is
    open.

    Names: ``params`` is the constructor argument that takes the parameters ``params`` names, already translated to our
    targets (``re:`` patterns match from the start, ``__ALL_PRUNABLE__`` has SparseML's meaning, a module's name stands
    for its weight); None: the modifier has no ``params``. ``default_params``: when a recipe gives none.
    ``renamed``: property -> constructor argument. ``spellings``: other spellings of properties, taken with a warning.
    ``strict``: the property that, where it is false, makes names that match nothing warnings instead of errors.
    ``ignored``: property -> why it is ignored (with a warning). ``policy_args``: property -> argument of the policy
    (below ``args`` in a schedule). ``fixed``: constructor arguments that the tag implies, ``{"scope": "global"}``;
    ``fixed_policy_args`` likewise. ``aliases``: other spellings of the tag, taken with a warning.

    What does not fit in such a table goes into two class methods of the component, both optional::

        @classmethod
        def from_recipe(cls, properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
            '''Constructor arguments from the properties that are left after times, params, renamed and fixed.

            ``properties`` are resolved plain values. Raise ArgumentError(argument=("final_sparsity",)) with the
            property's name for a wrong one; ``note("...")`` reports a leniency. Key "policy_args" of the result: a
            mapping for the policy.
            '''

        @classmethod
        def to_recipe(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
            '''The reverse, to write a schedule's definition as a recipe.'''

    Several classes may share a tag (``QuantizationModifier``): each then has a class method
    ``accepts_recipe(properties) -> bool``, and the first class that accepts is taken.
    """

    tag: str
    aliases: tuple[str, ...] = ()
    start_epoch: float | None = None
    end_epoch: float | None = None
    ends: EndRule = "open"
    update_frequency: float | None = None
    fixed_frequency: bool = False
    params: str | None = "weights"
    default_params: str | None = None
    renamed: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    spellings: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    ignored: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    strict: str | None = None
    policy_args: Mapping[str, str] | None = None
    fixed: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    fixed_policy_args: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class Registered(Generic[T]):
    """A registered class with the constructor arguments the library itself provides.

    ``injected`` names arguments that never appear in a schedule (``name``, ``model``, ``optimizer``): the loader passes
    them because they are declared here, not because a parameter happens to be called that. ``recipe_tags``: the
    modifiers of SparseML recipes that this class is; see :class:`RecipeTag`.
    """

    name: str
    cls: type[T]
    injected: frozenset[str]
    recipe_tags: tuple[RecipeTag, ...] = ()


class Registry(Generic[T]):
    """Names of one kind of component (``kind`` is the singular noun used in messages)."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, Registered[T]] = {}
        self._loaded = False

    def register(
        self,
        *names: str,
        injected: tuple[str, ...] = (),
        recipe_tag: str | RecipeTag | tuple[str | RecipeTag, ...] = (),
    ) -> Callable[[C], C]:
        """Class decorator: ``@PRUNERS.register("MagnitudeParameterPruner", injected=("name",))``.

        Several names make aliases. ``recipe_tag`` makes the class a modifier of recipes too (:class:`RecipeTag`); a
        tuple gives it several tags, and the first name is what a translated recipe writes. Raises
        :class:`ArgumentError` when another class already has a name.
        """
        if not names:
            raise ArgumentError(f"{self.kind}: register() needs at least one name")
        given = recipe_tag if isinstance(recipe_tag, tuple) else (recipe_tag,)
        tags = tuple(RecipeTag(tag) if isinstance(tag, str) else tag for tag in given)

        def decorate(cls: C) -> C:
            for position, name in enumerate(names):
                known = self._entries.get(name)
                if known is not None and known.cls is not cls and known.cls.__qualname__ != cls.__qualname__:
                    raise ArgumentError(f"{self.kind} {name!r} is already registered by {known.cls.__module__}")
                self._entries[name] = Registered(name, cls, frozenset(injected), () if position else tags)
            return cls

        return decorate

    def get(self, name: str) -> Registered[T]:
        """The entry called ``name``; raises :class:`ArgumentError` with the nearest names."""
        self._load()
        try:
            return self._entries[name]
        except KeyError:
            raise ArgumentError(f"unknown {self.kind} class {name!r}. {did_you_mean(name, self.names())}") from None

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[Registered[T]]:
        return iter([self.get(name) for name in self.names()])

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        for point in entry_points(group=PLUGIN_GROUP):
            _load_plugin(point)


#: Plugins that could not be imported; every registry asks for all of them, and each is complained about once.
_broken: set[str] = set()


def _load_plugin(point: EntryPoint) -> None:
    """Import a plugin; what somebody else's package does wrong must not take the library away."""
    if point.value in _broken:
        return
    try:
        point.load()
    except Exception as error:
        _broken.add(point.value)
        package = point.dist.name if point.dist is not None else "an installed package"
        warnings.warn(
            f"the plugin {point.value} of {package} cannot be imported, so what it adds is missing "
            f"({type(error).__name__}: {error}): mend or uninstall {package}",
            RuntimeWarning,
            stacklevel=2,
        )
