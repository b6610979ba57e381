"""The floors of the house: every module imports only what lies below it, and the light ones stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import ugr_fast

PACKAGE = Path(ugr_fast.__file__).parent
LAYERS = {
    0: "_core",
    1: "arrays files extras progress configs trie beam packing advantages rewards metrics recalibration abstention "
    "decisions data baselines evidence",
    2: "model engines readout decode device losses sids lora muon team migrate",
    3: "run confidence recommend",
    4: "sft rl confide evaluate",
    5: "report demo doctor cli "
    "integrations.transformers integrations.trl integrations.verl integrations.openrlhf integrations.vllm",
}
LAYER = {module: number for number, modules in LAYERS.items() for module in modules.split()}
HEAVY = {"torch", "transformers", "pyarrow", "faiss", "matplotlib", "vector_quantize_pytorch"}
LIGHT = [module for module, number in LAYER.items() if number == 1]


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(node):
    """Names of all that is imported below `node`, inside functions too, but for types alone."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"a relative import of {child.module}"
            names = [f"{child.module}.{alias.name}" for alias in child.names]
            yield from names if child.module in ("ugr_fast", "ugr_fast.report") else [child.module]
        yield from imports(child)


def inner_imports(path):
    """Modules of the package that the module at `path` imports."""
    found = {name.split(".")[1] for name in imports(ast.parse(path.read_text("utf-8"))) if name.startswith("ugr_fast.")}
    assert found <= LAYER.keys(), f"{path.name} imports {found - LAYER.keys()}, which no layer holds"
    return found


def test_every_module_has_a_layer():
    for name in map(name_of, modules()):
        assert name in LAYER or name.split(".")[0] in LAYER, name


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_downward(path):
    own = LAYER.get(name_of(path), 5)
    for module in inner_imports(path):
        assert LAYER[module] <= own, f"{path.name} (layer {own}) imports {module} (layer {LAYER[module]})"


def test_no_circles():
    graph = {name_of(path): inner_imports(path) for path in modules()}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", ["sft", "rl", "confide", "evaluate"])
def test_jobs_do_not_know_each_other(module):
    assert not inner_imports(PACKAGE / f"{module}.py") & {"sft", "rl", "confide", "evaluate"}


def test_the_report_reads_files_only():
    for path in (PACKAGE / "report").glob("*.py"):
        assert not [module for module in inner_imports(path) if LAYER[module] in (2, 3, 4)]


ROOMS = [
    *("shape", "read", "tables", "figures", "blocks"),
    *("comparison", "training", "confidence", "decisions", "users", "settings"),
    *("page", "__init__"),
]


def test_the_rooms_of_the_report_stand_in_a_row():
    assert {path.stem for path in (PACKAGE / "report").glob("*.py")} == set(ROOMS)
    for number, room in enumerate(ROOMS):
        found = imports(ast.parse((PACKAGE / "report" / f"{room}.py").read_text("utf-8")))
        inner = {name.split(".")[2] for name in found if name.startswith("ugr_fast.report.")}
        assert inner <= {*ROOMS[:number]}, f"report/{room}.py imports {inner - {*ROOMS[:number]}}"


def test_an_integration_uses_the_parts_and_no_job():
    for path in (PACKAGE / "integrations").glob("*.py"):
        assert not [module for module in inner_imports(path) if LAYER[module] > 2], path.name


def test_nobody_imports_the_top():
    for path in modules():
        top = inner_imports(path) & {"cli", "demo", "doctor", "report", "integrations"}
        allowed = {"cli": {"demo", "doctor", "report"}, "demo": {"report"}, "report": {"report"}}.get(
            name_of(path).split(".")[0], set()
        )
        assert top <= allowed, f"{path.name} imports {top - allowed}"


def loaded(code):
    """Which of the heavy packages a fresh interpreter has loaded after `code`, in one process."""
    code = f"{code}\nimport sys; print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stderr.splitlines()[-1]


def test_light_modules_stay_light():
    assert loaded("\n".join(["import ugr_fast", *(f"import ugr_fast.{module}" for module in LIGHT)])) == "[]"


def test_help_and_refusals_come_at_once():
    calls = [["--help"], ["sft", "--help"], ["rl", "--help"], ["--version"], ["rl"], ["fly"]]
    code = f"""
from ugr_fast.cli import main
for arguments in {calls!r}:
    try:
        main(arguments)
    except SystemExit:
        pass
"""
    assert loaded(code) == "[]"
