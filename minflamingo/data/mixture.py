"""Several datasets, one batch of each per step, and a state from which training resumes with the exact next batch.

    L = sum_m lambda_m * L_m        the paper's lambda_m: M3W 1.0, ALIGN 0.2, LTIP 0.2, VTP 0.03 (section 2.4)

    documents = Dataset("mmc4/{000..099}.tar", partial(document_sample, tokenizer=tokenizer), batch_size=32, weight=1.0)
    pairs = Dataset("laion/*.tar", pair_sample, batch_size=64, weight=0.2)
    mixture = Mixture({"documents": documents, "pairs": pairs}, tokenizer, preprocess, workers=4)
    for batches in mixture:                                    # {"documents": Batch, "pairs": Batch}
        losses = {m: lambda b=batch: flamingo.loss(b.to(device)) for m, batch in batches.items()}
        accumulate_gradients(losses, mixture.weights, parameters)

To resume, save `mixture.state_dict()` with the weights. It counts the batches that were returned, not those that workers have
read in advance. It has two numbers per stream (see `shards.py`), and each process has its own.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..flamingo import Batch
from ..tokenizer import Tokenizer
from .sample import collate
from .shards import Dataset


class Mixture:
    """Endless steps of batches, one of each dataset: `{name: Batch}`.

    n_skipped, reasons: how many records and shards of each dataset this process skipped, and the first ten reasons.
    workers: processes per dataset that read in advance; 0: none. The number must divide the number of streams. It does not
        change the batches, and may differ when a run resumes.
    """

    def __init__(
        self, datasets: Mapping[str, Dataset], tokenizer: Tokenizer, preprocess: Callable | None = None, *, workers: int = 0
    ):
        self.datasets, self.tokenizer, self.preprocess, self.workers = dict(datasets), tokenizer, preprocess, workers
        self.weights = {name: dataset.weight for name, dataset in self.datasets.items()}  # lambda_m, for `accumulate_gradients`
        self.n_skipped: dict[str, int] = {name: 0 for name in self.datasets}
        self.reasons: dict[str, list[str]] = {name: [] for name in self.datasets}
        self._state: dict[str, Tensor] = {}  # per dataset: (fingerprint, number of batches), then (turn, done) of each stream
        for name, dataset in self.datasets.items():
            if workers and dataset.streams % workers:
                raise ValueError(f"{name}: {workers} workers cannot share {dataset.streams} streams; the number must divide it")
            self._state[name] = torch.tensor([[dataset.fingerprint(), 0]] + [[0, 0]] * dataset.streams)

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        loaders = {}
        for name, dataset in self.datasets.items():
            source = _Batches(dataset, self.tokenizer, self.preprocess, self._state[name].tolist())
            # Without its own generator, a loader would draw a seed from the global one and so change training.
            options = dict(pin_memory=torch.cuda.is_available(), generator=torch.Generator())
            loaders[name] = iter(DataLoader(source, batch_size=None, num_workers=self.workers, **options))
        while True:
            batches = {}
            for name, loader in loaders.items():
                fields, number, position, reasons = next(loader)
                self._state[name][0, 1] = number + 1
                self._state[name][1 + number % self.datasets[name].streams] = torch.tensor(position)
                self.n_skipped[name] += len(reasons)
                self.reasons[name] = (self.reasons[name] + reasons)[:10]
                batches[name] = Batch(**fields)
            yield batches

    def state_dict(self) -> dict[str, Tensor]:
        return {name: state.clone() for name, state in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume after the last batch that was returned. Raises ValueError if the state is of other data or processes."""
        for name, own in self._state.items():
            if name not in state or state[name][0, 0] != own[0, 0]:
                settings = "shards, seed, mix, streams, rank or world"
                raise ValueError(f"{name}: the saved state has other {settings}; resume with the same ones, or leave it out")
        self._state = {name: state[name].clone() for name in self._state}


class _Batches(IterableDataset):
    """Batch n is from stream n mod streams. Worker w makes the batches w, w + workers, ..., so each stream has one worker."""

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer, preprocess: Callable | None, state: list):
        self.dataset, self.tokenizer, self.preprocess = dataset, tokenizer, preprocess
        (_, self.first), *self.positions = state

    def __iter__(self) -> Iterator[tuple[dict, int, tuple[int, int], list[str]]]:
        """Fields of a batch (as a dict, so that a loader can pin them), its number, the state after it, reasons of skips."""
        worker = get_worker_info()
        offset, every = (worker.id, worker.num_workers) if worker else (0, 1)
        streams = [self.dataset.stream(i, *position) for i, position in enumerate(self.positions)]
        for number in count(self.first + offset, every):
            items = [next(streams[number % len(streams)]) for _ in range(self.dataset.batch_size)]
            batch = collate([sample for sample, _, _ in items], self.tokenizer, self.preprocess)
            yield vars(batch), number, items[-1][1], [reason for _, _, skipped in items for reason in skipped]
