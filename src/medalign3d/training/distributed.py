"""One training run in one or several processes: which samples are whose, and how values are put together.

Processes are started by ``torchrun`` or ``accelerate launch``; without them there is one. Every process has the whole
model and works on its share of each micro-batch. A loss is a mean over the samples of all processes
(:func:`medalign3d.model.losses.mean_over_processes`), so any number of processes takes the same step. Only trainables,
a few per cent of the weights, have gradients; they are averaged in one call after the backward pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from medalign3d.errors import ParameterError


def launched_processes() -> int:
    """How many processes ``torchrun`` or ``accelerate launch`` started for this run (1 without them)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def share(count: int, parts: int, number: int) -> range:
    """The ``number``-th of ``parts`` consecutive shares of ``range(count)``; the first ones are longer by one.

    >>> [list(share(5, 3, number)) for number in range(3)]
    [[0, 1], [2, 3], [4]]
    """
    whole, over = divmod(count, parts)
    start = number * whole + min(number, over)
    return range(start, start + whole + (number < over))


class Processes:
    """The processes of a run.

    Parameters
    ----------
    device
        Where this process computes when it is the only one; among several, each GPU process takes the device of its
        local rank, and the group talks by NCCL, on a CPU by gloo.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = 1
        self.rank = 0
        self.device = device
        if launched_processes() > 1:
            from accelerate import PartialState

            state = PartialState(cpu=device.type == "cpu")
            self.count, self.rank, self.device = state.num_processes, state.process_index, state.device

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def shares(self, count: int, accumulation: int, section: str = "batch_size") -> list[range]:
        """The places of the present process in a batch, one range for each micro-batch.

        Parameters
        ----------
        count, accumulation
            Samples of a batch, and in how many parts it is computed.
        section
            The parameter that an error names.

        Raises
        ------
        ParameterError
            When a process would have none.
        """
        if count < accumulation * self.count:
            raise ParameterError(
                "a batch cannot be divided",
                where=section,
                found=f"{count} samples for {accumulation} micro-batches on {self.count} processes",
                expected=f"at least {accumulation * self.count}",
                remedy="raise batch_size, lower accumulation, or start fewer processes",
            )
        parts = []
        for number in range(accumulation):
            micro = share(count, accumulation, number)
            own = share(len(micro), self.count, self.rank)
            parts.append(range(micro.start + own.start, micro.start + own.stop))
        return parts

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace gradients by their averages; where a process has none, it counts as zero."""
        if self.count == 1:
            return
        flat = torch.cat(
            [(p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1)).float() for p in parameters]
        )
        dist.all_reduce(flat)
        flat /= self.count
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.reshape(parameter.shape).to(parameter.dtype).clone()

    def average(self, values: dict[str, float]) -> dict[str, float]:
        """Averages of numbers over processes."""
        if self.count == 1:
            return values
        numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers)
        return dict(zip(values, (numbers / self.count).tolist(), strict=True))

    def largest(self, value: int) -> int:
        """The largest of the processes' whole numbers."""
        if self.count == 1:
            return value
        number = torch.tensor([value], device=self.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number.item())

    def same_as_first(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's tensors to the others, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def from_first(self, value: Any) -> Any:
        """The first process's value of a small Python object."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.count > 1:
            dist.barrier()
