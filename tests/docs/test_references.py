"""The generated reference has everything: every registry, every name, every error, every option, every picture."""

from __future__ import annotations

import importlib
import re
import sys

import pytest
from docs_pages import ROOT, read_page

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def tools():
    """The generators of ``docs/`` by name."""
    sys.path.insert(0, str(DOCS))
    try:
        names = ("generate_registries", "generate_modifiers", "generate_command", "generate_errors", "draw_pictures")
        return {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(DOCS))


def text_of(page):
    return (DOCS / page).read_text(encoding="utf-8")


def test_every_registry_has_a_place(tools):
    registries = tools["generate_registries"]
    assert sorted(registries.every_registry()) == sorted(place.registry.kind for place in registries.PLACES)
    for place in registries.PLACES:
        module, name = place.where.split(":")
        assert getattr(importlib.import_module(module), name) is place.registry


def test_every_registered_name_has_a_section(tools):
    registries = tools["generate_registries"]
    for place in registries.PLACES:
        page, _, anchor = place.page.partition("#")
        text = text_of(page)
        if anchor:
            assert anchor in read_page(DOCS / page).anchors()
        for names in registries.registered_here(place.registry).values():
            assert any(re.search(rf"^###? {re.escape(name)}$", text, re.MULTILINE) for name in names), names
        assert (DOCS / place.how_to).is_file()


def test_every_modifier_of_a_recipe_has_a_section(tools):
    headings = re.findall(r"^## (\w+)$", text_of("recipe-modifiers.md"), re.MULTILINE)
    assert headings == list(tools["generate_modifiers"].modifiers())
    assert "MagnitudePruningModifier" in headings


def test_every_option_of_every_command_is_listed(tools):
    parsers = tools["generate_command"].parsers()
    sections = re.split(r"^###? ", text_of("reference-command.md"), flags=re.MULTILINE)
    told = {section.partition("\n")[0]: section for section in sections}
    for name, parser in parsers.items():
        for action in parser._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or f"`{option}" in told[name], f"{name} {option}"


def test_every_error_is_in_the_index(tools):
    errors = tools["generate_errors"]
    assert set(errors.every_error()) - set(errors.MEANINGS) == set()
    text = text_of("errors.md")
    assert all(f"`{name}`" in text for name in errors.every_error())


@pytest.mark.parametrize("name", ["ScheduleError", "GraphError", "CheckpointError", "ExportError"])
def test_the_most_common_errors_have_examples(tools, name):
    assert tools["generate_errors"].EXAMPLES[name]


def test_a_wrong_example_of_an_error_is_noticed(tools):
    errors = tools["generate_errors"]
    with pytest.raises(RuntimeError, match="raises nothing"):
        errors.message_of("GraphError", errors.Example("fine", "nothing to do", code="model(images)"))


def test_pictures_are_those_the_script_draws(tools):
    pictures = tools["draw_pictures"].PICTURES
    for name, draw in pictures.items():
        assert (DOCS / "pictures" / name).read_text(encoding="utf-8") == draw().svg(), "run docs/draw_pictures.py"
    shown = {path.name for path in (DOCS / "pictures").glob("*.svg")} - {"favicon.svg"}
    assert shown == set(pictures)


def test_every_picture_is_shown_with_words_for_those_who_cannot_see_it(tools):
    pages = "\n".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))
    for name in tools["draw_pictures"].PICTURES:
        assert re.search(rf"!\[[^\]]{{20,}}\]\(pictures/{re.escape(name)}\)", pages), name
