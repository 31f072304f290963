"""The documentation is run: Python and YAML fragments, links, command lines, and the generated pages."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import logging
import re
import shlex
import socket
import sys
import warnings

import pytest
import torch
import yaml
from docs_pages import ROOT, following, pages

import distiller_ng as distiller
from distiller_ng.apputils import close_pylogger
from distiller_ng.apputils.datasets import DATASETS
from distiller_ng.apputils.image_classifier import init_classifier_compression_arg_parser
from distiller_ng.checkpoint import TRANSFORMS
from distiller_ng.cli.base import COMMANDS
from distiller_ng.config import check_schedule
from distiller_ng.config.frontends.base import FRONTENDS
from distiller_ng.config.kinds import KINDS
from distiller_ng.data_loggers.observers.base import OBSERVERS
from distiller_ng.errors import ScheduleError, ScheduleWarning
from distiller_ng.graph.walker import RULES
from distiller_ng.knowledge_distillation import DISTILLATION_LOSSES
from distiller_ng.knowledge_distillation.distiller import DISTILLERS
from distiller_ng.learning_rate import LR_SCHEDULERS
from distiller_ng.models import _zoo, create_model, factory
from distiller_ng.ops import dataset_shapes
from distiller_ng.ops.clipping import CLIPPINGS
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.pruning.base import PRUNERS
from distiller_ng.pruning.importance import IMPORTANCES
from distiller_ng.pruning.sparsity_schedules import SPARSITY_SCHEDULES, as_schedule
from distiller_ng.quantization.base import QUANTIZERS
from distiller_ng.quantization.exporters import EXPORTERS
from distiller_ng.regularization import REGULARIZERS

REGISTRIES = (
    CLIPPINGS,
    COMMANDS,
    DATASETS,
    DISTILLATION_LOSSES,
    DISTILLERS,
    EXPORTERS,
    EXTENSIONS,
    FRONTENDS,
    IMPORTANCES,
    LR_SCHEDULERS,
    OBSERVERS,
    PRUNERS,
    QUANTIZERS,
    REGULARIZERS,
    SPARSITY_SCHEDULES,
    TRANSFORMS,
)
ALL = pages()
RUN_HERE = [page for page in ALL if not page.is_tutorial]  # test_tutorials.py follows the others
SCHEDULES = [f for page in RUN_HERE for f in page.fragments if f.language == "yaml"]


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """A working folder; what a page registers, seeds or logs is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for registry in REGISTRIES:
        registry.names()  # so that the folder is loaded before the copy is made
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    for table, name in ((factory, "_USER_MODELS"), (dataset_shapes, "_SHAPES"), (_zoo, "_ARCHITECTURES")):
        monkeypatch.setattr(table, name, dict(getattr(table, name)))
    for name, value in torchrun_environment().items():
        monkeypatch.setenv(name, value)
    level = logging.getLogger("distiller_ng").level
    yield tmp_path
    for name in [name for name, rule in RULES.items() if rule.__module__ == "docs_page"]:
        del RULES[name]
    close_pylogger()
    logging.getLogger("distiller_ng").setLevel(level)


def torchrun_environment():
    """What torchrun tells a single process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def run_python(fragment, namespace):
    """Run one fragment, with tracebacks that point into the page, and return what it printed."""
    text = "\n" * (fragment.line - 1) + fragment.text
    code = compile(text, str(fragment.page), "exec", dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def same(wanted, got):
    return doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.is_slow else [])
        for page in RUN_HERE
        if any(f.language == "python" for f in page.fragments)
    ],
)
def test_python_fragments_run(page, sandbox, monkeypatch):
    module = type(sys)("docs_page")
    monkeypatch.setitem(sys.modules, "docs_page", module)
    for fragment in page.fragments:
        if "file" in fragment.directives:
            (sandbox / fragment.directives["file"]).write_text(fragment.text, encoding="utf-8")
        if fragment.language == "python":
            printed = run_python(fragment, module.__dict__)
            wanted = following(page, fragment, "output")
            if wanted is not None:
                assert same(wanted.text, printed), f"{fragment.place} printed:\n{printed}"


def load(fragment, folder, **options):
    """Load a YAML fragment on the model its page declares."""
    arch, *dataset = fragment.directives["model"].split()
    model = create_model(False, dataset[0] if dataset else "cifar10", arch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    path = folder / "schedule.yaml"
    path.write_text(fragment.text, encoding="utf-8")
    example = (torch.zeros(model.input_shape),)
    return distiller.file_config(model, optimizer, path.name, example_inputs=example, **options)


@pytest.mark.parametrize("fragment", [f for f in SCHEDULES if len(f.info) == 1], ids=lambda f: f.place)
def test_schedules_load(fragment, sandbox):
    assert "model" in fragment.directives, f"{fragment.place}: say <!-- model: ... --> before a whole schedule"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ScheduleWarning)
        scheduler = load(fragment, sandbox)
    assert scheduler.schedule
    assert bool(caught) == ("warns" in fragment.directives), [str(warning.message) for warning in caught]


@pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")
@pytest.mark.parametrize("fragment", [f for f in SCHEDULES if "partial" in f.info], ids=lambda f: f.place)
def test_partial_schedules_name_real_classes_and_arguments(fragment, sandbox):
    data = yaml.safe_load(fragment.text)
    if isinstance(data, dict) and set(data) == {"schedule"}:
        assert 0 <= as_schedule(data["schedule"]).target(1.0) <= 1
        return
    assert set(data) <= {*KINDS, "policies", "version"}
    model = create_model(False, "cifar10", "resnet20_cifar")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    distiller.dict_config(model, optimizer, data, on_unmatched="warn")


@pytest.mark.parametrize("fragment", [f for f in SCHEDULES if "unbound" in f.info], ids=lambda f: f.place)
def test_samples_for_other_models_are_sound(fragment, sandbox):
    (sandbox / "quantization_stats.yaml").write_text(
        "conv1: {output: {min: 0.0, max: 1.0, avg_min: 0.0, avg_max: 1.0}}"
    )
    check = check_schedule(fragment.text)
    assert check.is_sound, str(check)


@pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")
@pytest.mark.parametrize(
    "page", [p for p in RUN_HERE if any("wrong" in f.info for f in p.fragments)], ids=lambda p: p.name
)
def test_wrong_schedules_raise_what_the_page_says(page, sandbox):
    for fragment in page.fragments:
        if "wrong" in fragment.info:
            shown = following(page, fragment, "error")
            assert shown is not None, f"{fragment.place}: show the error in a text fragment behind it"
            with pytest.raises(ScheduleError) as caught:
                load(fragment, sandbox)
            assert same(shown.text, f"{caught.value}\n"), f"{fragment.place} raised:\n{caught.value}"


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_links_resolve(page):
    anchors = {other.path: other.anchors() for other in ALL}
    for link in page.links():
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        assert path.exists(), f"{page.name}: {link} leads nowhere"
        if anchor and path in anchors:
            assert anchor in anchors[path], f"{page.name}: {link} has no such heading"


def test_every_page_can_be_reached_from_the_readme():
    seen, waiting = set(), [ROOT / "README.md"]
    known = {page.path: page for page in ALL}
    while waiting:
        page = known[waiting.pop()]
        seen.add(page.path)
        reached = {(page.path.parent / link.partition("#")[0]).resolve() for link in page.links() if "://" not in link}
        waiting += [path for path in reached if path in known and path not in seen]
    assert sorted(set(known) - seen) == []


def command_lines():
    """``(place, words)`` of every command in a shell fragment; a backslash continues a line."""
    for page in ALL:
        for fragment in page.fragments:
            if fragment.language == "sh":
                for line in fragment.text.replace("\\\n", " ").splitlines():
                    if line and not line.startswith("#"):
                        yield fragment.place, shlex.split(line, comments=True)


def test_command_lines_of_the_application_parse():
    sys.path.insert(0, str(ROOT / "examples" / "classifier_compression"))
    spec = importlib.util.spec_from_file_location(
        "classifier_parser", ROOT / "examples" / "classifier_compression" / "parser.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parser = module.add_cmdline_args(init_classifier_compression_arg_parser(include_ptq_lapq_args=True))
    parsed = 0
    for place, words in command_lines():
        script = next((at for at, word in enumerate(words) if word.endswith("compress_classifier.py")), None)
        if script is not None:
            assert (ROOT / words[script]).is_file(), f"{place}: {words[script]}"
            args = parser.parse_args(words[script + 1 :])
            assert args.compress is None or (ROOT / args.compress).is_file(), f"{place}: {args.compress}"
            parsed += 1
    assert parsed


def test_make_targets_exist():
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if ":" in line}
    used = {words[1] for _, words in command_lines() if words[0] == "make"}
    assert {"demo", "test"} <= used <= targets


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return module


GENERATED = [page.path.name for page in ALL if "<!-- docs/generate.py" in page.path.read_text(encoding="utf-8")]


def test_the_generator_writes_what_says_so(generator):
    assert sorted(generator.PAGES) == sorted(GENERATED)


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_current(generator, name):
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == generator.page(name), "run 'python docs/generate.py'"


def test_every_argument_has_a_meaning(generator):
    for name in generator.PAGES:
        rows = [line for line in generator.page(name).splitlines() if line.startswith("| `")]
        assert [row for row in rows if row.endswith("|  |")] == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.policy_args], ids=lambda kind: kind.key)
def test_schedule_page_lists_every_policy_argument(kind):
    text = (ROOT / "docs" / "schedule.md").read_text(encoding="utf-8")
    noun = {"lr_scheduler": "learning-rate"}.get(kind.key, kind.key)
    section = text.partition(f"### Arguments of a {noun} policy")[2].partition("\n#")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.MULTILINE) == list(kind.policy_args)
