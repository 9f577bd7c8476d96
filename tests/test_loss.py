"""The loss in chunks against all logits at once: the same value, the same gradients, and never all of the logits."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import EOC, batch_of, close, picture, random, tiny_flamingo, tiny_lm
from torch import nn

from minflamingo import loss
from minflamingo.loss import head_loss, labelled, next_token_loss

B, L, D, V = 3, 7, 6, 11
LABELS = torch.randint(0, V, (B, L), generator=torch.Generator().manual_seed(0))
LABELS[:, 0], LABELS[0, 3:5], LABELS[1, -2:] = -100, -100, -100
CHUNKS = {"one chunk": 2**24, "chunks of 4 rows": 4 * V + 3, "a row at a time": 1}


@pytest.fixture(params=CHUNKS.values(), ids=CHUNKS)
def chunk(request, monkeypatch) -> int:
    monkeypatch.setattr(loss, "CHUNK", request.param)
    return request.param


def head_of(kind: str) -> nn.Linear:
    head = nn.Linear(D, V, bias="bias" in kind)
    with torch.no_grad():
        for i, p in enumerate(head.parameters()):
            p.copy_(random(*p.shape, seed=10 + i))
    return head.requires_grad_("frozen" not in kind)


def both(head: nn.Linear, hidden: torch.Tensor, labels: torch.Tensor):
    """Loss and gradients of hidden and head: of all logits, and of `head_loss`. The loss is used three times over."""
    found = []
    for fast in (False, True):
        h = hidden.clone().requires_grad_()
        trained = [p for p in head.parameters() if p.requires_grad]
        if fast:
            at, targets = labelled(labels)
            value = head_loss(head, trained, h[at], targets)
        else:
            value = next_token_loss(head(h), labels)
        found.append((value.detach(), *torch.autograd.grad(3 * value, [h, *trained])))
    return found


def test_labelled_says_which_position_predicts_which_label():
    """The docstring's example: [−100, 5, 7, −100] → 5 from position 0 and 7 from position 1; a first label is nobody's."""
    at, targets = labelled(torch.tensor([[-100, 5, 7, -100], [4, -100, -100, 9]]))
    assert at.tolist() == [[True, True, False, False], [False, False, True, False]] and targets.tolist() == [5, 7, 9]


@pytest.mark.parametrize("kind", ["frozen", "frozen with bias", "trained", "trained with bias"])
def test_the_loss_in_chunks_is_the_loss_of_all_logits_with_its_gradients(chunk, kind):
    """§2.4: the mean negative log-likelihood of the labelled tokens, whoever of hidden states and head learns."""
    (expected, *theirs), (value, *ours) = both(head_of(kind), random(B, L, D, seed=1), LABELS)
    assert close(value, expected, 1e-6) and expected > 1
    assert len(ours) == {"frozen": 1, "frozen with bias": 1, "trained": 2, "trained with bias": 3}[kind]
    assert all(close(a, b, 1e-6) for a, b in zip(ours, theirs, strict=True)) and all(g.any() for g in ours)


def test_the_head_alone_may_learn(chunk):
    """Hidden states without a gradient: features computed beforehand."""
    head, hidden = head_of("trained with bias"), random(B, L, D, seed=1)
    at, targets = labelled(LABELS)
    ours = torch.autograd.grad(head_loss(head, list(head.parameters()), hidden[at], targets), list(head.parameters()))
    theirs = torch.autograd.grad(next_token_loss(head(hidden), LABELS), list(head.parameters()))
    assert all(close(a, b, 1e-6) for a, b in zip(ours, theirs, strict=True))


def test_hidden_states_in_bfloat16_have_a_loss_in_fp32(chunk):
    """The softmax over 50,000 logits is not for 8 bits of mantissa: the same as the plain loss of the same logits."""
    head, hidden = head_of("trained").bfloat16(), random(B, L, D, seed=1).bfloat16()
    (expected, *theirs), (value, *ours) = both(head, hidden, LABELS)
    assert value.dtype == torch.float32 and all(g.dtype == torch.bfloat16 for g in ours)
    assert close(value, expected, 1e-6)
    assert all(close(a, b, 0.02 * float(b.abs().max())) for a, b in zip(ours, theirs, strict=True))


def test_no_label_at_all_is_zero_with_gradients_of_zero(chunk):
    """Not NaN: a batch whose text is all unscored must not poison the run."""
    (expected, *_), (value, *ours) = both(head_of("trained"), random(B, L, D, seed=1), torch.full_like(LABELS, -100))
    assert value == expected == 0 and not any(g.any() for g in ours)


def test_all_logits_are_never_there_at_once(monkeypatch):
    """14 predicted tokens in chunks of 4 rows: head and softmax see 4, 4, 4 and 2 rows of logits, never more."""
    monkeypatch.setattr(loss, "CHUNK", 4 * V + 3)
    head, seen = head_of("trained"), []
    head.register_forward_hook(lambda _m, x, y: seen.append(len(y)))
    at, targets = labelled(LABELS)
    assert len(targets) == 14
    with mock.patch.object(F, "cross_entropy", side_effect=F.cross_entropy) as softmax:
        head_loss(head, [head.weight], random(B, L, D, seed=1)[at].requires_grad_(), targets).backward()
    assert [len(call.args[0]) for call in softmax.call_args_list] == [4, 4, 4, 2]
    assert seen == [1, 4, 4, 4, 2]  # the first row asks how large the vocabulary is


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_takes_the_loss_and_no_gradients(chunk, mode):
    """Also when the head could learn: then finding gradients would be two thirds of the work."""
    head, (at, targets) = head_of("trained with bias"), labelled(LABELS)
    with mode(), mock.patch("torch.autograd.grad", side_effect=AssertionError("nobody asked")):
        hidden = random(B, L, D, seed=1)
        value = head_loss(head, list(head.parameters()), hidden[at], targets)
        assert close(value, next_token_loss(head(hidden), LABELS), 1e-6) and not value.requires_grad


@pytest.mark.parametrize("family", ["gpt2", "toy", "head_norm"])
def test_a_language_model_learns_the_same_in_chunks(chunk, family):
    """gpt2 and toy tie the head to the embedding, which has gradients from both ends; the third has a head with a bias."""
    ids = torch.randint(0, V, (B, L), generator=torch.Generator().manual_seed(1))
    grads = []
    for fast in (False, True):
        lm = tiny_lm(family, tied_head=family != "head_norm")
        value = lm.loss(ids, LABELS) if fast else next_token_loss(lm(lm.embed(ids))[0], LABELS)
        value.backward()
        grads.append({"loss": value.detach()} | {name: p.grad for name, p in lm.named_parameters()})
    plain, ours = grads
    assert ("head.weight" in plain) == (family == "head_norm")
    assert all(close(ours[name], plain[name]) and plain[name].any() for name in plain)


@pytest.mark.parametrize("new_head", [None, "own", "tied"])
def test_a_flamingo_learns_the_same_in_chunks(chunk, new_head):
    """`flamingo.loss` against the loss of `forward`; the head of new tokens learns, tied to their embedding or not."""
    batch = batch_of([picture(1), "ab", EOC, picture(2), "cde"], ["f", picture(3), "g"])
    grads = []
    for fast in (False, True):
        flamingo = tiny_flamingo(new_head=new_head)
        value = flamingo.loss(batch) if fast else flamingo(batch)[1]
        value.backward()
        grads.append({"loss": value.detach()} | {name: p.grad for name, p in flamingo.bridge_parameters()})
    plain, ours = grads
    assert ("new_head.weight" in plain) == (new_head == "own")
    assert all(close(ours[name], plain[name]) for name in plain)


def test_mixed_precision_gives_the_same_gradients_in_chunks(monkeypatch):
    """Autocast keeps a copy of the weights in bfloat16: each chunk's gradient must find its way through it."""
    grads, (at, targets) = [], labelled(LABELS)
    for size in (2**24, 4 * V):
        monkeypatch.setattr(loss, "CHUNK", size)
        head, hidden = head_of("trained with bias"), random(B, L, D, seed=1).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = head_loss(head, list(head.parameters()), hidden[at], targets)
        grads.append((value.detach(), *torch.autograd.grad(value, [hidden, *head.parameters()])))
    assert all(close(a, b, 0.02 * float(a.abs().max())) and a.any() for a, b in zip(*grads, strict=True))
