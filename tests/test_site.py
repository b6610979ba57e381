"""The documentation as a site: no warning as it is built, no link into nowhere, nothing loaded from another host."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_layers import LAYER, PACKAGE

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
REMOTE = re.compile(r"(?:url\(|@import)\s*['\"]?(?:\w+:)?//")


class Page(HTMLParser):
    """What a page loads, where it links to, and what in it can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.anchors = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if LOADS.get(tag) in found:
            self.loads.append(found[LOADS[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a fresh build."""
    pytest.importorskip("zensical")
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    for name in ("docs", "python"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not re.search("warning|griffe", said, re.IGNORECASE), said  # `--strict` lets docstrings pass
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site):
    """Every page but the one for those that are not there, which knows no place of its own."""
    return {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_is_built(site, pages):
    sources = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert {path.relative_to(site) for path in pages} == sources


def test_no_source_is_published(site):
    assert not [path.name for path in site.rglob("*.py")]


def test_links_lead_somewhere(pages):
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"\w+:", target):
                continue
            there = (path.parent / target).resolve() if target else path
            assert there.is_file(), f"{path.name}: {link}"
            assert there not in pages or anchor in pages[there].anchors, f"{path.name}: {link}"


def test_nothing_comes_from_another_host(site, pages):
    loads = [(path.name, load) for path, page in pages.items() for load in page.loads]
    assert loads
    assert not [(name, load) for name, load in loads if re.match(r"(?:\w+:)?//", load)]
    styled = [path for path in site.rglob("*") if path.suffix in (".css", ".html")]
    assert not [path.name for path in styled if REMOTE.search(path.read_text("utf-8"))]


def test_the_navigation_names_every_page():
    named = re.findall(r"^ +- (?:[^#:\n]+: )?([\w/.]+\.md)$", CONFIG, re.M)
    assert sorted(named) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_reference_goes_floor_by_floor():
    modules = re.findall(r"api/([\w.]+)\.md", CONFIG.partition("api/index.md")[2])
    assert set(modules) == LAYER.keys() - {"_core"}
    assert [LAYER[module] for module in modules] == sorted(LAYER[module] for module in modules)
    for module in modules:
        assert (DOCS / "api" / f"{module}.md").read_text("utf-8") == f"::: ugr_fast.{module}\n"


def test_the_reference_says_of_a_module_what_the_module_says():
    told = re.findall(r"^\| \[([\w.]+)\]\(\1\.md\) \| (.+) \|$", (DOCS / "api" / "index.md").read_text("utf-8"), re.M)
    assert {module for module, _ in told} == LAYER.keys() - {"_core"}
    for module, line in told:
        path = PACKAGE.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()[0] == f"{line}."
