"""What there is to work with: versions, extras, vector instructions, threads, devices, and what is wrong with them.

What should be installed is read from the installed package itself, so pyproject.toml alone says it.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from typing import NamedTuple

from ugr_fast import _core
from ugr_fast.extras import EXTRAS

BASE = "base"  # what is no extra

_REQUIREMENT = re.compile(r"(?P<name>[\w-]+)>=(?P<least>[\d.]+)(?: *; *extra == ['\"](?P<extra>\w+)['\"])?")


class Requirement(NamedTuple):
    """A package that ugr-fast asks for.

    Attributes:
        name: as the registry knows it.
        least: oldest version that will do.
        part: the extra that brings it, or `BASE`.
    """

    name: str
    least: str
    part: str


@dataclass(frozen=True)
class Findings:
    """What `examine` found.

    Attributes:
        versions: of ugr-fast and Python, and the operating system.
        instructions: vector instructions that the kernels use: v3 (AVX2 and FMA), neon or scalar.
        threads: cores that this process may use, and threads of torch if it is there.
        devices: where models can run; empty without torch.
        packages: version by package, by the part of ugr-fast that asks for it; None for one that is not installed.
        install: the command that completes each incomplete part.
        problems: what will not work, with the remedy.
    """

    versions: dict[str, str]
    instructions: str
    threads: dict[str, int]
    devices: list[str]
    packages: dict[str, dict[str, str | None]]
    install: dict[str, str]
    problems: list[str]


def examine() -> Findings:
    """Look at this installation and this machine."""
    required = requirements(metadata.requires("ugr-fast") or [])
    packages: dict[str, dict[str, str | None]] = {part: {} for part in (BASE, *EXTRAS)}
    for package in required:
        packages[package.part][package.name] = _installed(package.name)
    incomplete = [part for part, versions in packages.items() if None in versions.values()]
    threads, devices, problems = _torch()
    return Findings(
        versions={
            "ugr-fast": metadata.version("ugr-fast"),
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        instructions=_core.simd(),
        threads={"cores": _cores(), **threads},
        devices=devices,
        packages=packages,
        install={part: f"pip install '{'ugr-fast' if part == BASE else f'ugr-fast[{part}]'}'" for part in incomplete},
        problems=[*_outdated(required, packages), *problems],
    )


def requirements(lines: list[str]) -> list[Requirement]:
    """Read the requirements of ugr-fast and of its `EXTRAS`; extras for work on ugr-fast itself are left out.

    Example:
        >>> requirements(["numpy>=1.26", "torch>=2.9 ; extra == 'train'", "ugr-fast[data] ; extra == 'train'"])
        [Requirement(name='numpy', least='1.26', part='base'), Requirement(name='torch', least='2.9', part='train')]
    """
    found = [match for match in map(_REQUIREMENT.fullmatch, lines) if match]
    read = [Requirement(match["name"], match["least"], match["extra"] or BASE) for match in found]
    return [package for package in read if package.part in (BASE, *EXTRAS)]


def text(found: Findings) -> str:
    """Return the findings for a person to read, a line each."""
    versions = found.versions
    threads = [f"{name} {count}" for name, count in found.threads.items()]
    lines = [
        f"ugr-fast {versions['ugr-fast']}, Python {versions['python']}, {versions['platform']}",
        f"kernels: {found.instructions} instructions",
        f"threads: {', '.join(threads)}",
        f"devices: {', '.join(found.devices) or 'none without torch'}",
    ]
    for part, packages in found.packages.items():
        shown = ", ".join(f"{name} {version or 'missing'}" for name, version in packages.items())
        lines.append(f"{part}: {shown}" + (f"; {found.install[part]}" if part in found.install else ""))
    return "\n".join(lines)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    """Cores that this process may use, which a container or `taskset` may have cut."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch() -> tuple[dict[str, int], list[str], list[str]]:
    """Threads and devices of torch, and what keeps it from loading."""
    try:
        import torch
    except ModuleNotFoundError:
        return {}, [], []  # an extra, and told as one
    except (ImportError, OSError) as error:
        return {}, [], [f"torch does not load ({' '.join(str(error).split())}); install it again"]
    names = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {"torch": torch.get_num_threads()}, ["cpu", *names], []


def _outdated(required: list[Requirement], packages: dict[str, dict[str, str | None]]) -> list[str]:
    """What is installed and too old, and what ugr-fast cannot do without."""
    problems = []
    for name, least, part in required:
        version = packages[part][name]
        if version is None and part == BASE:
            problems.append(f"{name} is missing: pip install '{name}>={least}'")
        elif version is not None and _numbers(version) < _numbers(least):
            problems.append(f"{name} {version} is older than {least}: pip install '{name}>={least}'")
    return problems


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version: (2, 15, 0) of 2.15.0+cpu."""
    release = re.match(r"[\d.]+", version)
    return tuple(int(number) for number in release[0].strip(".").split(".")) if release else ()
