"""A gang whose members are processes: torch.distributed carries the parts, accelerate names the devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator

from afterfit.algebra import Gang, State, add


class PeerLostError(Exception):
    """Another member of the gang went away in the middle of a collective."""


class Form(NamedTuple):
    """What a state looks like, so that others can make room for it."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    device: str  # kind

    @classmethod
    def of(cls, state: State) -> Form:
        """Of a state whose tensors are on one device."""
        tensors = list(state.values())
        device = tensors[0].device.type if tensors else "cpu"
        return cls(tuple(state), tuple(t.shape for t in tensors), tuple(t.dtype for t in tensors), device)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tensor."""
        return [prod(shape) * dtype.itemsize for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]

    @property
    def num_bytes(self) -> int:
        """Of all."""
        return sum(self.sizes)

    def unpack(self, flat: torch.Tensor) -> State:
        """The state from its bytes, each tensor in memory of its own."""
        pieces = flat.to(self.device).split(self.sizes)
        kinds = zip(self.names, pieces, self.dtypes, self.shapes, strict=True)
        return {name: piece.clone().view(dtype).reshape(shape) for name, piece, dtype, shape in kinds}


class TorchGang:
    """Member r of W runs slices r n / W to (r + 1) n / W - 1. Bytes are sent, so no bit depends on W."""

    def __init__(self, num_slices: int, accelerator: Accelerator) -> None:
        rank, self._world = accelerator.process_index, accelerator.num_processes
        self.num_slices = num_slices
        self._rank = rank
        self._device = accelerator.device
        self.mine: Sequence[int] = self._slices(rank)

    def sum(self, parts: Sequence[State]) -> State:
        """Added in slice order, two states in memory at a time."""
        return reduce(add, self._in_order(parts))

    def gather(self, parts: Sequence[State]) -> list[State]:
        """All slices' parts, on every member."""
        return list(self._in_order(parts))

    def exchange(self, parts: Sequence[Sequence[State]]) -> list[list[State]]:
        """All to all, in one collective of bytes."""
        if self._world == 1:
            return [list(given) for given in zip(*parts, strict=True)]
        forms = self._of_all([[Form.of(state) for state in part] for part in parts])
        given, sizes = [], []
        for rank in range(self._world):
            is_other = rank != self._rank  # what is for this member's own slices stays here
            given.append([_flat(part[to]) for part in parts for to in self._slices(rank)] if is_other else [])
            sizes.append(sum(part[to].num_bytes for part in forms[rank] for to in self.mine) if is_other else 0)
        flat = torch.cat([torch.empty(0, dtype=torch.uint8), *(one.cpu() for states in given for one in states)])
        taken = torch.empty(sum(sizes), dtype=torch.uint8, device=self._device)
        with _peers():
            dist.all_to_all_single(taken, flat.to(self._device), sizes, [sum(map(len, states)) for states in given])
        found: list[list[State]] = [[] for _ in self.mine]
        for rank, met in enumerate(taken.split(sizes)):
            if rank == self._rank:
                theirs = [part[to] for part in parts for to in self.mine]
            else:
                of_states: list[Form] = [part[to] for part in forms[rank] for to in self.mine]
                pieces = met.split([form.num_bytes for form in of_states])
                theirs = [form.unpack(piece) for form, piece in zip(of_states, pieces, strict=True)]
            for number, state in enumerate(theirs):
                found[number % len(self.mine)].append(state)
        return found

    def _of_all(self, mine: Any) -> list[Any]:
        """What every member has, by rank."""
        found: list[Any] = [None] * self._world
        with _peers():
            dist.all_gather_object(found, mine)
        return found

    def _slices(self, rank: int) -> range:
        return range(rank * self.num_slices // self._world, (rank + 1) * self.num_slices // self._world)

    def _in_order(self, parts: Sequence[State]) -> Iterator[State]:
        if self._world == 1:
            yield from parts
            return
        forms = self._of_all([Form.of(part) for part in parts])
        for rank, theirs in enumerate(forms):
            for number, form in enumerate(theirs):
                mine = parts[number] if rank == self._rank else None
                flat = torch.empty(form.num_bytes, dtype=torch.uint8) if mine is None else _flat(mine)
                flat = flat.to(self._device)
                with _peers():
                    dist.broadcast(flat, src=rank)
                yield form.unpack(flat) if mine is None else mine


class Group:
    """The assembly of a Ray Train worker group."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.is_leader = accelerator.is_main_process
        self._accelerator = accelerator

    def gang(self, num_slices: int) -> Gang:
        """This member's share."""
        return TorchGang(num_slices, self._accelerator)

    def agree(self, position: int | None) -> int | None:
        """Broadcast by the leader."""
        box = [position]
        if self._accelerator.num_processes > 1:
            with _peers():
                dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """At a barrier."""
        if self._accelerator.num_processes > 1:
            with _peers():
                dist.barrier()


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(str(error)) from None


def _flat(state: State) -> torch.Tensor:
    pieces = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in state.values()]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8)
