"""Several datasets, one batch of each per step, and a state from which training resumes with the exact next batch.

    L = sum_m lambda_m * L_m        the paper's lambda_m: M3W 1.0, ALIGN 0.2, LTIP 0.2, VTP 0.03 (section 2.4)

    mixture = Mixture({
        "documents": Dataset(ShardStream("mmc4/{000..099}.tar", Documents(tokenizer)), batch_size=32, weight=1.0),
        "pairs": Dataset(ShardStream("laion/*.tar", Pairs()), batch_size=64, weight=0.2),
    }, tokenizer, preprocess, workers=4)
    for batches in mixture:                                    # {"documents": Batch, "pairs": Batch}
        losses = {m: lambda b=batch: flamingo.loss(b.to(device)) for m, batch in batches.items()}
        accumulate_gradients(losses, mixture.weights, parameters)

To resume, save `mixture.state_dict()` with the weights. It counts the batches that were returned, not those that workers have
read in advance. It has two numbers per stream (see `shards.py`), and each process has its own.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..flamingo import Batch
from ..tokenizer import Tokenizer
from .sample import collate
from .shards import ShardStream, Skipped


def datasets_of_step(names: Sequence[str], step: int, accumulate: bool = True) -> list[str]:
    """The datasets of one step: all, or with `accumulate=False` one in turn (round-robin; worse in the paper's table 3)."""
    return list(names) if accumulate else [names[step % len(names)]]


@dataclass(frozen=True)
class Dataset:
    """One dataset of a mixture. `weight`: its lambda_m."""

    samples: ShardStream
    batch_size: int
    weight: float = 1.0


class Mixture:
    """Endless steps of batches: `{name: Batch}`, of all datasets, or with `accumulate=False` of one in turn.

    workers: processes per dataset that read in advance; 0: none. The number must divide the number of streams. It does not
        change the batches, and may differ when a run resumes.
    """

    def __init__(
        self, datasets: Mapping[str, Dataset], tokenizer: Tokenizer, preprocess: Callable | None = None, *, workers: int = 0,
        accumulate: bool = True,
    ):  # fmt: skip
        self.datasets, self.tokenizer, self.preprocess = dict(datasets), tokenizer, preprocess
        self.workers, self.accumulate, self.step = workers, accumulate, 0
        self._state: dict[str, Tensor] = {}  # per dataset: hash of its settings, number of batches, (turn, done) of each stream
        for name, dataset in self.datasets.items():
            streams = dataset.samples.streams
            if dataset.samples.epochs is not None or dataset.batch_size < 1 or (workers and streams % workers):
                needed = f"endless samples (epochs=None), batch_size >= 1, and workers that divide its {streams} streams"
                raise ValueError(f"{name}: a mixture needs {needed}; got batch_size {dataset.batch_size}, {workers} workers")
            settings = repr((dataset.samples.settings, dataset.batch_size)).encode()
            self._state[name] = torch.tensor([int(hashlib.sha256(settings).hexdigest()[:15], 16), 0] + [0, 0] * streams)

    @property
    def weights(self) -> dict[str, float]:
        """lambda_m, for `accumulate_gradients`."""
        return {name: dataset.weight for name, dataset in self.datasets.items()}

    @property
    def skipped(self) -> dict[str, Skipped]:
        """Broken and unsuitable samples of each dataset since this process started."""
        return {name: dataset.samples.skipped for name, dataset in self.datasets.items()}

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        loaders: dict[str, Iterator] = {}
        while True:
            batches = {}
            for name in datasets_of_step(list(self.datasets), self.step, self.accumulate):
                if name not in loaders:
                    source = _Batches(self.datasets[name], self.tokenizer, self.preprocess, self._state[name].tolist())
                    # Without its own generator, a loader would draw a seed from the global one and so change training.
                    options = dict(pin_memory=torch.cuda.is_available(), generator=torch.Generator())
                    loaders[name] = iter(DataLoader(source, batch_size=None, num_workers=self.workers, **options))
                fields, number, stream, position, skipped = next(loaders[name])
                self._state[name][1] = number + 1
                self._state[name][2 + 2 * stream : 4 + 2 * stream] = torch.tensor(position)
                self.datasets[name].samples.skipped.add(skipped)
                batches[name] = Batch(**fields)
            self.step += 1
            yield batches

    def state_dict(self) -> dict[str, Tensor]:
        return {"step": torch.tensor([self.step]), **{f"datasets.{name}": state.clone() for name, state in self._state.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume after the last batch that was returned. Raises ValueError if the state is of other settings or processes."""
        for name, own in self._state.items():
            saved = state.get(f"datasets.{name}")
            if saved is None or saved.shape != own.shape or saved[0] != own[0]:
                settings = "shards, batch_size, seed, mix, streams, rank or world"
                raise ValueError(f"{name}: the saved state has other {settings}; resume with the same ones, or leave it out")
        self.step = int(state["step"])
        self._state = {name: state[f"datasets.{name}"].clone() for name in self._state}


class _Batches(IterableDataset):
    """Batch n is from stream n mod streams. Worker w makes the batches w, w + workers, ..., so each stream has one worker."""

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer, preprocess: Callable | None, state: list[int]):
        self.dataset, self.tokenizer, self.preprocess = dataset, tokenizer, preprocess
        self.first, self.positions = state[1], list(zip(state[2::2], state[3::2]))

    def __iter__(self) -> Iterator[tuple[dict, int, int, tuple[int, int], Skipped]]:
        """The fields of a batch (as a dict, so that a loader can pin them), its number and stream, and the state after it."""
        worker = get_worker_info()
        offset, every = (worker.id, worker.num_workers) if worker else (0, 1)
        samples, streams, skipped = self.dataset.samples, {}, Skipped()
        for number in count(self.first + offset, every):
            i = number % samples.streams
            if i not in streams:
                streams[i] = samples.stream(i, skipped, *self.positions[i])
            items = [next(streams[i]) for _ in range(self.dataset.batch_size)]
            batch = collate([sample for sample, _ in items], self.tokenizer, self.preprocess)
            yield vars(batch), number, i, items[-1][1], skipped.take()
