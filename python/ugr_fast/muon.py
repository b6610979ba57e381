"""Muon at the speed of the CPU: torch's optimiser, its matrices made orthogonal in float32 where bfloat16 is slower.

torch.optim.Muon multiplies in bfloat16, which is right for an accelerator. On a CPU without tiles for it that is about
twice as slow as float32, and those products are half of the time of fine-tuning a small decoder.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Muon", "orthogonalize"]


class Muon(torch.optim.Muon):
    """torch.optim.Muon, whose state and settings it shares, with `orthogonalize` for parameters on the CPU.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
        >>> weight.grad = torch.eye(2)
        >>> optimizer.step()
        >>> bool((weight.diagonal() < -0.05).all())
        True

    Source:
        arXiv 2502.16982, algorithm 1.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, and return what `closure`, if there is one, returned."""
        if any(_is_torchs(group) for group in self.param_groups):
            theirs: Any = super().step
            return theirs(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient, state, momentum = parameter.grad, self.state[parameter], group["momentum"]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - momentum)
        update = gradient.lerp(mean, momentum) if group["nesterov"] else mean
        direction = orthogonalize(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = parameter.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))


def _is_torchs(group: dict[str, Any]) -> bool:
    """Whether torch's own step is to be taken: on an accelerator, and for step sizes by another rule."""
    elsewhere = any(parameter.device.type != "cpu" for parameter in group["params"])
    return elsewhere or group["adjust_lr_fn"] not in (None, "original")


def orthogonalize(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float = 1e-7
) -> torch.Tensor:
    """Bring the singular values of a matrix near 1, by Newton–Schulz iterations in its own precision.

    Args:
        matrix: (M, N).
        coefficients: a, b, c of the polynomial a x + b x³ + c x⁵ that each iteration applies to the singular values.
        steps: iterations.
        eps: least norm to divide by.

    Returns:
        (M, N), with the singular vectors of `matrix`.

    Example:
        >>> orthogonalize(torch.eye(2), (1.5, -0.5, 0.0), 20).round(decimals=4)
        tensor([[1., 0.],
                [0., 1.]])
    """
    a, b, c = coefficients
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
