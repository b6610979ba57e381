"""A run directory: what was asked for, on what, what happened, and checkpoints to go on from.

::

    RUN/
      config.json         command, settings, environment (seed, threads, device, versions)
      vocabulary.json     where tokens live
      codes.safetensors   the semantic ID of every item
      items.json          titles and original ids
      SHA256SUMS          of the four files above that do not change
      checkpoints/
        step-00000120/    model/ (config.json, model.safetensors: adapters are added in), state.safetensors, state.json,
                          SHA256SUMS
      metrics.jsonl       one line per logged step
      tensorboard/        the same for TensorBoard, where that is installed
      best.json           the step that was best on valid, and its metrics
      readout.safetensors what `ugr-fast confide` fitted to the best checkpoint
      eval-test.json      what `ugr-fast eval` found; confidence.json and outcomes-*.safetensors: see `confidence`

Repeating a command on its own run directory resumes it; a directory that holds another run is refused. Checkpoints are
whole or absent, and an altered file is refused. Nothing is pickled. Of several processes that share a run, the main one
writes and all read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ugr_fast import data
from ugr_fast.configs import check
from ugr_fast.files import (
    CHECKSUMS,
    check_checksums,
    check_place,
    fingerprint,
    finite,
    is_leftover,
    new_file,
    new_folder,
    read_json,
    read_json_lines,
    read_object,
    remove_folder,
    remove_leftovers,
    write_checksums,
    write_json,
    writing,
)
from ugr_fast.lora import is_adapted, merged
from ugr_fast.model import Catalogue, SidVocabulary, token_tables
from ugr_fast.muon import Muon
from ugr_fast.progress import say
from ugr_fast.readout import Readout, read_readout, write_readout
from ugr_fast.team import ALONE, Team

Schedule = Literal["cosine", "linear", "constant"]
READOUT = "readout.safetensors"
_CATALOGUE = ("vocabulary.json", "codes.safetensors", "items.json")


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (libraries that draw from the global generator)
    torch.manual_seed(seed)


def choose_device(device: str) -> torch.device:
    """Return the torch device that "auto", "cpu", "cuda" or "cuda:1" names.

    "auto" and "cuda" give each of several processes on a machine its own GPU.

    Raises:
        ValueError: another name, or a GPU that is not there.
    """
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = "cuda" if device == "auto" else device
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise ValueError(f"`device` must be auto, cpu, cuda or cuda:NUMBER, got {device!r}")
    if int(number or own) >= torch.cuda.device_count():
        raise ValueError(f"`device` {device!r} is not available here; use cpu or auto")
    return torch.device("cuda", int(number or own))


def set_threads(num_threads: int) -> None:
    """Let torch use `num_threads` threads; 0 keeps its own choice."""
    if num_threads < 0:
        raise ValueError(f"`threads` must be 0 (torch's choice) or more, got {num_threads}")
    if num_threads:
        torch.set_num_threads(num_threads)


def environment(device: torch.device, team: Team, start: Path | None) -> dict[str, Any]:
    """Return what besides the settings may change a result: versions, device, and the model in folder `start`."""
    return {
        "ugr_fast": version("ugr-fast"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "start": None if start is None else fingerprint(start),
        "processes": team.size,
        "threads": torch.get_num_threads(),
    }


def _running_average(decay: float) -> Callable[..., None]:
    """Return how `AveragedModel` follows the weights: a plain mean at first, so that few updates are not lost."""

    @torch.no_grad()
    def follow(average: list[torch.Tensor], current: list[torch.Tensor], seen: torch.Tensor) -> None:
        keep = min(decay, float(seen / (seen + 1)))
        for mean, value in zip(average, current, strict=True):
            mean.lerp_(value, 1 - keep)

    return follow


@dataclass(frozen=True)
class Learner:
    """A model in training: its optimisers and, if wanted, the running average of its weights.

    Attributes:
        model: what the optimisers move.
        optimizers: AdamW and, for the matrices inside the layers, Muon.
        average: the average of `model` over updates; None for none.
        team: the processes whose gradients are summed.
    """

    model: Any
    optimizers: list[Optimizer]
    average: AveragedModel | None = None
    team: Team = ALONE

    @classmethod
    def make(
        cls,
        model: Any,
        lr: float,
        weight_decay: float,
        *,
        muon_lr: float = 0.0,
        average: float = 0.0,
        team: Team = ALONE,
    ) -> Learner:
        """Return a learner of `model`.

        Args:
            model: a causal language model.
            lr: peak learning rate of AdamW, which decays matrices and leaves vectors alone.
            weight_decay: of matrices.
            muon_lr: peak learning rate of Muon for the matrices inside the layers; 0 leaves them to AdamW.
            average: decay of the running average of weights, a plain mean until 1 / (1 - decay) updates; 0 keeps none.
            team: the processes that share the run.

        Source:
            Muon, arXiv 2502.16982; measured against AdamW in docs/results.md.
        """
        tables = {id(table) for table in token_tables(model)}
        trained = [p for p in model.parameters() if p.requires_grad]
        inner = [p for p in trained if muon_lr and p.ndim == 2 and id(p) not in tables]
        taken = {id(p) for p in inner}
        groups = [
            {"params": [p for p in trained if p.ndim > 1 and id(p) not in taken], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizers: list[Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))]
        if inner:
            optimizers.append(Muon(inner, lr=muon_lr, weight_decay=weight_decay, momentum=0.95))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["peak"] = group["lr"]
        averaged = AveragedModel(model, multi_avg_fn=_running_average(average)) if average else None
        return cls(model, optimizers, averaged, team)

    @property
    def used(self) -> Any:
        """The model to validate and keep: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def schedule(self, progress: float, shape: Schedule = "cosine") -> None:
        """Set learning rates for `progress` in [0, 1]: linear warm-up over 5%, then to 5% of each peak, or constant."""
        fall = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[shape]
        factor = min(1.0, (progress + 1e-4) / 0.05) * (0.05 + 0.95 * fall)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak"] * factor

    def descend(self, clip_grad: float) -> float:
        """Sum the processes' gradients, clip, take one step, clear them; return the norm before clipping."""
        self.team.sum_gradients(self.model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip_grad).item()
        if not math.isfinite(norm):
            raise ValueError(
                f"`lr` is too high: training diverged, its gradient has norm {norm}; lower it and start anew"
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return norm

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return by name what goes on beside the used model: optimisers, random generators, the weights averaged.

        All processes must call it, for the generators of each.
        """
        found = {"rng": self.team.whole(torch.get_rng_state()[None], self.team.size)}
        if self._gpu is not None:
            found["rng.cuda"] = self.team.whole(torch.cuda.get_rng_state(self._gpu)[None], self.team.size)
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                for name, value in values.items():
                    found[f"optimizer.{number}.{index}.{name}"] = torch.as_tensor(value).contiguous()
        if self.average is not None:
            found["average.count"] = self.average.n_averaged
        return found | {name: value.detach() for name, value in self._beside().items()}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up what `tensors` returned."""
        for number, optimizer in enumerate(self.optimizers):
            restored: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{number}."):
                    _, _, index, name = key.split(".", 3)
                    restored.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": restored})
        if self.average is not None:
            self.average.n_averaged.copy_(tensors["average.count"])
        with torch.no_grad():
            for name, value in self._beside().items():
                value.copy_(tensors[name])
        torch.set_rng_state(tensors["rng"][self.team.rank].clone())  # torch reads a view from its storage's start
        if self._gpu is not None:
            torch.cuda.set_rng_state(tensors["rng.cuda"][self.team.rank].clone(), self._gpu)

    def _beside(self) -> dict[str, torch.nn.Parameter]:
        """Return by name the trained weights that the saved model does not hold: it has adapters added in."""
        kept = {} if self.average is None and not is_adapted(self.model) else {"weights": self.model}
        if self.average is not None and is_adapted(self.model):
            kept["average"] = self.average.module
        return {
            f"{kind}.{name}": value
            for kind, model in kept.items()
            for name, value in model.named_parameters()
            if value.requires_grad or not is_adapted(self.model)
        }

    @property
    def _gpu(self) -> torch.device | None:
        device: torch.device = next(self.model.parameters()).device
        return device if device.type == "cuda" else None


class Run:
    """One run directory. Make it with `create` or open it with `open`."""

    def __init__(self, folder: Path, team: Team = ALONE) -> None:
        self.folder = folder
        self.team = team
        self._board: Any = None

    @classmethod
    def create(
        cls,
        folder: Path,
        command: str,
        settings: Any,
        device: torch.device,
        *,
        start: Path | None = None,
        team: Team = ALONE,
    ) -> Run:
        """Start a run, or take up the one that the same command and settings started.

        Args:
            folder: the run directory.
            command: "sft" or "rl".
            settings: their settings.
            device: what they train on.
            start: folder of the model that training starts from, None for one from scratch.
            team: the processes that share the run; all call this.

        Raises:
            ValueError: a setting is out of range.
            FileExistsError: the folder holds something else.
            OSError: it cannot be made or written.
        """
        check(settings)
        run = cls(Path(folder), team)
        config = {"command": command, "settings": _plain(settings), "environment": environment(device, team, start)}
        config = json.loads(json.dumps(config))
        with team.main_first():
            run._start(config)
        return run

    def _start(self, config: dict[str, Any]) -> None:
        folder = self.folder
        check_place(folder)
        if (folder / "config.json").is_file():
            self._check_same(config, Run.open(folder).config)
            return
        if folder.exists() and (not folder.is_dir() or any(not is_leftover(p) for p in folder.iterdir())):
            raise FileExistsError(f"`out` must be a new folder or a run to resume, and {folder} is neither")
        _make_folder(folder, config)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run to read it.

        Raises:
            FileNotFoundError: there is no run.
            ValueError: what describes it is truncated or altered.
        """
        run = cls(Path(folder))
        config = run.config
        kinds = {"command": str, "settings": dict, "environment": dict}
        if not isinstance(config, dict) or any(type(config.get(name)) is not kind for name, kind in kinds.items()):
            raise ValueError(f"{run.folder / 'config.json'} does not describe a run; name one that `ugr-fast sft` made")
        with _altered("make the run again"):
            check_checksums(run.folder)
        return run

    def _check_same(self, wanted: dict[str, Any], found: dict[str, Any]) -> None:
        for part in ("command", "settings", "environment"):
            if wanted[part] == found.get(part):
                continue
            before = found.get(part, {})
            names = (
                [key for key in wanted[part] if not isinstance(before, dict) or wanted[part][key] != before.get(key)]
                if isinstance(wanted[part], dict)
                else []
            )
            detail = ", ".join(f"{name} {before.get(name)!r} -> {wanted[part][name]!r}" for name in names)
            raise FileExistsError(
                f"`out` {self.folder} holds another run ({part}: {detail or before}); choose another `out`, "
                "or repeat the command that started it to resume"
            )

    @property
    def config(self) -> dict[str, Any]:
        """What `create` wrote."""
        return read_json(self.folder / "config.json", "ugr-fast sft")  # type: ignore[no-any-return]

    @property
    def history(self) -> int:
        """The longest history that the model was trained on.

        Raises:
            ValueError: the settings do not say.
        """
        found = self.config["settings"].get("history")
        if type(found) is not int or found < 1:
            raise ValueError(f"{self.folder / 'config.json'} must have a `history` of 1 or more, got {found!r}")
        return found

    # ------------------------------------------------------------------------------------------- catalogue

    def save_catalogue(self, vocabulary: SidVocabulary, codes: np.ndarray, titles: list[str], ids: list[str]) -> None:
        """Keep everything that turns items into tokens and back.

        Raises:
            FileExistsError: the run was started with another catalogue.
        """
        with self.team.main_first():
            self._save_catalogue(vocabulary, np.ascontiguousarray(codes, dtype=np.int32), titles, ids)

    def _save_catalogue(self, vocabulary: SidVocabulary, codes: np.ndarray, titles: list[str], ids: list[str]) -> None:
        if (self.folder / CHECKSUMS).exists():
            if not np.array_equal(codes, self.load_codes()) or (titles, ids) != self.load_items():
                raise FileExistsError(
                    f"`out` {self.folder} was started with other semantic IDs or items; choose another `out`"
                )
            return
        with new_file(self.folder / "vocabulary.json") as path:
            vocabulary.save(path)
        with new_file(self.folder / "codes.safetensors") as path:
            save_arrays({"codes": codes}, path)
        write_json(self.folder / "items.json", {"titles": titles, "ids": ids})
        write_checksums(self.folder, ("config.json", *_CATALOGUE))

    def load_catalogue(self) -> Catalogue:
        """Return the catalogue that `save_catalogue` kept.

        Raises:
            ValueError: one of its files is missing, truncated or altered.
        """
        codes, names = self.load_codes(), self.load_items()[1]
        if len(codes) != len(names):
            raise ValueError(
                f"{self.folder / 'items.json'} must name {len(codes)} items, those with codes, got {len(names)}; "
                "make the run again"
            )
        return Catalogue.build(self._vocabulary(), codes)

    def _vocabulary(self) -> SidVocabulary:
        path = self.folder / "vocabulary.json"
        try:
            return SidVocabulary.load(path)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is missing, truncated or altered ({error}); make the run again") from error

    def load_codes(self) -> np.ndarray:
        """Return the codes (num_items, L)."""
        path = self.folder / "codes.safetensors"
        try:
            codes = load_arrays(path)["codes"]
            if codes.dtype.kind != "i" or codes.ndim != 2:
                raise ValueError(f"`codes` must be whole numbers (num_items, L), got {codes.dtype} {codes.shape}")
            return codes.astype(np.int64)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is missing, truncated or altered ({error}); make the run again") from error

    def check_items(self, ids: list[str]) -> None:
        """Refuse a data folder whose items are not those that the run was trained on.

        Args:
            ids: original ids, by item number.

        Raises:
            ValueError: they differ in number or in any place.
        """
        known = self.load_items()[1]
        if len(ids) != len(known):
            raise ValueError(f"`data` has {len(ids)} items, and run {self.folder} was trained on {len(known)}")
        for item, (given, wanted) in enumerate(zip(ids, known, strict=True)):
            if given != wanted:
                raise ValueError(
                    f"`data` has {given!r} as item {item}, and run {self.folder} was trained on {wanted!r} there; "
                    "use the data folder of the run"
                )

    def load_items(self) -> tuple[list[str], list[str]]:
        """Return titles and original ids, by item number."""
        return data.load_names(self.folder)

    # --------------------------------------------------------------------------------------------- metrics

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl, and the same numbers to TensorBoard where that is installed."""
        if not self.team.is_main:
            return
        path = self.folder / "metrics.jsonl"
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(values)) + "\n")
        self._show(values)

    def _show(self, values: dict[str, Any]) -> None:
        """Add a line of metrics.jsonl to TensorBoard's files; the first one drops what an interrupted run had there."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        if self._board is None:
            self._board = SummaryWriter(self.folder / "tensorboard", purge_step=values["step"])
        for name, value in _scalars(values):
            self._board.add_scalar(name, value, values["step"])
        self._board.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; a last line that was cut off is dropped.

        Raises:
            ValueError: a line that `log` did not write.
        """
        path = self.folder / "metrics.jsonl"
        lines = read_json_lines(path)
        for number, line in enumerate(lines, start=1):
            if not isinstance(line.get("step"), int):
                raise ValueError(
                    f"{path} must have a `step` in every line, got {str(line)[:60]} in {number}; remove it"
                )
        return lines

    def _forget_after(self, step: int) -> None:
        """Drop metrics of steps that will run again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        with new_file(self.folder / "metrics.jsonl") as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    # ----------------------------------------------------------------------------------------- checkpoints

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint of `step` lies."""
        return self.folder / "checkpoints" / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        names = (path.name[5:] for path in (self.folder / "checkpoints").glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal())  # no copy that somebody made

    def save_checkpoint(self, step: int, learner: Learner, state: dict[str, Any], best: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all, and remove those that are neither the last nor the best.

        Args:
            step: optimiser steps so far.
            learner: its used model is saved in the format of transformers, the rest as tensors by name.
            state: JSON values that the loop needs to go on.
            best: the step that is best on valid so far, as "step", and its metrics.
        """
        tensors = learner.tensors()
        if self.team.is_main:
            if not self.checkpoint(step).exists():
                with new_folder(self.checkpoint(step)) as folder:
                    with _no_bars():
                        merged(learner.used).save_pretrained(folder / "model")
                    save_tensors(tensors, folder / "state.safetensors")
                    write_json(folder / "state.json", {**state, "step": step, "best": best})
                    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
                    write_checksums(folder, files)
            self._settle(best)
        self.team.wait()

    def _settle(self, best: dict[str, Any]) -> None:
        """Record the best step, and remove checkpoints that are neither the best nor the last."""
        write_json(self.folder / "best.json", best)
        for step in self.steps()[:-1]:
            if step != best["step"]:
                remove_folder(self.checkpoint(step))

    def resume(self, learner: Learner) -> dict[str, Any] | None:
        """Load the newest checkpoint into `learner` and return its state; None if there is none.

        Raises:
            ValueError: the checkpoint was truncated or altered.
        """
        if self.team.is_main:
            for folder in (self.folder, self.folder / "checkpoints"):
                remove_leftovers(folder)
        steps = self.steps()
        state = self._take_up(self.checkpoint(steps[-1]), learner) if steps else None
        self.team.wait()
        if self.team.is_main:
            self._forget_after(state["step"] if state else -1)
            if state:
                self._settle(state["best"])
            else:
                (self.folder / "best.json").unlink(missing_ok=True)
        self.team.wait()
        if state:
            say(f"going on from the checkpoint of step {state['step']}")
        return state

    def _take_up(self, folder: Path, learner: Learner) -> dict[str, Any]:
        """Load the checkpoint in `folder` into `learner` and return its state."""
        with _altered(f"remove {folder} to go on from what came before it"):
            check_checksums(folder)
            state = read_object(folder / "state.json", "ugr-fast sft", step=int, best=dict)
            if not isinstance(state["best"].get("step"), int):
                raise ValueError(f"{folder / 'state.json'} must have a best `step`, got {str(state['best'])[:60]}")
            tensors = load_tensors(folder / "state.safetensors")
            missing, unexpected = _load_weights(learner.used, folder / "model")
            learner.restore(tensors)
        if unexpected or any(key != "lm_head.weight" for key in missing):
            raise ValueError(f"checkpoint {folder} belongs to another model; remove it or choose another `out`")
        return state

    def best(self) -> dict[str, Any] | None:
        """Return the step that was best on valid, and its metrics; None before the first validation."""
        path = self.folder / "best.json"
        return read_object(path, "ugr-fast sft", step=int) if path.exists() else None

    def load_model(self, device: torch.device, which: str | int = "best") -> Any:
        """Load the model of the best checkpoint, the last one or that of a step, in eval mode.

        Raises:
            FileNotFoundError: the run has no checkpoint yet.
            ValueError: its files are truncated or altered.
        """
        folder = self.model_folder(which)
        with _altered(f"remove {folder.parent}, or repeat the command that made the run"):
            check_checksums(folder.parent)
        model = load_model(folder, device)
        rows, size = len(model.get_input_embeddings().weight), self._vocabulary().size
        if rows < size:
            raise ValueError(
                f"model {folder} must have an embedding for each of {size} tokens, got {rows}; make the run again"
            )
        return model

    def model_folder(self, which: str | int = "best") -> Path:
        """Return where the model of the best checkpoint, the last one or that of a step lies.

        Raises:
            FileNotFoundError: the run has no checkpoint yet.
        """
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"run {self.folder} has no checkpoint yet; let its training command finish")
        if isinstance(which, int):
            return self.checkpoint(which) / "model"
        best = self.best()
        step = best["step"] if which == "best" and best and best["step"] in steps else steps[-1]
        return self.checkpoint(step) / "model"

    def checkpoint_of(self, which: str = "best", *, readout: bool = True) -> dict[str, Any]:
        """Return what tells the best or the last checkpoint from every other.

        Args:
            which: "best" or "last".
            readout: also what tells its readout from another.

        Returns:
            Its "step", a digest of its "model", and one of its "readout" where it has one.

        Raises:
            FileNotFoundError: the run has no checkpoint yet.
            ValueError: the file of the readout is truncated or altered.
        """
        folder = self.model_folder(which)
        found = {"step": int(folder.parent.name[5:]), "model": fingerprint(folder)[:16]}
        known = self.load_readout(found) if readout else None
        return found if known is None else {**found, "readout": known[1].digest}

    def save_readout(self, readout: Readout, how: dict[str, Any]) -> None:
        """Keep what reads the confidence of a checkpoint off its states.

        Args:
            readout: fitted to them.
            how: `checkpoint_of` whose model they are, and "normalize" and "precision" of the search that they end.
        """
        write_readout(self.folder / READOUT, readout, how)

    def load_readout(self, checkpoint: dict[str, Any] | None = None) -> tuple[dict[str, Any], Readout] | None:
        """Return how the readout of a checkpoint was fitted, and the readout; None where it has none.

        Args:
            checkpoint: `checkpoint_of` it; by default the best.

        Raises:
            ValueError: its file is truncated or altered.
        """
        checkpoint = self.checkpoint_of(readout=False) if checkpoint is None else checkpoint
        with suppress(FileNotFoundError):
            how, readout = read_readout(self.folder / READOUT)
            if all(how.get(name) == checkpoint[name] for name in ("step", "model")):
                return how, readout
        return None


def _scalars(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a line of metrics.jsonl, those of an inner dict as "valid/hr@10"."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{above}{name}/")
        elif isinstance(value, (int, float)):
            yield f"{above}{name}", value


def _make_folder(folder: Path, config: dict[str, Any]) -> None:
    """Make `folder` with its config.json, or leave nothing."""
    new = not folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        write_json(folder / "config.json", config)
    except BaseException:
        if new:
            folder.rmdir()
        raise


def _load_weights(model: Any, folder: Path) -> Any:
    """Load the weights in `folder` into `model`; return the names that one has and the other has not.

    Those of an adapted model lie in state.safetensors: here its adapters are added in.
    """
    if is_adapted(model):
        return [], []
    weights: dict[str, torch.Tensor] = {}
    for part in sorted(folder.glob("*.safetensors")):  # large models come in several
        weights |= load_tensors(part)
    return model.load_state_dict(weights, strict=False)


def describe(model: Any, team: Team) -> str:
    """Return in words how large `model` is, how much of it learns, and on how many processes."""
    every = sum(p.numel() for p in model.parameters()) / 1e6
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    parameters = f"{every:.2f} M parameters" + ("" if learns == every else f", {learns:.2f} M of them trained")
    return parameters + (f", {team.size} processes" if team.size > 1 else "")


def load_model(folder: Path, device: torch.device) -> Any:
    """Load a causal language model from a local folder, in eval mode.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: its files are truncated or altered.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"`model` must be a local folder with config.json and weights, and {folder} is not one")
    try:
        with _no_bars():
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
    except Exception as error:  # transformers says in many types what it does not take
        raise ValueError(f"model {folder} is truncated or altered ({_first_line(error)}); make it again") from error
    return model.to(device).eval()


@contextmanager
def _altered(remedy: str) -> Iterator[None]:
    """Say of any error in reading a checkpoint what to do about it."""
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{_first_line(error)}; {remedy}") from error


@contextmanager
def _no_bars() -> Iterator[None]:
    """Silence the bars of transformers, which are over before one can read them."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _plain(settings: Any) -> dict[str, Any]:
    """Return a settings dataclass as JSON values, without the folder that the run itself lies in."""
    values = dataclasses.asdict(settings)
    return {
        key: os.fspath(value) if isinstance(value, Path) else value for key, value in values.items() if key != "out"
    }
