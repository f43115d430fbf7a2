"""How a network is laid out over processes: how many there are, which layers each has, and what that takes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dpipe.cluster.local import WORKER_RESERVED_NBYTES, Place
from dpipe.errors import InputError
from dpipe.sizes import counted
from dpipe.train.networks.chain import Chain, chain_of
from dpipe.train.networks.prepared import is_far
from dpipe.train.networks.profile import LayerProfile, Values, profile, weigh
from dpipe.train.networks.split import Load, SplitPlan, check_layers, plan_split, state_ratio
from dpipe.train.networks.tensor import Shared, share


@dataclass(frozen=True)
class Grid:
    """Processes that train together: some copies of the network, each split into stages, which some of them share."""

    n_stages: int
    n_copies: int = 1
    n_shards: int = 1
    """Processes of a stage."""

    @property
    def n_processes(self) -> int:
        """How many processes there are."""
        return self.n_stages * self.n_copies * self.n_shards

    def of(self, n_ranks: int) -> "Grid":
        """Give what is left of it with so many processes: whole copies, or one of fewer stages, or of fewer shards.

        Examples
        --------
        >>> Grid(2, 2).of(3)
        Grid(n_stages=2, n_copies=1, n_shards=1)
        >>> Grid(2, 1, 2).of(3), Grid(1, 1, 2).of(1)
        (Grid(n_stages=1, n_copies=1, n_shards=2), Grid(n_stages=1, n_copies=1, n_shards=1))
        """
        n_shards = max(n for n in range(1, self.n_shards + 1) if self.n_shards % n == 0 and n <= n_ranks)
        n_stages = min(self.n_stages, n_ranks // n_shards)
        return Grid(n_stages, min(n_ranks // (n_stages * n_shards), self.n_copies), n_shards)

    def place(self, rank: int) -> tuple[int, int, int]:
        """Give the copy, the stage and the shard of a process.

        Examples
        --------
        >>> Grid(2, 2, 2).place(5)
        (1, 0, 1)
        """
        rest, shard = divmod(rank, self.n_shards)
        return *divmod(rest, self.n_stages), shard


@dataclass(frozen=True)
class Splitter:
    """Cuts one module for one batch size, into as many stages as are asked for, and shares its layers."""

    network: Any
    width: int
    place: Place
    reading_nbytes: Callable[[int], int]
    """Of the loader of each of some copies."""
    # what was found before, by the number of shards: it follows from the fields above, which do not change
    _shared: dict[int, Shared] = field(default_factory=dict, init=False, repr=False, compare=False)
    _tried: dict[int, list[LayerProfile]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def chain(self) -> Chain:
        """The layers of the module."""
        return chain_of(self.network.module)

    def shared(self, n_shards: int) -> Shared:
        """Give the layers as one of some processes has them that share them.

        Raises
        ------
        InputError
            If there is none that they could share.
        """
        if n_shards not in self._shared:
            alone = Shared(self.chain, {}, ())
            self._shared[n_shards] = alone if n_shards == 1 else share(self.chain, n_shards)
        return self._shared[n_shards]

    @cached_property
    def _ratio(self) -> float:
        return state_ratio(self.network.optimizer)

    @property
    def n_stages(self) -> int:
        """How many stages there will be."""
        if self.network.stages is not None:
            return int(self.network.stages)
        wanted = self.place.workers if is_far(self.place.client) else 2
        wanted = wanted if self.network.workers is None else int(self.network.workers)
        tensor = int(self.network.tensor)
        return max(min(wanted // tensor, (len(self.shared(tensor).chain.cuts) + 1) // self.virtual), 1)

    @property
    def virtual(self) -> int:
        """Groups of layers of a process."""
        return int(self.network.virtual) if self.network.order == "interleaved" else 1

    @cached_property
    def grid(self) -> Grid:
        """The processes, if none is lost.

        Raises
        ------
        InputError
            If there cannot be so many.
        """
        network, stages, tensor = self.network, self.n_stages, int(self.network.tensor)
        n = stages * tensor
        workers, shares, there = network.workers or n, network.shares, self.place.workers
        shared = "" if tensor == 1 else f" that {tensor} processes share"
        if workers % n:
            raise InputError(
                f"workers={workers} cannot hold copies of {counted(stages, 'stage')}{shared} each. Give a multiple of "
                f"{n}."
            )
        if is_far(self.place.client) and workers > there:
            named = counted(stages, "stage") if workers == stages else f"workers={workers}"
            named = f"{counted(stages, 'stage')}{shared}" if workers == n and tensor > 1 else named
            fewer = (
                f"stages={min(stages, there // tensor)} or fewer"
                if tensor <= there
                else f"tensor={there} or less"
            )
            raise InputError(
                f"{named} need as many workers, and the cluster has {there}. Start more, or "
                f"give {fewer}{'' if workers == n else ', or fewer workers'}."
            )
        if workers // n > shares:
            raise InputError(
                f"{workers // n} copies cannot read shares={shares}: each needs one. Give shares={workers // n} or "
                "more, or fewer workers."
            )
        return Grid(stages, workers // n, tensor)

    def memory(self, n_processes: int) -> int | None:
        """Give the bytes that one process may take."""
        if self.place.memory is None:
            return None
        if is_far(self.place.client):
            return self.place.memory - WORKER_RESERVED_NBYTES
        return (self.place.memory - self.place.reserved) // n_processes

    def _profiles(self, n_shards: int) -> list[LayerProfile]:
        if n_shards not in self._tried:
            grid, chain = self.grid, self.shared(n_shards).chain
            n_parts = grid.n_stages * self.virtual
            memory = self.memory(grid.n_processes)
            check_layers(chain, weigh(chain), n_parts, self._ratio, memory, self._hint)
            parts = self.network.micro_batches or 4 * grid.n_stages
            rows = max(-(-self._rows(grid.n_copies) // parts), 1)
            self._tried[n_shards] = profile(chain, self.width, rows)
        return self._tried[n_shards]

    def _hint(self, layer: int) -> str:
        """Advise to have more processes share a layer, if they could."""
        more = 2 * int(self.network.tensor)
        try:
            helps = layer in self.shared(more).styles
        except InputError:
            helps = False
        return f"tensor={more}, so that {more} processes share it, " if helps else ""

    def _rows(self, n_copies: int) -> int:
        """Count the rows of a batch that one copy learns, at most."""
        shares, batch = self.network.shares, self.network.batch_size
        return int(-(-batch // shares) * -(-shares // n_copies)) if n_copies > 1 else int(batch)

    @cached_property
    def output(self) -> Values:
        """What the last layer gives for a row."""
        return self._profiles(self.grid.n_shards)[-1].output

    def split(self, grid: Grid | None = None) -> SplitPlan:
        """Cut the module, for the processes that are left.

        Raises
        ------
        InputError, MemoryLimitError
            If it cannot be cut so.
        """
        network, wanted = self.network, self.grid
        grid = wanted if grid is None else grid
        alone = grid.n_stages == 1  # one stage has nobody to take turns with
        load = Load(
            self._rows(grid.n_copies),
            Values((self.width,), "float32", 4 * self.width, False),
            self._ratio,
            "1f1b" if alone and network.order == "interleaved" else network.order,
            1 if alone else self.virtual,
            self.reading_nbytes(grid.n_copies),
            network.validation is not None,
        )
        parts = network.micro_batches
        if grid != wanted:
            # what is learned follows from the micro-batches, to the last bit
            parts = (
                (self.split().micro_batches if parts is None else parts) * wanted.n_copies // grid.n_copies
            )
        memory = self.memory(wanted.n_processes)
        shared, profiles = self.shared(grid.n_shards), self._profiles(grid.n_shards)
        plan = plan_split(shared.chain, profiles, load, grid.n_stages, memory=memory, micro_batches=parts)
        notes = (*shared.notes, *plan.notes)
        return replace(plan, n_copies=grid.n_copies, n_shards=grid.n_shards, notes=notes)
