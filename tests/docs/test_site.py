"""The documentation as a site: it builds without a warning, shows every page, and loads nothing from the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from docs_pages import PAGES, ROOT
from markdown_it import MarkdownIt

pytestmark = pytest.mark.slow

DOCS = ROOT / "docs"
SITE_PAGES = [path for path in PAGES if path.is_relative_to(DOCS)]
#: Elements whose numbers must be those a code host shows: a list that one reader sees and the other does not is a bug.
COUNTED = ("table", "tr", "td", "li", "ul", "ol", "h1", "h2", "h3", "h4", "pre", "p", "em", "strong")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. A warning, a page that is not in the navigation, or a link that leads nowhere fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


class Elements(HTMLParser):
    """How often each tag occurs, and every address that a browser loads by itself."""

    def __init__(self, text):
        super().__init__()
        self.counts = dict.fromkeys(COUNTED, 0)
        self.loaded = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in self.counts:
            self.counts[tag] += 1
        values = dict(attrs)
        if tag != "a":
            self.loaded += [values[name] for name in ("src", "srcset", "data", "href") if values.get(name)]


def article(page):
    text = page.read_text(encoding="utf-8")
    return text[text.index("<article") : text.index("</article>")]


def html_of(site, path):
    return site / path.relative_to(DOCS).with_suffix(".html")


@pytest.mark.parametrize("path", SITE_PAGES, ids=lambda path: path.relative_to(DOCS).as_posix())
def test_every_page_reads_as_on_a_code_host(site, path):
    wanted = Elements(MarkdownIt("commonmark").enable("table").render(path.read_text(encoding="utf-8")))
    found = Elements(re.sub(r"<aside.*?</aside>", "", article(html_of(site, path)), flags=re.DOTALL))
    assert found.counts == wanted.counts


def test_every_page_is_in_the_navigation(site):
    front = (site / "index.html").read_text(encoding="utf-8")
    linked = set(re.findall(r'<a href="?([^" >]+)"? class="?md-nav__link', front))
    pages = {html_of(site, path).relative_to(site).as_posix() for path in SITE_PAGES}
    assert pages - linked - {"index.html"} == set()


def test_nothing_is_loaded_from_the_network(site):
    for page in site.rglob("*.html"):
        loaded = Elements(page.read_text(encoding="utf-8")).loaded
        assert [address for address in loaded if re.match(r"(https?:)?//", address)] == [], page
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//[^)]*", sheet.read_text(encoding="utf-8")) == [], (
            sheet
        )


def test_directives_of_the_tests_are_not_shown(site):
    for path in SITE_PAGES:
        text = article(html_of(site, path))
        assert not re.search(r"&lt;!--|<!-- (model|file|output|error|warns|slow)|yaml (partial|wrong)", text), path


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("index.html", "Start here"),
        ("schedule.html", "starting_epoch"),
        ("pruners.html", "AutomatedGradualPruner"),
        ("errors.html", "Did you mean"),
        ("reference-command.html", "--input-shape"),
        ("migrating-from-neural-compressor.html", "on_after_compute_loss"),
        ("faq.html", "same size"),
        ("source/distiller_ng/pruning/agp.py.html", "AutomatedGradualPruner"),
    ],
)
def test_key_pages_say_what_they_are_for(site, page, text):
    words = re.sub(r"<[^>]+>", "", article(site / page))
    assert text in re.sub(r"\s+", " ", words)


def test_search_knows_headings_and_works_from_disk(site):
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert "pruners.html#automatedgradualpruner" in index
    assert "source/distiller_ng" not in index
    assert (site / "iframe-worker.js").is_file()
