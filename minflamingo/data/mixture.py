"""Several datasets, one batch of each per step, and a state from which training resumes with the exact next batch.

    L = sum_m lambda_m * L_m        the paper's lambda_m: M3W 1.0, ALIGN 0.2, LTIP 0.2, VTP 0.03 (section 2.4)

    documents = Dataset("mmc4/{000..099}.tar", partial(document_sample, tokenizer=tokenizer), batch_size=32, weight=1.0)
    pairs = Dataset("laion/*.tar", pair_sample, batch_size=64, weight=0.2)
    mixture = Mixture({"documents": documents, "pairs": pairs}, tokenizer, preprocess, workers=4)
    for batches in mixture:                                    # {"documents": Batch, "pairs": Batch}
        losses = {m: lambda b=batch: flamingo.loss(b.to(device)) for m, batch in batches.items()}
        accumulate_gradients(losses, mixture.weights, parameters)

Batches are cut from the endless list of each dataset (`shards.py`), in rounds: one batch for each of `world` processes. The
workers of a process take turns. Each makes every n-th batch, and skips the records of the others without reading them:

    world 2, batch_size 2, 2 workers       records  0 1 | 2 3     4 5 | 6 7     8 9 | 10 11   ...
                            (process, worker) reads (0,0) (1,0)   (0,1) (1,1)   (0,0) (1,0)

So the batches do not depend on the number of workers. To resume, save `mixture.state_dict()` with the weights: the place in
each list after the last returned round. Batches that workers read in advance do not count. All processes have the same state.
A broken record is counted, named and left out, so its batch is smaller. A sample that is too long for the LM is cut.
"""

import signal
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count, islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..flamingo import Batch
from ..tokenizer import Tokenizer
from .files import problem_of
from .sample import TokenizedSample, collate, tokenize_sample
from .shards import Dataset, Entry

MOST_SKIPPED = 1000  # broken records in a row; so many mean that the dataset has another format


class Mixture:
    """Endless steps of batches, one of each dataset: `{name: Batch}`.

    workers: processes per dataset that read in advance; 0: none. It does not change the batches.
    rank, world: number of this process, and how many there are.
    max_length: the LM's context in tokens. Longer samples are cut. None: no limit.
    n_problems, problems: how often a record was skipped or cut in this process, and ten different reasons.
    """

    def __init__(
        self, datasets: Mapping[str, Dataset], tokenizer: Tokenizer, preprocess: Callable | None = None, *,
        workers: int = 0, rank: int = 0, world: int = 1, max_length: int | None = None,
    ):  # fmt: skip
        if not 0 <= rank < world or workers < 0:
            raise ValueError(f"need 0 <= rank < world, and workers of at least 0; got {rank}, {world} and {workers}")
        self.datasets, self.tokenizer, self.preprocess, self.workers = dict(datasets), tokenizer, preprocess, workers
        self.rank, self.world, self.max_length = rank, world, max_length
        self.weights = {name: dataset.weight for name, dataset in self.datasets.items()}  # lambda_m, for `accumulate_gradients`
        self.n_problems: dict[str, int] = {name: 0 for name in self.datasets}
        self.problems: dict[str, list[str]] = {name: [] for name in self.datasets}
        # per dataset: the fingerprint, and the place in the list (group, done)
        self._state = {name: torch.tensor([dataset.fingerprint(), 0, 0]) for name, dataset in self.datasets.items()}

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        # Without its own generator, a loader would draw a seed from the global one and so change training.
        options = dict(pin_memory=torch.cuda.is_available(), num_workers=self.workers, worker_init_fn=_survive_signals)
        loaders = {
            name: iter(DataLoader(_Batches(self, name), batch_size=None, generator=torch.Generator(), **options))
            for name in self.datasets
        }
        try:
            while True:
                batches = {}
                for name, loader in loaders.items():
                    try:
                        fields, place, problems = next(loader)
                    except (ValueError, OSError) as error:
                        if not self.workers:
                            raise
                        lines = str(error).strip().splitlines()  # the message of a worker begins with its traceback
                        raise (OSError if isinstance(error, OSError) else ValueError)(*lines[-1:]) from None
                    self._state[name][1:] = torch.tensor(place)
                    self.n_problems[name] += len(problems)
                    self.problems[name] = list(dict.fromkeys(self.problems[name] + problems))[:10]
                    batches[name] = Batch(**fields)
                yield batches
        finally:
            for loader in loaders.values() if self.workers else ():
                loader._shutdown_workers()  # now, also while the traceback of an error refers to the loader

    def state_dict(self) -> dict[str, Tensor]:
        return {name: state.clone() for name, state in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume after the last round that was returned. Raises ValueError if the state is of other data."""
        for name, own in self._state.items():
            if name not in state or state[name][0] != own[0]:
                raise ValueError(f"{name}: the saved state has other shards, seed or mix; use the same, or another folder")
        self._state = {name: state[name].clone() for name in self._state}


def _survive_signals(worker_id: int) -> None:
    """Ctrl-C and SIGTERM often reach all processes. Workers ignore the first one: the current step still needs them."""

    def received(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        if number == signal.SIGTERM and hasattr(signal, "alarm"):
            signal.alarm(30)  # SIGTERM may also come from the main process, to end this worker

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, received)


class _Batches(IterableDataset):
    """The batches of one dataset in one process."""

    def __init__(self, mixture: Mixture, name: str):
        self.mixture, self.dataset, self.place = mixture, mixture.datasets[name], mixture._state[name].tolist()[1:]

    def __iter__(self) -> Iterator[tuple[dict, tuple[int, int], list[str]]]:
        """Fields of a batch (as a dict, so that a loader can pin them), the place after its round, and problems."""
        worker, size, entries = get_worker_info(), self.dataset.batch_size, self.dataset.entries(*self.place)
        for number in count():
            in_round = list(islice(entries, size * self.mixture.world))
            place = (in_round[-1].group, in_round[-1].number + 1)
            if worker is None or number % worker.num_workers == worker.id:
                fields, problems = self._batch(in_round[size * self.mixture.rank :][:size], place)
                yield fields, place, problems

    def _batch(self, entries: list[Entry], place: tuple[int, int]) -> tuple[dict, list[str]]:
        rows: list[TokenizedSample] = []
        problems: list[str] = []
        # If all are broken, the first good record after the round replaces them.
        for i, entry in enumerate(chain(entries, self.dataset.entries(*place))):
            self._add(entry, rows, problems)
            if rows and i >= len(entries) - 1:
                break
            if not rows and len(problems) == MOST_SKIPPED:
                raise ValueError(f"{len(problems)} records or shards in a row cannot be read. The first one is {problems[0]}")
        return vars(collate(rows, self.mixture.tokenizer)), problems

    def _add(self, entry: Entry, rows: list[TokenizedSample], problems: list[str]) -> None:
        """Read a record. If it is broken, only its problem is added."""
        try:
            row = tokenize_sample(self.dataset.read(entry), self.mixture.tokenizer, self.mixture.preprocess)
        except Exception as error:  # also an image that cannot be preprocessed
            problems.append(problem_of(entry.name, error))
            return
        limit = self.mixture.max_length or len(row.ids)
        if len(row.ids) > limit:
            problems.append(f"{entry.name}: cut from {len(row.ids)} tokens to the {limit} of the LM's context")
            row.cut(limit, self.mixture.tokenizer.image_id)
        rows.append(row)
