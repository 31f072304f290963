"""Safe YAML reading: plain Python data plus the line and column of every key and value (layer 4).

Nothing in a file can run code or grow without bound. Booleans follow YAML 1.1 as Distiller's files do (``True``,
``yes``); numbers follow YAML 1.2, so that ``1e-5`` is a number and an unquoted ``2:4`` stays text.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, TypeAlias

import yaml

from distiller_ng.config.marks import Mark, Marks, Path, as_part
from distiller_ng.config.problems import Report, file_problem
from distiller_ng.errors import Problem, ScheduleError, did_you_mean, nearest

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_NODES",
    "AliasNode",
    "Converter",
    "Document",
    "compose",
    "load_document",
    "read_text",
]

MAX_BYTES = 1 << 20  # the largest schedule we know has 10 kB; beyond this the reader takes tens of seconds
MAX_DEPTH = 40
MAX_NODES = 100_000  # after aliases are expanded

_STANDARD = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+
    |\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
_INT = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|0|[1-9][0-9_]*)$")
_BINARY_STARTS = {b"PK\x03\x04": "a zip archive, such as a PyTorch checkpoint", b"\x80": "a pickle file"}
_NumberRules: TypeAlias = list[tuple[str, "re.Pattern[str]"]]


@dataclass(slots=True)
class Document:
    """One YAML document: its data, where everything stands, and what was odd about the text.

    ``tags`` lists the ``!Tags`` found; their values are read as if untagged and each is a problem.
    """

    data: Any
    marks: Marks
    tags: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def read_text(filename: str | os.PathLike[str], source: str) -> str:
    """The text of a schedule file (UTF-8, or UTF-16 with its byte-order mark).

    Raises :class:`ScheduleError` for a file that is missing, no regular file, too large or no text. A missing file's
    error is a ``FileNotFoundError`` too.
    """
    path = FilePath(filename)
    try:
        if path.is_dir():
            raise file_problem(source, "this is a folder, not a schedule file")
        if path.exists() and not path.is_file():
            raise file_problem(source, "this is not a regular file")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _missing(path, source) from None
    except ScheduleError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise file_problem(source, f"the file cannot be read: {reason}") from None
    if len(raw) > MAX_BYTES:
        raise file_problem(source, f"the file has more than {MAX_BYTES >> 20} MiB: this is no schedule")
    return _decode(raw, source)


class MissingScheduleError(ScheduleError, FileNotFoundError):
    """The schedule file does not exist."""


def _missing(path: FilePath, source: str) -> MissingScheduleError:
    folder = path.parent
    names = sorted(p.name for p in folder.iterdir() if p.suffix == path.suffix) if folder.is_dir() else []
    from_here = "" if path.is_absolute() else f" (looked from {FilePath.cwd()})"
    hint = "" if folder.is_dir() else f"; there is no folder {str(folder)!r}"
    return MissingScheduleError(
        file_problem(source, f"file not found{hint}{from_here}{_similar(path, names)}").problems
    )


def _similar(path: FilePath, names: list[str]) -> str:
    close = nearest(path.name, names)
    return f". Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def _decode(raw: bytes, source: str) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    else:
        encoding = "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        for start, what in _BINARY_STARTS.items():
            if raw.startswith(start):
                raise file_problem(source, f"this is {what}, not a schedule") from None
        before = raw[: error.start]
        mark = Mark(before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1)
        raise file_problem(source, f"not {encoding[:6].upper().rstrip('-')} text: {error.reason}", mark) from None


class AliasNode(yaml.Node):
    """``*name``: where it stands, and the node it stands for."""

    def __init__(self, target: yaml.Node, start_mark: Any) -> None:
        super().__init__(target.tag, target.value, start_mark, start_mark)
        self.target = target


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader up to the node graph, with a limit on nesting, and YAML 1.2 numbers."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            if event.anchor not in self.anchors:
                message = f"undefined alias {event.anchor!r}. {did_you_mean(event.anchor, self.anchors)}"
                raise yaml.MarkedYAMLError(problem=message, problem_mark=event.start_mark)
            target = super().compose_node(parent, index)
            return None if target is None else AliasNode(target, event.start_mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels of nesting", problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _number_rules() -> dict[str, _NumberRules]:
    """SafeLoader's implicit types without its numbers and dates, and with ours."""
    replaced = {_STANDARD + kind for kind in ("int", "float", "timestamp")}
    rules: dict[str, _NumberRules] = {
        first: [(tag, pattern) for tag, pattern in known if tag not in replaced]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+.0123456789":
        rules.setdefault(first, []).extend([(_STANDARD + "float", _FLOAT), (_STANDARD + "int", _INT)])
    return rules


_Loader.yaml_implicit_resolvers = _number_rules()


def load_document(text: str, source: str) -> Document:
    """Parse one YAML document.

    Raises :class:`ScheduleError` for text that is no YAML, with the line and column of the mistake. Duplicate keys are
    warnings: the last one wins.

    >>> load_document("a: 1e-5\\nb: [x, 2:4]", "demo").data
    {'a': 1e-05, 'b': ['x', '2:4']}
    """
    return Converter(*compose(text, source), source).document()


def compose(text: str, source: str) -> tuple[_Loader, yaml.Node | None]:
    """The node graph of one YAML document and its loader; raises :class:`ScheduleError` for text that is no YAML."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        raise file_problem(
            source, f"character {error.character!r} is not allowed in YAML", _mark_at(text, error)
        ) from None
    except yaml.MarkedYAMLError as error:
        raise file_problem(source, _syntax_message(error), _mark(error.problem_mark or error.context_mark)) from None
    return loader, node


def _mark(mark: Any) -> Mark:
    return Mark(1, 1) if mark is None else Mark(mark.line + 1, mark.column + 1)


def _mark_at(text: str, error: yaml.reader.ReaderError) -> Mark:
    before = text[: error.position]
    return Mark(before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1)


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    message = f"not valid YAML: {error.problem or error.context}"
    if error.problem and error.context:
        message += f" ({error.context})"
    if "\\t" in str(error.problem):
        message += ". YAML is indented with spaces, not tabs"
    if "single document" in str(error.context):
        message = "a schedule is one YAML document, but a second one begins here ('---')"
    return message


class Converter:
    """Turns a node graph into data and marks."""

    def __init__(self, loader: _Loader, node: yaml.Node | None, source: str) -> None:
        self._loader = loader
        self._root = node
        self._source = source
        self._keys: dict[Path, Mark] = {}
        self._values: dict[Path, Mark] = {}
        self._report = Report(source, Marks(self._keys, self._values, Mark(1, 1)))
        self._tags: list[str] = []
        self._nodes = 0

    def document(self) -> Document:
        """The data of the whole document."""
        data = None if self._root is None else self._convert(self._root, (), 0)
        report = self._report
        return Document(data, report.marks, self._tags, report.problems, report.warnings)

    def _convert(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise file_problem(
                self._source,
                f"the document grows beyond {MAX_NODES} values or {MAX_DEPTH} levels when its aliases are expanded",
                _mark(node.start_mark),
            )
        if isinstance(node, AliasNode):
            return self._alias(node, path, depth)
        is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
        if not is_block or path not in self._keys:
            self._values[path] = _mark(node.start_mark)
        if isinstance(node, yaml.MappingNode):
            self._check_tag(node, path, "map")
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, path, "seq")
            return [self._convert(item, (*path, at), depth + 1) for at, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _alias(self, node: AliasNode, path: Path, depth: int) -> Any:
        data = self._convert(node.target, path, depth)
        self._values[path] = _mark(node.start_mark)
        return data

    def _check_tag(self, node: yaml.Node, path: Path, *expected: str) -> None:
        if node.tag not in [_STANDARD + kind for kind in expected]:
            self._tags.append(node.tag)
            self._report.error(path, f"the tag {_short(node.tag)!r} has no meaning in a schedule")

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        kind = node.tag.removeprefix(_STANDARD)
        self._check_tag(node, path, "null", "bool", "int", "float", "str")
        if kind not in ("null", "bool", "int", "float"):
            return node.value
        try:
            return getattr(self._loader, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError, IndexError, yaml.YAMLError):  # e.g. '!!int abc', or more digits than int() takes
            self._report.error(path, f"{node.value[:40]!r} is not a valid {kind}")
            return None

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            mark = _mark(key_node.start_mark)
            if key_node.tag == _STANDARD + "merge":
                merged = self._merge(value_node, path, depth) | merged
                continue
            key = self._key(key_node, path)
            key_path = (*path, as_part(key))
            if key in result:
                self._keys[key_path] = mark
                self._forget(key_path)
                self._report.warn(key_path, f"the key {key!r} is repeated; this last one counts", at_key=True)
            self._keys[key_path] = mark
            result[key] = self._convert(value_node, key_path, depth + 1)
        return {key: value for key, value in merged.items() if key not in result} | result

    def _merge(self, node: yaml.Node, path: Path, depth: int) -> dict[Any, Any]:
        """The mapping behind a ``<<`` key: ``<<: *base`` or ``<<: [*first, *second]`` (the first wins)."""
        node = node.target if isinstance(node, AliasNode) else node
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[Any, Any] = {}
        for part in [part.target if isinstance(part, AliasNode) else part for part in parts]:
            if isinstance(part, yaml.MappingNode):
                result = self._convert(part, path, depth + 1) | result
            else:
                self._report.error(path, "'<<' merges mappings only, e.g. '<<: *base'")
        return result

    def _key(self, node: yaml.Node, path: Path) -> Hashable:
        node = node.target if isinstance(node, AliasNode) else node
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)  # type: ignore[no-any-return]
        mark = _mark(node.start_mark)
        placeholder = f"<key at {mark.line}:{mark.column}>"
        self._keys[(*path, placeholder)] = mark
        self._report.error((*path, placeholder), "a list or mapping cannot be a key")
        return placeholder

    def _forget(self, path: Path) -> None:
        """Drop marks below a key that is defined again."""
        for table in (self._keys, self._values):
            for stale in [p for p in table if p[: len(path)] == path and (table is self._values or p != path)]:
                del table[stale]


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(_STANDARD) if tag.startswith(_STANDARD) else tag
