"""In-context learning happens: a small Flamingo, trained here from nothing, learns names that exist only in its prompt.

The world is reduced to what in-context learning needs. An "image" is the feature vector of one of 12 things, plus noise. A
document gives made-up names to three things, and the names are different in every document:

    <BOS> <image> f <EOC> <image> b <EOC> <image> f <EOC> <image> -> ?

The LM is first trained on text alone, to look up what followed the same token earlier. Then it is frozen, and Flamingo must
learn to use images as keys for this lookup. Evaluation uses the same things in new documents.
"""

import random
from itertools import product

import pytest
import torch

from minflamingo import LM, Batch, Flamingo, FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig
from minflamingo.training.optim import Muon, learning_rate_factor, parameter_groups, set_learning_rate

V, BOS, EOC = 44, 0, 1  # 42 tokens are words: names in documents, keys and answers in text
WORDS = range(2, V)
D, THINGS, WAYS = 48, 12, 3
SEED = 0
PROTOTYPES = torch.randn(THINGS, 4, D, generator=torch.Generator().manual_seed(SEED))
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


def draw_documents(rng: random.Random, rows: int, shots: int, noise: float = 0.0) -> tuple[Batch, torch.Tensor]:
    """Documents of `shots` shots and a query about one of their three things, and the right names of the queries.

    noise: this share of the shots has the name of another thing.
    """
    ids, labels, things, answers = [], [], [], []
    for _ in range(rows):
        named = dict(zip(rng.sample(range(THINGS), WAYS), rng.sample(WORDS, WAYS)))
        shown = rng.choices(list(named), k=shots + 1)
        others = [rng.choice([name for name in named.values() if name != named[thing]]) for thing in shown]
        names = [other if rng.random() < noise else named[thing] for thing, other in zip(shown[:-1], others)]
        names.append(named[shown[-1]])
        row, known = [BOS], [-100]
        for i, name in enumerate(names):
            row += [V, name, EOC]  # V is the id of <image>
            known += [-100, name if name in names[:i] else -100, -100]
        ids.append(row)
        labels.append(known)
        things.append(shown)
        answers.append(names[-1])
    blur = torch.randn(rows, shots + 1, 1, 4, D, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    media = PROTOTYPES[torch.tensor(things)][:, :, None] + 0.5 * blur  # (B, N, 1, S, D)
    ids = torch.tensor(ids)
    return Batch(ids, torch.tensor(labels), torch.ones_like(ids, dtype=torch.bool), media), torch.tensor(answers)


def train(named_parameters, loss_of, decay: float, data: str, steps: int = 150) -> None:
    optimizer = Muon(parameter_groups(named_parameters, 8e-3, decay, gate_lr=2e-2), betas=(0.9, 0.98))
    for step in range(steps):
        set_learning_rate(optimizer, learning_rate_factor(step, 20, steps, cooldown=0.3))
        optimizer.zero_grad()
        loss_of(random.Random(f"{SEED} {data} {step}")).backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()


@pytest.fixture(scope="module")
def accuracy() -> dict[float, dict[int, float]]:
    """Share of noise -> number of shots -> share of right names, on 300 new documents each."""
    torch.manual_seed(SEED)
    lm = LM(CONFIG.lm)
    train(lm.named_parameters(), lambda rng: lm.loss(*draw_text(rng, 24)), decay=0.01, data="text")
    flamingo = Flamingo(CONFIG, lm=lm).train()
    parameters = flamingo.trainable_parameters()
    train(parameters, lambda rng: flamingo.loss(draw_documents(rng, 24, 8)[0]), decay=0.1, data="documents")
    flamingo.eval()
    found = {0.0: {}, 0.25: {}}
    for noise, shots in product(found, (0, 1, 2, 4, 8, 16)):
        batch, answers = draw_documents(random.Random(f"{SEED} test {shots}"), 300, shots, noise)
        with torch.no_grad():
            logits, _ = flamingo(batch)
        # The position of the last <image> predicts the name.
        found[noise][shots] = float((logits[:, -3, :V].argmax(-1) == answers).float().mean())
    return found


def test_accuracy_rises_with_shots(accuracy):
    """Section 3: only the prompt differs. Without shots a made-up name cannot be known. k shots have it with 1 - (2/3)^k."""
    found = accuracy[0.0]
    assert found[0] < 0.1
    for shots, least in ((1, 0.25), (2, 0.45), (4, 0.7), (8, 0.9)):
        assert least < found[shots] < 1 - (1 - 1 / WAYS) ** shots + 0.12, shots
    assert found[0] < found[1] < found[2] < found[4] < found[8]


def test_more_shots_than_in_training_work_too(accuracy):
    """Section 2.3: no token attends to more than one image, so 16 shots are not new to a model that was trained with 8."""
    assert accuracy[0.0][16] > 0.95


def test_more_shots_help_against_wrong_names(accuracy):
    """A quarter of the names is wrong, which no training document has. Later shots correct earlier ones."""
    clean, noisy = accuracy[0.0], accuracy[0.25]
    assert noisy[1] < noisy[2] < noisy[4] < noisy[16] < clean[16]
    assert noisy[16] > noisy[2] + 0.15
