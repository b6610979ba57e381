"""What the documentation shows is true: its examples run, and every public name is explained."""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
import io
import json
import re
import shlex
import tempfile
from importlib import import_module
from pathlib import Path

import pytest
import ugr_fast
from documents import README, ROOT, blocks, fenced

PACKAGE = Path(ugr_fast.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
SECTIONS = ("Args", "Returns", "Raises", "Example", "Source", "Attributes", "Yields")


def imported(module):
    pytest.importorskip("torch")
    if module.startswith("integrations/") and not module.endswith("/__init__"):
        pytest.importorskip(module.removeprefix("integrations/"), reason="the host is not installed")
    return import_module(f"ugr_fast/{module}".removesuffix("/__init__").replace("/", "."))


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # `testmod` would leave out a function's examples when another module's name shadows it; a finder sees them all
    found = doctest.DocTestFinder(exclude_empty=True).find(imported(module))
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    report = []
    for example in found:
        runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


def public(module):
    """Public functions, classes and methods of a module with their paths, from its source."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from (
                    (f"{node.name}.{inner.name}", inner)
                    for inner in node.body
                    if isinstance(inner, kinds) and not inner.name.startswith("_")
                )


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_explained(module):
    assert ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8")))
    for name, node in public(module):
        text = ast.get_docstring(node)
        assert text, f"{module}.{name} has no docstring"
        first = text.splitlines()[0]
        assert first.endswith((".", ":", "::", "…")) or len(text.splitlines()) > 1, f"{module}.{name}: {first}"


@pytest.mark.parametrize("module", MODULES)
def test_sections_are_well_formed_and_name_real_arguments(module):
    for name, node in public(module):
        text = ast.get_docstring(node) or ""
        titles = re.findall(r"^(\w+):$", text, re.MULTILINE)
        assert set(titles) <= set(SECTIONS), f"{module}.{name}: {set(titles) - set(SECTIONS)}"
        assert len(set(titles)) == len(titles), f"{module}.{name}: a section comes twice"
        if isinstance(node, ast.FunctionDef) and "Args" in titles:
            section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)*)", text, re.MULTILINE)[1]
            explained = re.findall(r"^ {4}\**(\w+)", section, re.MULTILINE)
            arguments = node.args
            real = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            real += [a.arg for a in (arguments.vararg, arguments.kwarg) if a]
            assert explained == [a for a in real if a not in ("self", "cls")], f"{module}.{name}"


EXPLAINED = (
    "trie beam packing advantages rewards metrics recalibration abstention data sids decode losses team lora migrate"
)
EXPLAINED += " readout integrations/transformers"


@pytest.mark.parametrize("module", EXPLAINED.split())
def test_the_api_says_what_goes_in_and_what_comes_out(module):
    """The public surface: a function with arguments has Args or is one line long; one that refuses says so."""
    for name, node in public(module):
        if not isinstance(node, ast.FunctionDef):
            continue
        text = ast.get_docstring(node) or ""
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        arguments = [a.arg for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
        raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        if "property" in decorators or len(text.splitlines()) == 1:
            continue
        if len(arguments) > 2:
            assert "\nArgs:" in text, f"{module}.{name} does not explain its arguments"
        if raises and "." not in name:
            assert "\nRaises:" in text, f"{module}.{name} does not say what it raises"


def commands(code, start="ugr-fast"):
    """The arguments of every command of ours in a shell block."""
    found = re.findall(rf"^(?:{start}) (.+)$", code.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(command, comments=True) for command in found]


def test_blocks_are_found(tmp_path):
    (tmp_path / "a.md").write_text("# A\n```python\nx = 1\n```\n<!-- skip: slow -->\n```python\ny\n```\n```\nno\n```\n")
    assert list(blocks(tmp_path / "a.md")) == [(3, None, "x = 1\n"), (7, "slow", "y\n")]


FOUND = list(blocks(README))


@pytest.mark.skipif(not FOUND, reason="the README holds no ```python block")
@pytest.mark.parametrize("block", FOUND or [None], ids=lambda block: f"line-{block[0]}" if block else "none")
def test_readme_blocks_run(block, tmp_path, monkeypatch):
    line, reason, code = block
    if reason:
        pytest.skip(reason)
    for package in re.findall(r"\b(torch|transformers|pyarrow|trl)\b", code):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    compiled = compile("\n" * (line - 1) + code, README.name, "exec")  # errors name the line of the README
    exec(compiled, {"__name__": "__main__"})


def test_the_readme_names_real_commands():
    cli = pytest.importorskip("ugr_fast.cli")
    text = README.read_text(encoding="utf-8")
    shell = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    named = re.findall(r"`ugr-fast ([a-z]+)", text) + re.findall(r"\bugr-fast ([a-z]+)", "\n".join(shell))
    assert set(named) <= set(cli.COMMANDS)


def test_configs_explain_every_setting():
    configs = import_module("ugr_fast.configs")
    tree = ast.parse(inspect.getsource(configs))
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert said, f"{node.name}.{field.target.id} has no docstring"


def test_every_reward_has_a_row():
    rewards = import_module("ugr_fast.rewards")
    for name in import_module("ugr_fast.configs").REWARDS:
        assert f"\n| `{name}` |" in rewards.__doc__, f"the table of rewards.py lacks `{name}`"
        assert hasattr(rewards, name)


# ---- the pages of docs/, and what lies beside the README

PAGES = sorted((ROOT / "docs").glob("*.md"))
BESIDE = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
GUIDES = ("index", "recipes")
"""Pages whose commands are run as well."""
LESS = "--num-beams 10 --threads 1 --device cpu".split()  # noqa: SIM905  (as one types it)
each_page = pytest.mark.parametrize("page", [README, *BESIDE, *PAGES], ids=lambda page: page.name)


def run_block(code, names, page, line):
    """As a reader pastes it; a block with `>>>` prints exactly what it says."""
    if not code.startswith(">>>"):
        exec(compile("\n" * (line - 1) + code, page.name, "exec"), names)
        return
    example = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line - 1)
    report = []
    outcome = doctest.DocTestRunner().run(example, out=report.append, clear_globs=False)
    assert not outcome.failed, "".join(report)
    names.update(example.globs)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # TRL's
@pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in GUIDES], ids=lambda page: page.name)
def test_pages_run(page, tmp_path, monkeypatch):
    """In order and in one namespace."""
    hosts = re.findall(r"^from (trl)\b", page.read_text(encoding="utf-8"), re.MULTILINE)
    for package in ("torch", "transformers", "pyarrow", *hosts):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = {"__name__": "__main__"}
    for line, reason, code in blocks(page):
        if not reason:
            run_block(code, names, page, line)


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder with what the guides start from; it becomes the current one."""
    for package in ("torch", "peft", "pyarrow", "faiss", "matplotlib"):
        pytest.importorskip(package)
    import pipeline
    import tiny
    from pyarrow import csv, parquet

    pipeline.write_events(tmp_path)
    items = (tmp_path / "items.csv").read_text().replace("Film 03 (1983)", "Heat (1995)")
    (tmp_path / "items.csv").write_text(items.replace("Film 04 (1984)", "Casino (1995)"))
    events = (tmp_path / "events.csv").read_text().replace("user,item,timestamp", "user_id,sku,ts")
    (tmp_path / "log.tsv").write_text(events.replace(",i", ",sku-").replace(",", "\t"))
    lines = ["sku,name,year,brand,category"]
    lines += [f"sku-{item},{'Heat' if item == 3 else f'Film {item}'},1995,b,c" for item in range(40)]
    (tmp_path / "catalogue.csv").write_text("\n".join(lines))
    parquet.write_table(csv.read_csv(tmp_path / "catalogue.csv"), tmp_path / "catalogue.parquet")
    tiny.language_model(tmp_path / "models" / "my-language-model")
    monkeypatch.chdir(tmp_path)
    return pipeline


@pytest.mark.parametrize("name", GUIDES)
def test_guides_run(name, workshop):
    """Code and commands in order, on smaller models than those that they name."""
    page = ROOT / "docs" / f"{name}.md"
    less = {"sids": ["--codes", "8"], "sft": workshop.SFT, "rl": workshop.RL, "confide": LESS, "eval": LESS}
    names = {"__name__": "__main__"}
    for line, reason, language, code in fenced(page):
        if reason or language not in ("python", "sh"):
            continue
        if language == "python":
            run_block(code, names, page, line)
            continue
        for words in commands(code):
            if words[0] != "report":  # whose figures take the time of all the rest, and have tests of their own
                outcome = workshop.call(*words, *less.get(words[0], ()))
                assert outcome.code == 0, f"{page.name}:{line}: {words}: {outcome.err}"


@each_page
def test_every_command_line_is_one(page):
    cli = pytest.importorskip("ugr_fast.cli")
    for _, _, language, code in fenced(page):
        if language in ("bash", "sh", "console"):
            for words in commands(code, start=r"ugr-fast|accelerate launch .+ugr_fast\.cli"):
                assert callable(cli._parse(words))


@each_page
def test_named_tests_exist(page):
    known = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        known |= {path.name, *re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)}
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`(?:tests/)?(test_\w+\.py)?(?:::)?(test_\w+)?`", text)
    assert {name for pair in named for name in pair if name} <= known


@each_page
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
        path = page.parent / target if target else page
        assert path.exists(), target
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M) if anchor else []
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, anchor


def test_the_notebook_prints_what_it_holds(tmp_path, monkeypatch):
    """Its cells in order, as Jupyter runs them; the figure is drawn, not compared."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    notebook = json.loads((ROOT / "docs" / "start.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("".join(cell["source"]), f"start.ipynb, cell {cell['id']}", "exec"), names)
        assert out.getvalue() == "".join(
            "".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream"
        )
        drawn = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        assert len(drawn) == len(pyplot.get_fignums())
        pyplot.close("all")
