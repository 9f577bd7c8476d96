"""Several datasets, one batch of each per step, and a state from which the very next batch comes after a stop.

    L = Σ_m lambda_m · L_m        the paper's lambda_m: M3W 1.0, ALIGN 0.2, LTIP 0.2, VTP 0.03 (§2.4)

    mixture = Mixture({
        "pages": Part(ShardStream("mmc4/{000..099}.tar", Documents(tokenizer)), batch=32, weight=1.0),
        "pairs": Part(ShardStream("laion/*.tar", Pairs()), batch=64, weight=0.2),
    }, tokenizer, prepare, workers=4)
    for batches in mixture:                                    # {"pages": Batch, "pairs": Batch}
        losses = {m: lambda b=batch: flamingo.loss(b.to(device)) for m, batch in batches.items()}
        accumulate_gradients(losses, mixture.weights, parameters)

To go on after a stop, keep `mixture.state_dict()` with the weights. `Stage` does so if the mixture is one of its modules,
`{"flamingo": flamingo, "data": mixture}`; the loop is `for step, batches in zip(stage.steps(), mixture)`. The state is of the
batches that were handed out: what workers have read ahead is read again. It is two numbers per lane (see `shards.py`), and each
rank has its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..flamingo import Batch
from ..tokenizer import Tokenizer

from .sample import collate
from .shards import ShardStream, Skipped


@dataclass(frozen=True)
class Part:
    """A dataset of the mixture: where its samples come from, how many make a batch, and its lambda_m."""

    stream: ShardStream
    batch: int
    weight: float = 1.0


class Mixture:
    """Endless steps of batches: `{name: Batch}`, of all datasets, or with `accumulate=False` of one in turn (round-robin).

    Args:
        parts: the datasets by name, in the order in which they are drawn.
        tokenizer, prepare: as for `collate`.
        workers: processes for each dataset that read ahead; 0: none. The batches are the same whatever their number, which must
            divide the streams' `lanes`.
    """

    def __init__(
        self, parts: Mapping[str, Part], tokenizer: Tokenizer, prepare: Callable | None = None, workers: int = 0,
        accumulate: bool = True,
    ):  # fmt: skip
        self.parts, self.tokenizer, self.prepare = dict(parts), tokenizer, prepare
        self.workers, self.accumulate, self.step = workers, accumulate, 0
        for name, part in self.parts.items():
            if part.stream.epochs is not None or part.batch < 1:
                raise ValueError(f"{name}: a mixture has no end, so epochs must be None, and a batch one sample or more")
            if workers and part.stream.lanes % workers:
                raise ValueError(f"{name}: {workers} workers cannot share {part.stream.lanes} lanes; choose a divisor")
        # Of each dataset: a mark of its settings, batches so far, and of each lane (turn, played).
        self._state = {
            name: torch.tensor([_mark(part), 0] + [0, 0] * part.stream.lanes) for name, part in self.parts.items()
        }

    @property
    def weights(self) -> dict[str, float]:
        """lambda_m, for `accumulate_gradients`."""
        return {name: part.weight for name, part in self.parts.items()}

    @property
    def skipped(self) -> dict[str, Skipped]:
        """What each dataset has passed over since this process began."""
        return {name: part.stream.skipped for name, part in self.parts.items()}

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        loaders: dict[str, Iterator] = {}
        while True:
            batches = {}
            for name in datasets_of_step(list(self.parts), self.step, self.accumulate):
                if name not in loaders:
                    loaders[name] = self._loader(name)
                fields, number, lane, place, skipped = next(loaders[name])
                self._state[name][1] = number + 1
                self._state[name][2 + 2 * lane : 4 + 2 * lane] = torch.tensor(place)
                self.parts[name].stream.skipped.add(skipped)
                batches[name] = Batch(**fields)
            self.step += 1
            yield batches

    def _loader(self, name: str) -> Iterator:
        batches = _Batches(self.parts[name], self.tokenizer, self.prepare, self._state[name].tolist())
        own = torch.Generator()  # otherwise starting a loader would throw the dice of the whole program once
        pin = torch.cuda.is_available()
        return iter(DataLoader(batches, batch_size=None, num_workers=self.workers, pin_memory=pin, generator=own))

    def state_dict(self) -> dict[str, Tensor]:
        return {"step": torch.tensor([self.step]), **{f"parts.{name}": state.clone() for name, state in self._state.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on behind the last batch that was handed out; the next `for` begins there.

        Raises:
            ValueError: the state is of other datasets, shards, batch sizes, seeds, lanes or of another rank.
        """
        for name, own in self._state.items():
            there = state.get(f"parts.{name}")
            if there is None or there.shape != own.shape or there[0] != own[0]:
                raise ValueError(
                    f"{name}: this state was made with other shards, batch, seed, mix or lanes, or by another rank of another "
                    "world. Go on with the same ones, or begin the data anew by leaving its state out"
                )
        self.step = int(state["step"])
        self._state = {name: state[f"parts.{name}"].clone() for name in self._state}


def _mark(part: Part) -> int:
    """A number that differs where settings differ."""
    return int(hashlib.sha256(repr((part.stream.settings, part.batch)).encode()).hexdigest()[:15], 16)


class _Batches(IterableDataset):
    """Batch number n comes from lane n mod lanes, whoever makes it: worker w makes the batches w, w + workers, …"""

    def __init__(self, part: Part, tokenizer: Tokenizer, prepare: Callable | None, state: list[int]):
        self.part, self.tokenizer, self.prepare = part, tokenizer, prepare
        self.begin, self.places = state[1], list(zip(state[2::2], state[3::2]))

    def __iter__(self) -> Iterator[tuple[dict, int, int, tuple[int, int], Skipped]]:
        """The batch's fields, as a dict, which a loader can pin in memory; and what it takes to go on behind this batch."""
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        stream, lanes, skipped = self.part.stream, {}, Skipped()
        for number in count(self.begin + first, every):
            lane = number % stream.lanes
            if lane not in lanes:
                lanes[lane] = stream.lane(lane, skipped, *self.places[lane])
            samples = [next(lanes[lane]) for _ in range(self.part.batch)]
            batch = collate([sample for sample, _ in samples], self.tokenizer, self.prepare)
            yield vars(batch), number, lane, samples[-1][1], skipped.take()


def datasets_of_step(names, step: int, accumulate: bool = True) -> list[str]:
    """Which datasets give a gradient to this update: all of them (the paper), or in turn one (round-robin)."""
    return list(names) if accumulate else [names[step % len(names)]]
