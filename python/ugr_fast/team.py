"""The processes that share a run: one, or as many as `accelerate launch` started.

Every process holds the whole model and sees the whole batch; it computes its share of the rows, and what it found is
put together so that all go on with the same numbers::

    rows of the batch     0 1 2 3 4 5 6          share(7) of 2 processes: 0 1 2 | 3 4 5 6
    found by process 0    a b c . . . .
    found by process 1    . . . d e f g          whole(part, 7): the sum, a b c d e f g, on both

A gradient is that of a sum over rows, so the sum of the processes' gradients is the gradient of one process with the
whole batch, to rounding. Only the main process writes files. Starting processes, finding one another and choosing the
device is left to accelerate.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Team:
    """One of `size` processes that share a run.

    Attributes:
        rank: number of this process, from 0; 0 is the main one, which writes.
        size: processes in all.
        device: where tensors travel between processes.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @classmethod
    def join(cls, device: torch.device) -> Team:
        """Join the processes that `accelerate launch` (or torchrun) started; alone without it.

        Args:
            device: from `run.choose_device`: the CPU, or this process's own GPU.

        Raises:
            ModuleNotFoundError: started with others, and accelerate is not installed.
            ValueError: started to cut the model itself, with FSDP or DeepSpeed.
        """
        for cutter in ("FSDP", "DEEPSPEED"):
            if os.environ.get(f"ACCELERATE_USE_{cutter}", "false").lower() == "true":
                raise ValueError(
                    f"`accelerate launch` must start data-parallel processes, got {cutter}: the model must fit one "
                    "device; choose --multi_gpu, and --lora, --precision bfloat16 or --recompute to make it fit"
                )
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return ALONE
        from accelerate import PartialState

        if not torch.distributed.is_initialized():
            atexit.register(_leave)
        state = PartialState(cpu=device.type == "cpu")
        return cls(state.process_index, state.num_processes, str(device))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of `count` rows are this process's: a stretch of them, of lengths that differ by one at most.

        Example:
            >>> Team(rank=0, size=2).share(7), Team(rank=1, size=2).share(7)
            (range(0, 3), range(3, 7))
        """
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def whole(self, part: torch.Tensor, count: int) -> torch.Tensor:
        """Put together the rows of all processes.

        Args:
            part: (share, ...) what this process found for its `share(count)`, of one dtype and width everywhere.
            count: rows of all processes.

        Returns:
            (count, ...) on the device of `part`, bit for bit what each process found.
        """
        if self.size == 1:
            return part
        carried = part.to(torch.uint8) if part.dtype == torch.bool else part
        rows = carried.new_zeros((count, *part.shape[1:]), device=self.device)
        rows[self.share(count).start : self.share(count).stop] = carried.to(self.device)
        return self._sum(rows).to(part.device, part.dtype)

    def of_main(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of the main process, on all; those of the others say what shape and type they have."""
        if self.size == 1:
            return values
        return self._sum((values if self.is_main else torch.zeros_like(values)).to(self.device)).to(values.device)

    def total(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        return (
            self._sum(torch.tensor([value], dtype=torch.float64, device=self.device)).item() if self.size > 1 else value
        )

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; one that is missing counts as 0."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.requires_grad:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self._sum(grad)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process do what is inside, then the others; where it fails, accelerate ends them all."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(values)
        return values


def _leave() -> None:
    """End the threads of the process group, which would end the process with an error if Python ended first."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


ALONE = Team()
