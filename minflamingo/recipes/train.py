"""`python -m minflamingo train`: train Flamingo on interleaved documents, image-text pairs and videos (section 2.4).

    python -m minflamingo train --model openflamingo-3b --documents "mmc4/{000..099}.tar" --pairs "laion/*.tar" --out runs/mine
    python -m minflamingo train --model runs/tiny --pairs photos --out runs/mine

A dataset is a pattern of tar files (shards), a folder of images with texts (cat.png with cat.txt, also in subfolders; a video
is run.mp4 or a folder of frames run/, with run.txt), or a .jsonl file. Broken records are skipped, and texts that are longer
than the LM's context are cut. Both are counted and named at the end.

    L = sum_m lambda_m * mean NLL of dataset m, accumulated into each update of AdamW

The vision encoder and the LM stay frozen. Weights, optimizer and the place in the data are saved every few minutes, and on
Ctrl-C and SIGTERM. The same command resumes at the exact sample. Then you may change --steps (more steps, also after the end),
--workers, --save-every and --recompute. With another setting, dataset, model or number of processes, use another --out.

On CUDA the forward pass runs in bf16 with trained weights in fp32; elsewhere everything is fp32. The trained model is saved in
the dtype that was loaded. Several GPUs, with the batch sizes per GPU:

    torchrun --nproc-per-node 8 -m minflamingo train ...
"""

import argparse
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import Batch, Pipeline
from ..data.mixture import Mixture
from ..data.options import BATCH, COUNT, RATE, SEED, Number, check, check_output, filled, output_folder
from ..data.records import document_sample, pair_sample, video_sample
from ..data.shards import Dataset
from ..evaluation.features import fingerprint
from ..training import optim
from ..training.parallel import SINGLE, Processes, distributed_processes
from ..training.stage import Stage

DATASETS = {"documents": "interleaved documents", "pairs": "images with texts", "videos": "videos with texts"}
LAMBDA = Number(1e-6, 1e6)
MAY_CHANGE = ("steps", "recompute", "workers", "save_every")  # when a run is resumed: these do not change its steps


def option(default, allowed: Number | None, text: str):
    """A field of `TrainConfig`. The command line has the same option, with this help."""
    return field(default=default, metadata={"help": f"{text}; default: {default}", "allowed": allowed})


@dataclass(frozen=True)
class TrainConfig:
    steps: int = option(50_000, COUNT, "number of updates")
    seed: int = option(0, SEED, "order of the data, and random choices in it")
    documents_batch: int = option(8, BATCH, "documents per update")
    pairs_batch: int = option(16, BATCH, "pairs per update")
    videos_batch: int = option(2, BATCH, "videos per update")
    # The lambdas are those of the paper, the batch sizes are not: choose the largest that fit your GPU.
    documents_lambda: float = option(1.0, LAMBDA, "weight of the documents in the loss")
    pairs_lambda: float = option(0.2, LAMBDA, "weight of the pairs in the loss")
    videos_lambda: float = option(0.03, LAMBDA, "weight of the videos in the loss")
    # Learning rate, warm-up and weight decay of the paper (appendix). The rate is constant after the warm-up.
    lr: float = option(1e-4, RATE, "learning rate of AdamW")
    warmup: int = option(5000, Number(0, 10**9, whole=True), "updates in which the learning rate rises from 0")
    weight_decay: float = option(0.1, Number(0, 100), "of matrices; gates, norms, biases and the resampler have none")
    recompute: bool = option(False, None, "activation checkpointing: needs less memory and a third more time")
    workers: int = option(0, Number(0, 256, whole=True), "processes per dataset that read samples in advance; 0: none")
    save_every: float = option(300.0, Number(0, 10**9), "seconds between checkpoints: the most that a crash can lose")

    def __post_init__(self):
        check({f.name: f.metadata["allowed"] for f in fields(self) if f.metadata["allowed"]}, **vars(self))


def open_mixture(shards: dict[str, str | None], pipeline: Pipeline, config: TrainConfig, processes: Processes) -> Mixture:
    """The datasets for which shards are given."""
    max_length = pipeline.model.config.lm.max_length
    documents = partial(document_sample, tokenizer=pipeline.tokenizer, length=min(256, max_length or 256))
    readers = {"documents": documents, "pairs": pair_sample, "videos": video_sample}
    datasets = {
        name: Dataset(pattern, readers[name], getattr(config, f"{name}_batch"), getattr(config, f"{name}_lambda"), config.seed)
        for name, pattern in shards.items()
        if pattern
    }
    if not datasets:
        raise ValueError("there is nothing to train on: give at least one of --documents, --pairs, --videos")
    options = {"rank": processes.rank, "world": processes.world, "max_length": max_length}
    return Mixture(datasets, pipeline.tokenizer, pipeline.preprocess, workers=config.workers, **options)


def train(
    pipeline: Pipeline, shards: dict[str, str | None], out: str | Path, config: TrainConfig, processes: Processes = SINGLE
) -> Stage:
    """Train the modules that Flamingo adds, in place, and save the pipeline into the folder `out`."""
    pipeline.check_end_of_answers()
    flamingo, device = pipeline.model, pipeline.device
    mixture, named = open_mixture(shards, pipeline, config, processes), dict(flamingo.trainable_parameters())
    parameters, stored_dtype = list(named.values()), next(iter(named.values())).dtype
    # Half precision would lose small updates, so trained weights are fp32. On a CPU half precision is also slow.
    for parameter in parameters if device.type == "cuda" else flamingo.parameters():
        parameter.data = parameter.data.float()
    if config.recompute:
        optim.checkpoint_activations(flamingo)
    groups = optim.parameter_groups(named.items(), config.lr, config.weight_decay)
    # 0.95 is usual for large models: after a large gradient, steps become normal sooner than with AdamW's default of 0.999.
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    # Only what changes is saved every few minutes, without the frozen modules.
    state = {"trained": nn.ParameterList(parameters), "optimizer": optimizer, "data": mixture}
    settings = {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE}
    settings |= {"processes": processes.world, "model": fingerprint(pipeline.model), "datasets": sorted(mixture.datasets)}
    options = {"save_every": config.save_every, "writes": processes.rank == 0, "extendable": True, "agree": processes.any}
    stage = Stage("flamingo", Path(out) / "stages", config.steps, state=state, settings=settings, **options)

    def loss_of(batch: Batch) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return flamingo.loss(batch.to(device))

    flamingo.train()
    try:
        with closing(iter(mixture)) as data:  # closed at once after an error, so its workers end
            for step, batches in zip(stage.steps(), data):
                losses = {name: partial(loss_of, batch) for name, batch in batches.items()}
                losses = optim.accumulate_gradients(losses, mixture.weights, parameters)
                processes.average(parameter.grad for parameter in parameters)
                processes.average(losses.values())  # so that all processes skip the same steps
                stage.skip_if(optim.clip_gradients(parameters, losses), step, batches)
                optim.set_learning_rate(optimizer, optim.learning_rate_factor(step, config.warmup))
                optimizer.step()
                if step % 10 == 0:
                    total = sum(mixture.weights[name] * loss for name, loss in losses.items())
                    stage.log(step, loss=total, **{f"loss_{name}": loss for name, loss in losses.items()})
            with torch.no_grad():  # one more batch of each dataset
                for name, batch in next(data).items():
                    first, last = stage.first(f"loss_{name}"), loss_of(batch).item()
                    optim.check_final_loss(name, first, last, flamingo.config.lm.vocab_size)
    finally:
        for name, n in mixture.n_problems.items():
            if n:
                print("\n    ".join([f"{name}: {n} times, a sample was skipped or cut. Examples:", *mixture.problems[name]]))
    flamingo.to(stored_dtype).eval()
    if processes.rank == 0:
        pipeline.save(out)
    return stage


def add_parser(commands, add_model_options: Callable) -> None:
    parser = commands.add_parser("train", help="train Flamingo on documents, pairs and videos", description=__doc__)
    for name, content in DATASETS.items():
        parser.add_argument(f"--{name}", type=filled, help=f"{content}: '{name}/{{000..099}}.tar', a folder or a .jsonl file")
    for f in fields(TrainConfig):
        kind = {"action": "store_true"} if f.type is bool else {"type": f.metadata["allowed"], "default": f.default}
        parser.add_argument(f"--{f.name.replace('_', '-')}", help=f.metadata["help"], **kind)
    parser.add_argument("--out", type=output_folder, required=True, help="folder for the trained model and the checkpoints")
    add_model_options(parser)


def run(args: argparse.Namespace, load: Callable[[], Pipeline]) -> None:
    config = TrainConfig(**{f.name: getattr(args, f.name) for f in fields(TrainConfig)})
    shards = {name: getattr(args, name) for name in DATASETS}
    check_output(args.out, args.model, *shards.values())
    with distributed_processes(args.device) as processes:
        train(load(), shards, args.out, config, processes)
