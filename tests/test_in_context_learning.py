"""In-context learning happens: a small Flamingo, trained here from nothing, learns names that exist only in its prompt.

The world is reduced to what in-context learning needs. An "image" is the feature vector of one of 12 things, plus noise. A
document gives made-up names to three things, and the names are different in every document:

    <BOS> <image> f <EOC> <image> b <EOC> <image> f <EOC> <image> -> ?

The LM is first trained on text alone, to look up what followed the same token earlier. Then it is frozen, and Flamingo must
learn to use images as keys for this lookup. Evaluation uses the same things in new documents.
"""

import random

import pytest
import torch

from minflamingo.config import FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig
from minflamingo.flamingo import Batch, Flamingo
from minflamingo.lm import LM
from minflamingo.training.optim import learning_rate_factor, parameter_groups, set_learning_rate

V, BOS, EOC = 44, 0, 1  # 42 tokens are words: names in documents, keys and answers in text
WORDS = range(2, V)
D, THINGS, WAYS = 48, 12, 3
CONFIG = FlamingoConfig(
    vision=VisionConfig(image_size=8, patch_size=4, d=D, n_layers=1, n_heads=2),  # not used: media are features
    resampler=ResamplerConfig(d=D, n_latents=2, n_layers=1, n_heads=2, d_head=16, n_time_embeddings=1, ff_mult=2),
    lm=LMConfig(V, D, n_layers=2, n_heads=3, conv_width=4, max_length=256),
    xattn_n_heads=2, xattn_d_head=16, xattn_d_ff=2 * D,
)  # fmt: skip


def draw_text(rng: random.Random, rows: int, length: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """key answer <EOC> key answer <EOC> ...: an answer carries loss if its key occurred before."""
    ids, labels = [], []
    for _ in range(rows):
        n = rng.randint(2, 6)
        keys, answers = rng.sample(WORDS, n), rng.sample(WORDS, n)
        row, known, seen = [BOS], [-100], set()
        while len(row) < length:
            i = rng.randrange(n)
            row += [keys[i], answers[i], EOC]
            known += [-100, answers[i] if i in seen else -100, -100]
            seen.add(i)
        ids.append(row[:length])
        labels.append(known[:length])
    return torch.tensor(ids), torch.tensor(labels)


def draw_documents(rng: random.Random, rows: int, shots: int, prototypes: torch.Tensor) -> tuple[Batch, torch.Tensor]:
    """Documents of `shots` shots and a query about one of their three things, and the right names of the queries."""
    ids, labels, things, answers = [], [], [], []
    for _ in range(rows):
        named = dict(zip(rng.sample(range(THINGS), WAYS), rng.sample(WORDS, WAYS)))
        shown = rng.choices(list(named), k=shots + 1)
        row, known = [BOS], [-100]
        for i, thing in enumerate(shown):
            row += [V, named[thing], EOC]  # V is the id of <image>
            known += [-100, named[thing] if thing in shown[:i] else -100, -100]
        ids.append(row)
        labels.append(known)
        things.append(shown)
        answers.append(named[shown[-1]])
    noise = torch.randn(rows, shots + 1, 1, 4, D, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    media = prototypes[torch.tensor(things)][:, :, None] + 0.5 * noise  # (B, N, 1, S, D)
    ids = torch.tensor(ids)
    return Batch(ids, torch.tensor(labels), torch.ones_like(ids, dtype=torch.bool), media), torch.tensor(answers)


def train(module: torch.nn.Module, named_parameters, steps: int, loss_of, decay: float) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(named_parameters, 4e-3, decay, gate_lr=1e-2), betas=(0.9, 0.98))
    for step in range(steps):
        set_learning_rate(optimizer, learning_rate_factor(step, 20, steps, cooldown=0.3))
        optimizer.zero_grad()
        loss_of(step).backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()


@pytest.fixture(scope="module")
def accuracy() -> dict[int, float]:
    """Number of shots -> share of right names, on 200 new documents each."""
    torch.manual_seed(0)
    prototypes = torch.randn(THINGS, 4, D, generator=torch.Generator().manual_seed(1))
    lm = LM(CONFIG.lm)
    train(lm, lm.named_parameters(), 300, lambda step: lm.loss(*draw_text(random.Random(f"text {step}"), 24)), decay=0.01)
    flamingo = Flamingo(CONFIG, lm=lm).train()

    def loss_of(step: int) -> torch.Tensor:
        return flamingo.loss(draw_documents(random.Random(f"documents {step}"), 24, 8, prototypes)[0])

    train(flamingo, flamingo.trainable_parameters(), 350, loss_of, decay=0.1)
    flamingo.eval()
    found = {}
    for shots in (0, 1, 2, 4, 8, 16):
        batch, answers = draw_documents(random.Random(f"test {shots}"), 200, shots, prototypes)
        with torch.no_grad():
            logits, _ = flamingo(batch)
        # The position of the last <image> predicts the name.
        found[shots] = float((logits[:, -3, :V].argmax(-1) == answers).float().mean())
    return found


def test_without_shots_a_made_up_name_cannot_be_known(accuracy):
    assert accuracy[0] < 0.15


def test_accuracy_rises_with_shots(accuracy):
    """Section 3: only the prompt differs. With k shots, the thing was named with probability 1 - (2/3)^k."""
    for shots, least in ((1, 0.2), (2, 0.4), (4, 0.7), (8, 0.85)):
        assert least < accuracy[shots] < 1 - (1 - 1 / WAYS) ** shots + 0.12, shots
    assert accuracy[0] < accuracy[1] < accuracy[2] < accuracy[4] < accuracy[8]


def test_more_shots_than_in_training_work_too(accuracy):
    """Section 2.3: no token attends to more than one image, so 16 shots are not new to a model that was trained with 8."""
    assert accuracy[16] > 0.9
