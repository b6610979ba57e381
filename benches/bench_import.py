"""What an import costs, in fresh processes, beside those that one would otherwise wait for.

    python benches/bench_import.py

Medians of whole processes, taken in turns; "more than Python" is what is left without the bare interpreter.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec

from timing import medians_in_turns, table_head, table_row

CASES = {
    "Python alone": "pass",
    "import numpy": "import numpy",
    "import ugr_fast": "import ugr_fast",
    "ugr-fast --version": "from ugr_fast.cli import main; main(['--version'])",
    "ugr-fast rl --help": "from ugr_fast.cli import main; main(['rl', '--help'])",
    "import torch": "import torch",
}


def run(code: str) -> None:
    """Run `code` in a fresh process that finds its modules compiled, as installed ones are."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11, help="processes of each kind (default: 11)")
    options = parser.parse_args()
    cases = {name: code for name, code in CASES.items() if "torch" not in code or find_spec("torch")}
    for code in cases.values():
        run(code)  # compiles, and brings the files into memory
    spent = medians_in_turns(options.repeats, *(lambda code=code: run(code) for code in cases.values()))
    print(table_head("", "ms", "more than Python, ms"))
    for name, seconds in zip(cases, spent, strict=True):
        print(table_row(name, 1e3 * seconds, 1e3 * (seconds - spent[0])))


if __name__ == "__main__":
    main()
