"""The toy world: what the worlds promise, what is held out, what the library knows, and that its README tells the truth."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch

from data_toy import make_sample, pairs, tasks, worlds
from data_toy.album import SHARES, Album, draw_album, picture_scene
from data_toy.draw import draw_video
from data_toy.library import SHELVES, listed, naming_page, nonsense, reading
from data_toy.words import DASH, attributes, caption, fact, questions, toy_tokenizer, vocabulary
from data_toy.world import (
    COLOURS,
    COUNTS,
    CREATURES,
    DIGITS,
    DIRECTIONS,
    HELD_OUT_CREATURES,
    HELD_OUT_OPERANDS,
    HOMES,
    MADE_UP_NAMES,
    OPERATORS,
    PLACES,
    RELATIONS,
    REVERSED,
    SHAPES,
    SIGN_WORDS,
    UNPICTURED,
    Scene,
    Video,
    held_out,
    held_out_operands,
)
from minflamingo.data.images import ImagePreparation
from minflamingo.data.readers import JsonlDataset
from minflamingo.data.sample import EOC, Sample, Unscored, collate, is_medium, lay_out
from minflamingo.tokenizer import pieces_of

TOKENIZER = toy_tokenizer()
WORLDS = make_sample.WORLDS
README = (make_sample.FOLDER.parent / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def album() -> Album:
    return draw_album(1500, seed=0)


@pytest.fixture(scope="module")
def exam() -> Album:
    return draw_album(1500, seed=0, split="test")


def rows(world, album: Album, times: int = 100, n: int = 9, **options) -> list[list[worlds.Shot]]:
    return [world(album, random.Random(seed), n, **options) for seed in range(times)]


def ends(piece: object) -> bool:
    """Is this an end of chunk, scored or not?"""
    return (piece.text if isinstance(piece, Unscored) else piece) is EOC


def split_after(pieces: list, last) -> list[list]:
    """A page cut behind each piece that is a `last` one; nothing may be left over."""
    chunks = [[]]
    for piece in pieces:
        chunks[-1].append(piece)
        if last(piece):
            chunks.append([])
    assert chunks.pop() == []
    return chunks


def text_of(sample: Sample) -> str:
    """All that is said on a page, scored or not; an end of chunk is a line break."""
    said = (p.text if isinstance(p, Unscored) else p for p in sample.pieces)
    return "".join("\n" if p is EOC else p for p in said if not is_medium(p))


# ------------------------------------------------------------------------------------------------------ what is held out


def every_scene() -> dict[str, list[Scene | Video]]:
    """All scenes of each kind that `any_scene` may draw, creatures apart. Rows are many: 112,896."""
    things = list(product(COLOURS, SHAPES))
    couples = [(a, b) for a, b in product(things, things) if a[0] != b[0] and a[1] != b[1]]
    trios = (tuple(zip(c, s)) for c in permutations(COLOURS, 3) for s in permutations(SHAPES, 3))
    ends = ("top", "bottom")
    operands = list(product(DIGITS, OPERATORS, DIGITS))
    return {
        "scenes of things": [
            Scene("things", colour=c, shape=s, count=n, place=p) for (c, s), n, p in product(things, COUNTS, PLACES)
        ],
        "signs": [Scene("sign", colour=c, word=w, place=p) for c, w, p in product(COLOURS, SIGN_WORDS, ends)],
        "pairs": [Scene("pair", things=p, relation=r) for p, r in product(couples, RELATIONS)],
        "rows": [Scene("row", things=trio) for trio in trios],
        "films": [Video(*p, d) for p, d in product(couples, DIRECTIONS)],
        "sums": [Scene("sum", colour="red", operands=o, place="top") for o in operands],
    }


ALL_SCENES = every_scene()


@pytest.mark.parametrize("split", ["train", "test"])
def test_held_out_scenes_are_in_every_test_album_and_in_no_training_album(split):
    """The pictures of the exam have never been seen: neither by the eye nor by the bridge (creatures apart)."""
    rng = random.Random(0)
    drawn = [picture_scene(rng, kind, split) for kind in (*SHARES, "number") for _ in range(200)]
    for scene in (*drawn, *draw_album(300, seed=1, split=split).scenes):
        if isinstance(scene, Video) or scene.kind != "creature":
            assert held_out(scene) == (split == "test"), scene
        else:
            assert not held_out(scene)


@pytest.mark.parametrize("hard", [False, True])
def test_the_eye_is_shown_nothing_that_is_held_out(hard, monkeypatch):
    """Contrastive lessons draw pictures of their own; whatever they draw may be drawn."""
    drawn = []
    monkeypatch.setattr(pairs, "draw", lambda scene, rng: drawn.append(scene) or np.zeros((48, 48, 3), np.uint8))
    for seed in range(10):
        pixels, captions = pairs.contrastive_batch(random.Random(seed), 100, TOKENIZER, hard)
        assert len(pixels) == len(captions) == 100
    assert len(drawn) == 1000 and not any(map(held_out, drawn))


@pytest.mark.parametrize("kind", pairs.KINDS)
def test_look_alikes_differ_in_one_fact_or_have_two_exchanged(kind):
    """Hard negatives: all else is equal. Things of one picture keep different colours and different shapes."""
    rng, changed = random.Random(0), 0
    for _ in range(200):
        scene = picture_scene(rng, kind)
        other = pairs.one_step_away(rng, scene)
        assert other.kind == scene.kind
        changed += other != scene  # 7x7 the other way round is 7x7
        if scene.operands:
            differ = [a != b for a, b in zip(scene.operands, other.operands, strict=True)]
            assert sum(differ) <= 1 or other.operands == scene.operands[::-1]
            other = replace(other, operands=scene.operands)
        elif scene.things:
            parts = [list(zip(*s.things, strict=True)) for s in (scene, other)]
            assert all(len(set(part)) == len(scene.things) for part in parts[1])
            new = [len(set(b) - set(a)) for a, b in zip(*parts)]
            moved = [sum(x != y for x, y in zip(a, b)) for a, b in zip(*parts)]
            assert (sum(new) == 1 and sum(moved) == 1) or (sum(new) == 0 and set(moved) <= {0, 2})
            assert scene.relation == other.relation or sum(moved) == 0
            other = replace(other, things=scene.things, relation=scene.relation)
        else:
            facts = [f for f in vars(scene) if getattr(scene, f) != getattr(other, f)]
            assert len(facts) == 1 and getattr(other, facts[0]) in pairs.FACTS[scene.kind][facts[0]]
            other = replace(other, **{facts[0]: getattr(scene, facts[0])})
        assert other == scene
    assert changed > 150


def test_what_is_held_out_is_a_combination_and_never_a_word_by_itself():
    """Each colour, shape, word, place, count, figure and direction is seen in training, so it can be learned."""
    for name, scenes in ALL_SCENES.items():
        said = {True: set(), False: set()}
        for scene in scenes:
            said[held_out(scene)].update(scene.operands if name == "sums" else caption(scene).split())
        assert said[True] <= said[False] and said[True]


def test_a_sum_is_held_out_in_either_order_and_with_either_sign():
    """Who has seen 3+6 has been shown the figures of 6x3."""
    for a, b, op in product(DIGITS, DIGITS, OPERATORS):
        pictures = [Scene("sum", colour=c, operands=o, place="top") for c in COLOURS for o in ((a, op, b), (b, op, a))]
        assert {held_out(scene) for scene in pictures} == {{a, b} in HELD_OUT_OPERANDS}


def test_made_up_names_of_the_exam_stand_on_no_training_page(album, exam):
    """`binding` with held-out names: a binding cannot have been learned by heart."""
    for split, pictures in (("train", album), ("test", exam)):
        shots = [shot for row in rows(worlds.binding, pictures, split=split) for shot in row]
        names = {choice.strip(" .") for shot in shots for choice in shot.choices}
        assert names <= set(MADE_UP_NAMES[split]) and len(names) > 100
    assert not set(MADE_UP_NAMES["train"]) & set(MADE_UP_NAMES["test"])


def test_a_made_up_name_is_no_word_of_the_world():
    """A creature called "red", or a name of the exam that the library knows as a bus, would be no new name."""
    words = {word.strip().lower() for word in vocabulary()}
    assert not words & {name for names in MADE_UP_NAMES.values() for name in names}


def test_the_fact_of_a_held_out_creature_is_told_nowhere_in_training(album):
    """The home of a flamingo is known from the library alone; what follows its name here carries no loss.

    Its picture may stand beside what is said of another animal, but never beside its own home's name.
    """
    seen = Counter()
    for row in rows(worlds.naming, album):
        sample = worlds.page(row, album)
        for shot, end in zip(row, filter(ends, sample.pieces), strict=True):
            shown = album.scenes[shot.medium].name if shot.known else None  # else: text about what no picture shows
            said = shot.answer.split(".")[0].strip()
            assert said == shown if shot.known else said in UNPICTURED
            hidden = said in HELD_OUT_CREATURES
            told = shot.text + (shot.aside[1] if shot.aside else "")  # on some pages another picture stands between
            assert told == f"This is a {said}." + ("" if hidden else fact(said))
            beside = [shot.medium] * (not shot.known) + [i for i, _ in [shot.aside or (None, "")] if i is not None]
            assert not any(album.scenes[i].name in HOMES and HOMES[album.scenes[i].name] in told for i in beside)
            seen["a held-out one beside another's"] += any(album.scenes[i].name in HELD_OUT_CREATURES for i in beside)
            assert end == Unscored(EOC) if hidden else end is EOC
            seen["hidden" if hidden else "told" if shot.known else "unpictured"] += 1
    assert min(seen.values()) > 20 and len(seen) == 4


def test_the_exam_asks_for_the_home_of_a_held_out_creature_and_never_shows_one(exam):
    """The support shows other creatures with their facts: the form is given, the fact is not."""
    for *support, query in rows(worlds.naming, exam, split="test"):
        name = exam.scenes[query.medium].name
        assert name in HELD_OUT_CREATURES and query.answer == f" {name}." + fact(name)
        for shot in support:
            shown = exam.scenes[shot.medium].name
            assert shown not in HELD_OUT_CREATURES and shot.answer == f" {shown}." + fact(shown)


# ------------------------------------------------------------------------------------------------------------ the worlds


@pytest.mark.parametrize("name", WORLDS)
def test_the_same_seed_gives_the_same_row_and_another_seed_another(name, album):
    """All chance comes from the `rng` that is handed in."""
    world = WORLDS[name]
    assert world(album, random.Random(1), 8) == world(album, random.Random(1), 8) != world(album, random.Random(2), 8)
    assert len(world(album, random.Random(1), 8)) == 8


def test_the_same_seed_gives_the_same_album_and_another_split_or_seed_another():
    """To the last pixel."""
    one, again = draw_album(60, seed=3), draw_album(60, seed=3)
    assert one.scenes == again.scenes and all(map(np.array_equal, one.media, again.media))
    assert one.scenes != draw_album(60, seed=4).scenes != draw_album(60, seed=3, split="test").scenes


@pytest.mark.parametrize("ways", [2, 3, 4])
def test_each_round_of_binding_shows_every_name_once(album, ways):
    """k shots of n ways are k/n rounds; so the query's name was shown, and how often names come gives nothing away."""
    for row in rows(worlds.binding, album, n=2 * ways + 1, ways=ways):
        for start in (0, ways):
            answers = [shot.answer for shot in row[start : start + ways]]
            assert sorted(answers) == sorted(row[0].choices) and len(set(answers)) == ways
        assert all(shot.answer in shot.choices and shot.choices == row[0].choices for shot in row)
        assert [shot.known for shot in row] == [False] * ways + [True] * (ways + 1)


def test_a_name_means_one_thing_on_its_page_and_another_on_the_next(album):
    """Colour and shape are bound to the name, and no two things of a page share a colour or a shape."""
    meanings = Counter()
    for row in rows(worlds.binding, album):
        meant = {}
        for shot in row:
            scene = album.scenes[shot.medium]
            assert meant.setdefault(shot.answer, (scene.colour, scene.shape)) == (scene.colour, scene.shape)
        for part in zip(*meant.values()):
            assert len(set(part)) == len(part)
        meanings.update(meant.values())
    assert len(meanings) > 40


def test_nobody_is_taught_to_guess_a_name_at_its_first_mention(album):
    """The first mention of a name carries no loss; later ones do."""
    row = worlds.binding(album, random.Random(0), 7, ways=3)
    pieces = worlds.page(row, album).pieces
    unscored = [p.text for p in pieces if isinstance(p, Unscored) and p.text != "This is a"]
    assert unscored == [shot.answer for shot in row[:3]]


@pytest.mark.parametrize("attribute", ["colour", "shape", "count", "place", "word", "sum"])
def test_all_answers_of_a_task_are_of_the_attribute_that_is_asked(album, attribute):
    """The prompt is always the same, so only the other shots can tell."""
    for row in rows(worlds.task, album, times=30, attribute=attribute):
        assert {shot.prompt for shot in row} == {"Output:"}
        assert all(shot.answer == " " + attributes(album.scenes[shot.medium])[attribute] for shot in row)


def test_a_task_asks_for_one_attribute_on_a_page_and_for_each_on_some_page(album):
    """Which one it is the page keeps to itself."""
    found = Counter()
    for row in rows(worlds.task, album, n=20):
        fitting = [{a for a, v in attributes(album.scenes[s.medium]).items() if " " + v == s.answer} for s in row]
        (attribute,) = set.intersection(*fitting)
        found[attribute] += 1
    assert set(found) == {"colour", "shape", "count", "place", "word", "sum"}


@pytest.mark.parametrize("name", ["vqa", "ocr", "arithmetic", "video", "caption"])
def test_the_answer_is_what_the_picture_shows(name, album):
    """Each answer, worked out from the facts of the scene a second time."""
    for row in rows(WORLDS[name], album, times=30):
        for shot in row:
            scene = album.scenes[shot.medium]
            if name == "vqa":
                asked = re.fullmatch(r"Question: (.*) Answer:", shot.prompt)[1]
                assert (asked, shot.answer[1:]) in questions(scene)
            elif name == "ocr":
                assert shot.answer == f" {scene.word}"
            elif name == "arithmetic":
                a, op, b = scene.operands
                assert shot.answer == f" {a}{op}{b}={a * b if op == 'x' else a + b}"
            else:
                assert shot.answer == " " + caption(scene) and isinstance(scene, Video) == (name == "video")


def test_a_question_has_one_answer():
    """Nothing is asked of a scene twice with different answers."""
    for kind in ("scenes of things", "pairs", "signs"):
        for scene in ALL_SCENES[kind]:
            asked = [question for question, _ in questions(scene)]
            assert asked and len(set(asked)) == len(asked)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_film_played_backwards_has_the_opposite_answer(direction):
    """Pixel for pixel the same frames in another order (T > 1): who ignores time cannot tell."""
    forth, back = (Video(("red", "circle"), ("blue", "star"), d) for d in (direction, REVERSED[direction]))
    films = [draw_video(scene, random.Random(5)) for scene in (forth, back)]
    assert np.array_equal(films[0][::-1], films[1])
    answers = [worlds.video(Album([s], [f]), random.Random(0), 1)[0].answer for s, f in zip((forth, back), films)]
    assert answers == [f" the red circle moves {direction}", f" the red circle moves {REVERSED[direction]}"]


# ------------------------------------------------------------------------------------------------------ pages and albums


@pytest.mark.parametrize("name", WORLDS)
def test_a_text_stands_behind_its_image_or_with_attend_next_before_it(name, album):
    """The paper's p_next (§2.4 and the ablation of the data): which image a text belongs to is a matter of layout."""
    row = WORLDS[name](album, random.Random(0), 4)
    for attend_next in (False, True):
        sample = worlds.page(row, album, attend_next)
        assert sample.attend_next == attend_next and len(sample.media) == 4
        chunks = split_after(sample.pieces, is_medium if attend_next else ends)
        for shot, chunk in zip(row, chunks, strict=True):
            assert chunk[-1 if attend_next else 0] is album.media[shot.medium]
            assert text_of(Sample(chunk)) == shot.text + "\n"


def test_several_questions_about_one_picture_stand_behind_it_in_chunks_of_their_own(album):
    """All look at that picture. Where text stands before its image, only the first is kept: the next would look further on."""
    for seed in range(20):
        row = worlds.vqa(album, random.Random(seed), 4, at_once=2)
        asked = [shot.medium for shot in row]
        assert sum(i is not None for i in asked) == 4 < len(row) <= 8 and asked[0] is not None
        for attend_next in (False, True):
            sample = worlds.page(row, album, attend_next)
            assert len(sample.media) == 4 and sum(map(ends, sample.pieces)) == (4 if attend_next else len(row))
        shown = None
        for shot in row:
            shown = album.scenes[shot.medium] if shot.medium is not None else shown
            assert (shot.prompt, shot.answer) in [(f"Question: {q} Answer:", f" {a}") for q, a in questions(shown)]


def test_a_fact_is_scored_only_where_the_picture_beside_it_shows_something_else(album):
    """Beside its own picture there would be a shortcut from what is seen to what is known."""
    scene_of = {id(medium): scene for scene, medium in zip(album.scenes, album.media)}
    beside_another, beside_its_own = 0, 0
    for row in rows(worlds.naming, album):
        shown = None
        for piece in worlds.page(row, album).pieces:
            if is_medium(piece):
                shown = scene_of[id(piece)]
                continue
            text = piece.text if isinstance(piece, Unscored) else piece
            if isinstance(text, str) and "mainly found" in text:
                home = text.split()[-1].rstrip(".")
                own = shown.kind == "creature" and HOMES[shown.name] == home
                assert own == isinstance(piece, Unscored)
                beside_its_own += isinstance(piece, Unscored)
                beside_another += isinstance(piece, str) and not own
    assert min(beside_another, beside_its_own) > 100


def test_sums_in_text_beside_other_pictures_are_sums_that_may_be_shown(album):
    """What 3x4 comes to is asked of the bridge nowhere, with or without its picture."""
    shown = []
    for row in rows(worlds.sums_beside, album, times=20):
        for shot in row:
            a, operator, b = re.fullmatch(r"Output: (\d)([+x])(\d)=", shot.prompt).groups()
            assert shot.answer == str(int(a) + int(b) if operator == "+" else int(a) * int(b))
            assert not held_out_operands(int(a), int(b))
            shown.append(attributes(album.scenes[shot.medium]).get("sum", "") == f"{a}{operator}{b}={shot.answer}")
    assert sum(shown) < 0.02 * len(shown)


def test_only_answers_are_scored(album):
    """What will be asked of a picture cannot be told from it; labels stand on answers and the ends of chunks."""
    row = worlds.vqa(album, random.Random(0), 3)
    scored = [p for p in worlds.page(row, album).pieces if isinstance(p, str)]
    assert scored == [shot.answer for shot in row]


def test_an_encoded_album_keeps_order_and_lengths(album):
    """The eye's features (T, S, D) stand where the pixels stood, whatever the size of the chunks it is fed."""
    seen = []

    def eye(pixels: np.ndarray) -> torch.Tensor:
        seen.append(len(pixels))
        return torch.from_numpy(pixels.reshape(len(pixels), 4, -1).astype(np.float32).mean(2))[..., None]

    encoded = album.encode(eye)
    assert encoded.scenes == album.scenes and encoded.ids == album.ids and max(seen) <= 256
    for pixels, features in zip(album.media, encoded.media, strict=True):
        assert torch.equal(features, eye(pixels))


def test_pictures_are_found_by_what_they_show(album):
    """Every key of `ids` leads to pictures of that sort, and to all of them."""
    for kind, things in (("kind", "video"), ("kind", "pair"), ("attribute", "word"), ("single", ("red", "star"))):
        wanted = {
            "video": lambda s: isinstance(s, Video),
            "pair": lambda s: isinstance(s, Scene) and s.kind == "pair",
            "word": lambda s: isinstance(s, Scene) and s.word is not None,
            ("red", "star"): lambda s: isinstance(s, Scene) and (s.colour, s.shape, s.count) == ("red", "star", 1),
        }[things]
        assert album.ids[kind, things] == [i for i, scene in enumerate(album.scenes) if wanted(scene)] != []


@pytest.mark.parametrize("task", tasks.ROWS)
def test_a_row_of_the_exam_is_the_same_for_every_model(task, exam):
    """Same seed, same cases; the support has as many examples as were asked for."""
    one, again = (tasks.queries(task, exam, 3, seed=0, support=8) for _ in range(2))
    assert [(q.prompt, q.answer) for q in one] == [(q.prompt, q.answer) for q in again]
    assert [[text for _, text in q.support] for q in one] == [[text for _, text in q.support] for q in again]
    assert {len(q.support) for q in one} == {8}


# --------------------------------------------------------------------------------------------------- words and the library


def test_everything_the_world_says_is_made_of_whole_words():
    """Captions, questions, answers and facts never fall back to bytes; only made-up names are spelled."""
    said = {f"This is a {name}.{fact(name)}" for name in CREATURES} | {"Output:"}
    creatures = [Scene("creature", name=name) for name in CREATURES]
    for scene in (*creatures, *(scene for scenes in ALL_SCENES.values() for scene in scenes[:20_000])):
        said.add(" " + caption(scene))
        if isinstance(scene, Scene):
            said |= {f" {answer}" for answer in attributes(scene).values()}
            said |= {f"Question: {question} Answer: {answer}" for question, answer in questions(scene)}
    pieces = {piece for text in said for piece in pieces_of(text)}
    assert pieces <= set(TOKENIZER.words), sorted(pieces - set(TOKENIZER.words))


def test_the_library_shows_no_image_and_knows_no_name_of_the_exam():
    """Text alone: the language model is trained before it ever meets a picture (§2.3 freezes it then)."""
    names = set(MADE_UP_NAMES["test"])
    rng = random.Random(0)
    pages = [reading(rng, 12) for _ in range(400)] + [nonsense(rng, TOKENIZER.words, 5, 100) for _ in range(40)]
    for page in pages:
        assert not page.media
        ids = lay_out(page, TOKENIZER).ids
        assert TOKENIZER.image_id not in ids and "<image>" not in text_of(page)
        assert not names & set(re.findall("[a-z]+", text_of(page).lower()))


def test_the_library_tells_what_pictures_never_show():
    """Facts of the held-out creatures and held-out sums: the tongue knows, the pictures do not say."""
    rng = random.Random(0)
    text = "\n".join(text_of(reading(rng, 30)) for _ in range(400))
    for name in HELD_OUT_CREATURES:
        assert f"This is a {name}.{fact(name)}" in text
    for a, b in map(sorted, HELD_OUT_OPERANDS):
        assert f"Output: {a}x{b}={a * b}" in text and f"Output: {a}+{b}={a + b}" in text


def test_nonsense_asks_only_for_what_was_said_before():
    """An answer is scored from its key's second mention on, so nothing but looking it up can lower the loss."""
    for seed in range(50):
        answers = {}
        for key, *rest, _ in split_after(nonsense(random.Random(seed), TOKENIZER.words, 3, 120).pieces, ends):
            words = [p if isinstance(p, str) else p.text for p in rest]
            scored = any(isinstance(p, str) for p in rest)
            assert scored == (key.text in answers) and answers.setdefault(key.text, words) == words


@pytest.mark.parametrize("shelf", SHELVES, ids=lambda shelf: shelf.__name__)
def test_a_page_of_the_library_has_as_many_chunks_as_asked_for(shelf):
    """Every chunk ends."""
    page = shelf(random.Random(0), 7)
    assert sum(p is EOC for p in page.pieces) == 7 and page.pieces[-1] is EOC


@pytest.mark.parametrize("shelf", SHELVES, ids=lambda shelf: shelf.__name__)
def test_a_list_is_the_page_with_a_mark_before_each_entry(shelf):
    """Unscored: nobody is to foretell it. All else is as it was. On half of the lists all marks are dashes."""
    page, dashes = shelf(random.Random(0), 7), Counter()
    for seed in range(60):
        entries = [list(group) for group in split_after(listed(page, random.Random(seed)).pieces, ends)]
        assert len(entries) == 7
        assert all(isinstance(entry[0], Unscored) and entry[0].text in (DASH, *vocabulary()) for entry in entries)
        assert [piece for entry in entries for piece in entry[1:]] == page.pieces
        dashes[sum(entry[0] == Unscored(DASH) for entry in entries)] += 1
    assert 18 < dashes[7] < 42


def test_half_of_the_library_are_lists():
    """The other half of the pages has no dash at all."""
    rng = random.Random(0)
    pages = [reading(rng, 12).pieces for _ in range(300)]
    dashes = Counter(pieces.count(Unscored(DASH)) for pieces in pages)
    assert 120 < dashes[0] < 180 and 45 < dashes[12] < 105
    assert set(dashes) <= set(range(13))


def test_a_home_is_scored_where_its_animal_comes_for_the_first_time():
    """What could be looked up on the page would not be remembered; on some pages animals come again, as in a prompt."""
    again = 0
    for seed in range(60):
        pieces, told = naming_page(random.Random(seed), 20).pieces, set()
        for said, home, end in zip(pieces[::3], pieces[1::3], pieces[2::3]):
            if home is EOC:  # a page of names alone
                break
            assert end is EOC and isinstance(said, Unscored)
            assert isinstance(home, Unscored) == (said.text in told)
            again += said.text in told
            told.add(said.text)
    assert again > 60


# ------------------------------------------------------------------------------------------------ the sample and the README


@pytest.fixture(scope="module")
def sample() -> dict[str, JsonlDataset]:
    return {name: JsonlDataset(make_sample.FOLDER / f"{name}.jsonl") for name in ("pairs", "videos", "pages", "text")}


def difference(one: Sample, other: Sample) -> float:
    """0 for the same pixels, at most 1 if one value in a thousand is off by one: releases of FreeType round so differently."""
    off = [np.abs(a.astype(int) - b) for a, b in zip(one.media, other.media, strict=True)]
    return max((max(o.max(), 1000 * o.mean()) for o in off), default=0)


def test_the_sample_is_written_again_the_same(tmp_path, sample, capsys):
    """Lines to the byte, pictures to the pixel. If the world has changed: delete data_toy/sample and run make_sample."""
    make_sample.main([str(tmp_path)])
    found = 0
    for name, dataset in sample.items():
        again = JsonlDataset(tmp_path / f"{name}.jsonl")
        for one, other in zip(again, dataset, strict=True):
            assert [m.shape for m in one.media] == [m.shape for m in other.media]
            found = max(found, difference(one, other))
        lines = [re.sub(r"images/\w+", "images/", d.path.read_text(encoding="utf-8")) for d in (again, dataset)]
        assert lines[0] == lines[1]
    assert found <= 1
    if found == 0:  # then the images, which are named after their pixels, have the same names too
        folders = (tmp_path, make_sample.FOLDER)
        written, kept = ({path.relative_to(folder) for path in folder.rglob("*")} for folder in folders)
        assert written == kept
        for name, dataset in sample.items():
            assert (tmp_path / f"{name}.jsonl").read_bytes() == dataset.path.read_bytes()


def test_the_sample_on_disk_is_what_was_drawn(sample):
    """Reading gives back the very samples, so nothing is lost on the way to disk."""
    for name, drawn in make_sample.draw_sample().items():
        for read, one in zip(sample[name], drawn.values(), strict=True):
            assert text_of(read) == text_of(one) and read.attend_next == one.attend_next
            assert [isinstance(p, Unscored) for p in read.pieces] == [isinstance(p, Unscored) for p in one.pieces]
            assert difference(read, one) <= 1


def test_the_sample_is_small_and_makes_batches(sample):
    """A hundred items in at most 1 MB, in the paper's shapes: (N=1, T=1), (N=1, T>1), (N>1)."""
    assert sum(path.stat().st_size for path in make_sample.FOLDER.rglob("*")) <= 1_000_000
    assert sum(map(len, sample.values())) == 100
    prepare = ImagePreparation(48)
    shapes = {}
    for name, dataset in sample.items():
        batch = collate(list(dataset), TOKENIZER, prepare)
        assert (batch.labels != -100).any(dim=1).all()
        shapes[name] = None if batch.media is None else tuple(batch.media.shape)
    assert shapes.pop("text") is None
    assert shapes == {"pairs": (40, 1, 1, 3, 48, 48), "videos": (12, 1, 4, 3, 48, 48), "pages": (24, 6, 4, 3, 48, 48)}


def test_nothing_in_the_sample_is_held_out():
    """It may be trained on."""
    assert not any(map(held_out, make_sample.small_album().scenes))


def test_the_readme_counts_what_is_held_out_correctly():
    """The numbers of the section "What is held out", counted."""
    flat = " ".join(README.split())
    for name, scenes in ALL_SCENES.items():
        assert f"{sum(map(held_out, scenes)):,} of {len(scenes):,} {name}" in flat
    train, test = len(MADE_UP_NAMES["train"]), len(MADE_UP_NAMES["test"])
    assert f"{test:,} of {train + test:,} made-up names" in flat
    assert "dak" in MADE_UP_NAMES["train"] and "such as *dak*" in flat
    assert f"{len(HELD_OUT_OPERANDS)} pairs of figures" in flat
    *others, last = HELD_OUT_CREATURES
    assert f"{len(HELD_OUT_CREATURES)} of the {len(CREATURES)} creatures: {', '.join(others)} and {last}" in flat
    assert f"{len(COLOURS)} colours, {len(SHAPES)} shapes, {len(SIGN_WORDS)} words on signs" in flat
    assert f"and {len(CREATURES)} creatures" in flat
    assert f"{len(UNPICTURED)} more animals stand in texts alone, with their homes, five in each of the same 16" in flat
    assert Counter(UNPICTURED.values()) == {home: 5 for home in HOMES.values()}


def test_the_lines_of_the_readme_are_lines_of_the_sample(sample):
    """One literal line of each kind."""
    shown = re.findall(r"```json\n(.*)\n```", README)
    assert [json.loads(line)["kind"] for line in shown] == ["pair", "video", "page", "text"]
    for line, dataset in zip(shown, sample.values()):
        ours = [other for other in dataset.path.read_text().splitlines() if json.loads(other)["id"] == json.loads(line)["id"]]
        assert [line] == ours
    counts = " ".join(README.split())
    assert "100 items in less than 1 MB: 40 pairs, 12 videos, 24 pages and 24 texts" in counts
    assert [len(dataset) for dataset in sample.values()] == [40, 12, 24, 24]


def test_the_worlds_of_the_readme_are_the_worlds(album, sample):
    """Each with a prompt and an answer of a page in the sample (of `binding`, of any page: any name for any other)."""
    table = re.findall(r"\| `(\w+)` \| .* \| `(.*)` → `(.*)` \|", README.split("## Nine benchmarks")[0])
    assert [name for name, _, _ in table] == list(WORLDS)
    for name, prompt, answer in table:
        said = {text for page in sample["pages"] for text in text_of(page).split("\n")}
        if name == "binding":
            shots = [shot for row in rows(worlds.binding, album) for shot in row]
            said = {re.sub(r"(?<= )[a-z]{3}(?=\.$)", "dak", shot.text) for shot in shots}
        assert prompt + answer in said


def test_the_recipe_of_the_readme_runs(tmp_path, sample):
    """A dataset of one's own: written, read, collated."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine").mkdir()
    scope = {"tokenizer": TOKENIZER}
    imports, use = code.split("\n\n", 1)
    exec(imports, scope)  # the README's own lines
    cat = scope["Sample"]([sample["pairs"][0].media[0], " a cat", scope["EOC"]])
    scope["write_jsonl"]([cat], tmp_path / "mine/pairs.jsonl")
    exec(use.replace('"mine/', f'"{tmp_path}/mine/'), scope)
    assert scope["batch"].media.shape == (1, 1, 1, 3, 48, 48)


def test_on_a_long_page_a_made_up_name_is_known_once_its_thing_was_shown(album):
    """Text alone does not say what a dax is: a name's first mention beside an image carries no loss, though read before."""
    for row in rows(worlds.binding, album, n=20, times=20, ways=3):
        page, shown = worlds.page(row, album, lost=[DASH] * 12), set()
        said = [p for p in page.pieces[36:] if not is_medium(p)]
        answers = [p for p in said if (p.text if isinstance(p, Unscored) else p) in row[0].choices]
        assert len(answers) == 8
        for answer in answers:
            text = answer.text if isinstance(answer, Unscored) else answer
            assert isinstance(answer, str) == (text in shown)
            shown.add(text)


def test_on_a_long_page_a_mark_holds_the_place_of_each_lost_picture(album):
    """So it has as many marks, pictures and others together, as a prompt of so many shots has pictures."""
    for row in rows(worlds.captions, album, n=20, times=5):
        pieces = worlds.page(row, album, lost=[DASH, " zoo"] * 6).pieces
        marks = [is_medium(p) or p in (Unscored(DASH), Unscored(" zoo")) for p in pieces]
        assert sum(marks) == 20 and sum(map(is_medium, pieces)) == 8


def test_films_can_give_names_to_what_moves(album):
    """The same pages as with pictures; a name belongs to the mover of its film."""
    for row in rows(worlds.binding, album, n=8, times=20, ways=2, shown="mover"):
        named = {shot.answer: album.scenes[shot.medium].mover for shot in row}
        assert len(named) == len(set(named.values()))
        assert all(album.scenes[shot.medium].mover == named[shot.answer] for shot in row)
