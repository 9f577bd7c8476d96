"""data_toy: made-up names, few-shot tasks, held-out cases, the text corpus, the mixture, the sample on disk, its README."""

import json
import random
import re
import zlib
from collections import Counter
from functools import partial
from itertools import groupby, permutations, product

import numpy as np
import pytest
import torch

from data_toy import contrastive_data, evaluation_tasks, make_sample, media_pool, mixture, shot_rows, words, world
from data_toy.contrastive_data import contrastive_batch, hard_negative
from data_toy.evaluation_tasks import TASKS
from data_toy.media_pool import MediaPool, draw_media_pool, random_scene
from data_toy.shot_rows import Shot, binding_row, noisy_row, rule_row, to_sample
from data_toy.text_corpus import corpus_text, lookup_practice, naming_text
from data_toy.words import attributes, caption, fact, questions
from data_toy.world import COLOURS, COUNTRIES, HELD_OUT_ANIMALS, TEXT_ONLY_ANIMALS, Scene, held_out, made_up_names
from minflamingo.data.images import ImagePreprocessor
from minflamingo.data.readers import JsonlDataset
from minflamingo.data.sample import EOC, NoLoss, Sample, collate, is_medium, tokenize_sample
from minflamingo.evaluation.fewshot import Query, few_shot_prompt
from minflamingo.tokenizer import split_pieces

TOKENIZER = words.toy_tokenizer()
README = (make_sample.FOLDER.parent / "README.md").read_text(encoding="utf-8")
TABLE = re.findall(r"\| `(\w+)` \| .* \| `(.*)` → `(.*)` \|", README.split("## Nine benchmarks")[0])  # task, prompt, answer
ROWS = {task: getattr(shot_rows, f"{task}_row") for task, _, _ in TABLE}
NAMED_ROWS = {
    "binding": binding_row, "random": partial(binding_row, in_rounds=False), "drawings": partial(binding_row, shown="drawing"),
    "videos": partial(binding_row, shown="mover"), "noisy": noisy_row, "rule": rule_row,
}  # fmt: skip


def numbered_pool(split: str) -> MediaPool:
    """A pool with numbers instead of pixels: `pool.scenes[medium]` is the scene that a medium shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(media_pool, "render", lambda scene, rng: None)  # takes seconds
        scenes = draw_media_pool(3000, seed=0, split=split).scenes
    return MediaPool(scenes, [np.array(i) for i in range(len(scenes))])


POOL, HELD_OUT_POOL = map(numbered_pool, ("train", "test"))
QUERIES = {task: evaluation_tasks.queries(task, HELD_OUT_POOL, 40, seed=0) for task in TASKS}
SAMPLE = {name: JsonlDataset(make_sample.FOLDER / f"{name}.jsonl") for name in ("pairs", "videos", "documents", "text")}


def rows(draw_row, times: int = 100, n: int = 9, **options) -> list[list[Shot]]:
    """Rows for training."""
    return [draw_row(POOL, random.Random(seed), n, **options) for seed in range(times)]


def content(piece: object) -> object:
    """A piece of a sample without its NoLoss."""
    return piece.text if isinstance(piece, NoLoss) else piece


def text_of(sample: Sample) -> str:
    """All text of a sample, with or without loss. EOC is a line break."""
    return "".join("\n" if p is EOC else p for p in map(content, sample.pieces) if not is_medium(p))


def chunks_of(sample: Sample) -> list[list]:
    """The pieces of each chunk, without its EOC."""
    return [list(pieces) for is_end, pieces in groupby(sample.pieces, lambda piece: content(piece) is EOC) if not is_end]


def named_part(scene: Scene) -> str | tuple[str, str]:
    """What a made-up name means: a design, the moving thing, or the only thing."""
    return scene.things[0] if scene.kind == "video" else scene.name or (scene.colour, scene.shape)


def is_test_name(name: str) -> bool:
    """One in five names, by the hash in world.py."""
    return zlib.crc32(name.lower().encode()) % 5 == 0


THINGS = list(product(COLOURS, world.SHAPES))
TWO_THINGS = [(a, b) for a, b in product(THINGS, THINGS) if a[0] != b[0] and a[1] != b[1]]
TRIPLES = product(permutations(COLOURS, 3), permutations(world.SHAPES, 3))
OPERANDS = product(world.DIGITS, world.OPERATORS, world.DIGITS)
# Every scene of each kind, except animals and drawings.
ALL_SCENES = {
    "scenes of things": [Scene("things", c, s, n, p) for (c, s), n, p in product(THINGS, world.COUNTS, world.PLACES)],
    "signs": [Scene("sign", colour=c, word=w, place=p) for c, w, p in product(COLOURS, world.SIGN_WORDS, world.HALVES)],
    "pairs": [Scene("pair", things=things, relation=relation) for things, relation in product(TWO_THINGS, world.RELATIONS)],
    "rows": [Scene("row", things=tuple(zip(colours, shapes))) for colours, shapes in TRIPLES],
    "videos": [Scene("video", things=things, direction=d) for things, d in product(TWO_THINGS, world.DIRECTIONS)],
    "sums": [Scene("sum", colour="red", operands=operands, place="top") for operands in OPERANDS],
}


def test_training_pools_show_no_held_out_scene_and_test_pools_only_these():
    """Except animals, which are never held out."""
    assert not any(map(held_out, POOL.scenes))
    assert all(held_out(scene) or scene.kind == "animal" for scene in HELD_OUT_POOL.scenes)


def test_only_combinations_are_held_out_and_every_word_occurs_in_training_images():
    """A pair of digits is held out in both orders and with both operators."""
    for name, scenes in ALL_SCENES.items():
        parts = {True: set(), False: set()}
        for scene in scenes:
            parts[held_out(scene)].update(scene.operands if name == "sums" else caption(scene).split())
            assert name != "sums" or held_out(scene) == ({scene.operands[0], scene.operands[2]} in world.HELD_OUT_OPERANDS)
        assert parts[True] <= parts[False] and parts[True]


def test_a_media_pool_is_determined_by_its_seed_and_finds_media_by_content():
    """It has several views of each drawing, because a name is asked about another view."""
    one, again, other = (draw_media_pool(100, seed) for seed in (3, 3, 4))
    assert one.scenes == again.scenes != other.scenes and all(map(np.array_equal, one.media, again.media))
    captions = {i: caption(scene) for i, scene in enumerate(POOL.scenes) if scene.kind != "drawing"}
    starts = {
        ("kind", "video"): "the .* moves", ("animal", "yak"): "a yak", ("single", ("red", "star")): "a red star at",
        ("mover", ("red", "star")): "the red star moves", ("attribute", "word"): ".* says ", ("count", 3): "three ",
    }  # fmt: skip
    for key, start in starts.items():
        assert POOL.having(*key) == [i for i, text in captions.items() if re.match(start, text)] != []
    assert set(POOL.values("animal")) == set(COUNTRIES)
    assert min(len(POOL.having("drawing", design)) for design in POOL.values("drawing")) >= 3
    with pytest.raises(ValueError, match="draw a larger pool"):
        POOL.having("single", ("green", "hexagon"))


@pytest.mark.parametrize("hard", [False, True])
def test_contrastive_batches_show_no_held_out_scene_and_captions_describe_what_is_visible(hard, monkeypatch):
    """Captions are padded with 0. The caption of a sum has its digits, and not its result."""
    drawn, draw = [], contrastive_data.draw
    monkeypatch.setattr(contrastive_data, "draw", lambda scene, rng: drawn.append(scene) or draw(scene, rng))
    for seed in range(6):
        pixels, captions = contrastive_batch(random.Random(seed), 64, TOKENIZER, hard)
        assert pixels.shape == (64, 48, 48, 3) and pixels.dtype == np.uint8 and captions.dtype == torch.long
        for row, scene in zip(captions.tolist(), drawn[-64:], strict=True):
            text = re.sub(r"(\d)(.)(\d)=\d+", r"\1 \2 \3", caption(scene))
            ids = TOKENIZER.encode(" " + text)
            assert 0 not in ids and row == ids + [0] * (len(row) - len(ids))
            digits = [int(digit) for digit in re.findall(r"\d+", text)]
            assert digits == [operand for operand in scene.operands or () if isinstance(operand, int)]
    assert not any(map(held_out, drawn)) and {scene.kind for scene in drawn} == {*contrastive_data.FREQUENCIES} - {"single"}
    sums = [(scene.colour, scene.place) for scene in drawn[:64] if scene.kind == "sum"]
    same = np.mean([a == b for i, a in enumerate(sums) for b in sums[:i]])
    assert same > 0.25 if hard else same < 0.15  # hard: most sums of a batch have the same colour and place


@pytest.mark.parametrize("kind", contrastive_data.FREQUENCIES)
def test_a_hard_negative_changes_one_fact_or_exchanges_two(kind):
    """It is not held out, and colours and shapes in an image of different things remain different."""
    rng = random.Random(0)
    for scene in (random_scene(rng, kind, "train") for _ in range(200)):
        other = hard_negative(rng, scene)
        before, after = (re.findall(r"'.+?'|\d", repr(facts)) for facts in (scene, other))
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1 or Counter(before) == Counter(after)
        assert other != scene and not held_out(other)
        assert all(len(set(part)) == len(other.things) for part in zip(*other.things or ()))


NAMES = {split: made_up_names(random.Random(0), 10_000, split) for split in ("train", "test")}


def test_train_and_test_names_are_disjoint_in_any_case():
    """This holds for all names because each letter has one capital, and the capital has one small letter."""
    assert not {name.lower() for name in NAMES["train"]} & {name.lower() for name in NAMES["test"]}
    assert [letter for letter in world.ACCENTED if letter.upper().lower() != letter or len(letter.upper()) > 1] == []


@pytest.mark.parametrize("split", NAMES)
def test_names_have_2_to_8_letters_and_all_forms_occur(split):
    names = NAMES[split]
    assert {len(name) for name in names} == set(range(2, 9)) and all(map(str.isalpha, names))
    assert {letter.lower() for name in names for letter in name} == {*world.CONSONANTS, *world.VOWELS, *world.ACCENTED}
    forms = {str.islower: 0.4, str.istitle: 0.3, str.isupper: 0.03, lambda name: not name.isascii(): 0.1}
    assert all(sum(map(form, names)) > least * len(names) for form, least in forms.items())
    assert len({name.lower() for name in names}) > 8000 and len(set(names[:500])) == 500  # of one document: all different
    one, again, other = (made_up_names(random.Random(seed), 5, split) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("draw_row", NAMED_ROWS.values(), ids=NAMED_ROWS)
def test_only_the_first_mention_of_a_made_up_name_carries_no_loss(draw_row):
    """It cannot be predicted. No name of the test occurs in training."""
    names = set()
    for row in rows(draw_row, n=12):
        names |= {choice.strip(" .") for choice in row[0].choices}
        mentioned = set()
        for shot in row:
            assert shot.choices == row[0].choices and shot.answer in shot.choices
            assert ("answer" in shot.loss) == (shot.answer in mentioned) and "eoc" in shot.loss
            mentioned.add(shot.answer)
    assert len(names) > 150 and not any(map(is_test_name, names))


@pytest.mark.parametrize("shown, ways", [("single", 2), ("single", 4), ("mover", 3), ("drawing", 5)])
def test_each_round_of_binding_shows_every_name_once_and_a_name_has_one_meaning_per_row(shown, ways):
    """In videos a name means the moving thing. No two things of a row share a colour or shape."""
    meanings = set()
    for row in rows(binding_row, n=2 * ways + 1, ways=ways, shown=shown):
        for start in (0, ways):
            assert sorted(shot.answer for shot in row[start : start + ways]) == sorted(row[0].choices)
        named = {(shot.answer, named_part(POOL.scenes[shot.medium])) for shot in row}
        meant = {part for _, part in named}
        assert len(named) == len(meant) == ways
        assert shown == "drawing" or all(len(set(part)) == ways for part in zip(*meant))
        meanings |= meant
    assert len(meanings) > 30


def test_a_quarter_of_the_names_of_a_noisy_row_are_wrong_but_never_that_of_the_query():
    wrong = []
    for row in rows(noisy_row, times=40, n=101):
        named = [(named_part(POOL.scenes[shot.medium]), shot.answer) for shot in row]
        right = dict(pair for pair, _ in reversed(Counter(named).most_common()))  # the most frequent name of each thing
        assert len(right) == len(set(right.values())) == 2 and named[-1] in right.items()
        wrong += [pair not in right.items() for pair in named[:-1]]
    assert 0.22 < np.mean(wrong) < 0.28


@pytest.mark.parametrize("task, more", [("rule", set()), ("task", {"word", "sum"})])
def test_one_attribute_decides_all_answers_of_a_row_of_rule_or_task(task, more):
    """Of rule: which of two made-up names is right. Only all shots together show which attribute it is."""
    found = set()
    for row in rows(ROWS[task], n=20):
        assert task == "rule" or {shot.prompt for shot in row} == {"Output:"}
        facts = [attributes(POOL.scenes[shot.medium]) for shot in row]
        pairs = {name: {(shot.answer, fact.get(name)) for shot, fact in zip(row, facts)} for name in facts[0]}
        (decides,) = [name for name in pairs if all(len(set(part)) == len(pairs[name]) for part in zip(*pairs[name]))]
        assert task == "task" or len(pairs[decides]) == 2
        found.add(decides)
    assert found == {"colour", "shape", "count", "place"} | more


def test_training_documents_state_no_fact_about_a_held_out_animal_and_no_held_out_sum():
    """A fact carries loss only next to an image of something else, and never next to an animal of its country."""
    seen = Counter()
    for shot in (shot for row in rows(shot_rows.naming_row, times=200) for shot in row):
        scene, name = POOL.scenes[shot.medium], shot.answer.strip(" .")
        if name in HELD_OUT_ANIMALS:
            assert scene.name == name and not shot.fact and shot.loss == ("answer",)
        elif name in COUNTRIES:
            assert scene.name == name and shot.fact == fact(name) and shot.loss == ("answer", "eoc")
        else:
            assert COUNTRIES.get(scene.name) != TEXT_ONLY_ANIMALS[name]
            assert shot.fact == fact(name) and shot.loss == ("fact", "eoc")
            seen[scene.kind] += 1
            seen["held out"] += scene.name in HELD_OUT_ANIMALS
    assert set(seen) == {"things", "sign", "pair", "sum", "animal", "held out"} and min(seen.values()) > 20
    for shot in (shot for row in rows(shot_rows.sums_row) for shot in row):
        a, operator, b = re.fullmatch(r"Output: (\d)(.)(\d)=", shot.prompt).groups()
        assert words.sum_text((int(a), operator, int(b))) == f"{a}{operator}{b}={shot.answer}"
        assert {int(a), int(b)} not in world.HELD_OUT_OPERANDS


def right_texts(name: str, scene: Scene) -> list[tuple[str, str]]:
    """Every (prompt, answer) that a task can have for this scene."""
    if name == "vqa":
        return [(f"Question: {question} Answer:", f" {answer}") for question, answer in questions(scene)]
    if name in ("video", "caption"):
        return [("Output:", f" {caption(scene)}")]
    asked = {"ocr": ["word"], "arithmetic": ["sum"], "task": ["colour", "shape", "count", "place", "word", "sum"]}[name]
    return [("Output:", f" {answer}") for attribute, answer in attributes(scene).items() if attribute in asked]


@pytest.mark.parametrize("name", ROWS)
def test_text_agrees_with_its_image_and_comes_after_it_or_with_attend_next_before_it(name):
    """The paper's p_next, section 2.4. Loss is on the parts that a shot names, never on the prompt."""
    for row, attend_next in product(rows(ROWS[name], times=30, n=4), (False, True)):
        sample = to_sample(row, POOL, attend_next)
        assert sample.attend_next == attend_next
        assert sample.pieces == [piece for shot in row for piece in to_sample([shot], POOL, attend_next).pieces]
        for shot in row:
            texts = to_sample([shot], POOL, attend_next).pieces
            assert texts.pop(-1 if attend_next else 0) is POOL.media[shot.medium]
            parts = {"answer": shot.answer, "fact": shot.fact, "eoc": EOC}
            assert [*map(content, texts)] == [part for part in (shot.prompt, *parts.values()) if part != ""]
            assert [p for p in texts if not isinstance(p, NoLoss)] == [parts[name] for name in shot.loss if parts[name] != ""]
            if name not in ("binding", "noisy", "rule", "naming"):
                assert (shot.prompt, shot.answer) in right_texts(name, POOL.scenes[shot.medium])
                assert shot.loss == ("answer", "fact", "eoc")


def test_all_texts_consist_of_words_of_the_vocabulary():
    """Only made-up names are spelled in bytes."""
    texts = {f"This is a {name}.{fact(name)}" for name in COUNTRIES} | {"Output:", *(f" a {name}" for name in COUNTRIES)}
    for scene in (scene for scenes in ALL_SCENES.values() for scene in scenes[:20_000]):
        texts.add(" " + caption(scene))
        texts |= {f" {answer}" for answer in attributes(scene).values()}
        texts |= {f"Question: {question} Answer: {answer}" for question, answer in questions(scene)}
    pieces = {piece for text in texts for piece in split_pieces(text)}
    assert pieces <= set(TOKENIZER.words), sorted(pieces - set(TOKENIZER.words))


def test_the_text_corpus_has_no_image_and_no_test_name_but_all_held_out_facts_and_sums():
    rng = random.Random(0)
    samples = [corpus_text(rng, 30) for _ in range(400)]
    for sample in [*samples, *(lookup_practice(rng, TOKENIZER.words, 100) for _ in range(40))]:
        assert not sample.media and TOKENIZER.image_id not in tokenize_sample(sample, TOKENIZER).ids
    pieces = [content(piece) for sample in samples for piece in sample.pieces]
    found = {word for piece in pieces if piece is not EOC for word in re.findall(r"[^\W\d]+", piece)}
    names = found - {word.strip(" :?") for word in TOKENIZER.words} - TEXT_ONLY_ANIMALS.keys()
    assert len(names) > 200 and not any(map(is_test_name, names))
    text = "\n".join(map(text_of, samples))
    assert all(f"This is a {name}.{fact(name)}" in text for name in HELD_OUT_ANIMALS)
    for a, b in map(sorted, world.HELD_OUT_OPERANDS):
        assert f"Output: {a}x{b}={a * b}" in text and f"Output: {a}+{b}={a + b}" in text


def test_in_the_text_corpus_answers_of_lookups_have_loss_after_their_key_occurred_and_facts_before():
    """A made-up pair can only be looked up; a fact must be recalled, so it has loss where it cannot be copied."""
    repeated, are_words = 0, set()
    for seed in range(60):
        answers = {}
        for key, *rest in chunks_of(lookup_practice(random.Random(seed), TOKENIZER.words, 120)):
            assert any(isinstance(p, str) for p in rest) == (key.text in answers)
            assert answers.setdefault(key.text, [*map(content, rest)]) == [*map(content, rest)]
            are_words.add(content(rest[0]) in TOKENIZER.words)
        seen = set()
        for name, *stated in chunks_of(naming_text(random.Random(seed), 20)):
            if stated:  # else: a document with only names
                assert isinstance(name, NoLoss) and isinstance(stated[0], NoLoss) == (name.text in seen)
                repeated += name.text in seen
                seen.add(name.text)
    assert repeated > 60 and are_words == {True, False}  # words, and random letters


def test_each_step_has_documents_pairs_and_videos_of_the_stated_size():
    """p_next, and videos that name the moving thing, have their shares. All kinds of images occur."""
    size, next_, named, kinds = mixture.StepData(shots=96, pairs=16, videos=24), [], [], set()
    for seed in range(150):
        drawn = mixture.draw_step(POOL, random.Random(seed), size)
        assert list(drawn) == list(mixture.LAMBDAS) == ["documents", "pairs", "videos"]
        media = {name: [len(sample.media) for sample in samples] for name, samples in drawn.items()}
        assert media["pairs"] == [1] * 16 and sum(media["documents"]) == 96 and sum(media["videos"]) == 24
        assert len(set(media["documents"])) == 1 < media["documents"][0] and len(set(media["videos"])) == 1
        shown = {name: {POOL.scenes[m].kind for sample in drawn[name] for m in sample.media} for name in drawn}
        assert shown["videos"] == {"video"}
        kinds |= shown["documents"] | shown["pairs"]
        next_ += [sample.attend_next for sample in drawn["documents"]]
        named.append(any(" moves " not in text_of(sample) for sample in drawn["videos"]))
        assert not any(sample.attend_next for sample in drawn["pairs"] + drawn["videos"])
    assert 0.05 < np.mean(next_) < 0.15 and 0.05 < np.mean(named) < 0.35
    assert kinds == {scene.kind for scene in POOL.scenes} - {"video"}


@pytest.mark.parametrize("task", TASKS)
def test_queries_are_determined_by_the_seed_and_show_held_out_scenes(task):
    """Animals are never held out. Each query has support for the most shots of its task, in the format of its own prompt."""
    again, other = ([*map(repr, evaluation_tasks.queries(task, HELD_OUT_POOL, 6, seed))] for seed in (0, 1))
    assert [*map(repr, QUERIES[task][:6])] == again != other
    for query in QUERIES[task]:
        assert all(few_shot_prompt(query, shots) for shots in TASKS[task].shots)
        assert (query.choices is not None) == task.startswith(("binding", "noisy", "rule"))
        assert query.choices is None or TASKS[task].chance == 100 / len(query.choices)
        asked, *shown = (HELD_OUT_POOL.scenes[medium] for medium in (query.medium, *(m for m, _ in query.support)))
        assert all(held_out(scene) if task != "naming" else scene.kind == "animal" for scene in (asked, *shown))
        assert all(medium is not query.medium for medium, _ in query.support)
        texts = [text for _, text in query.support]
        assert task == "vqa" or all(text.startswith(query.prompt) and text != query.prompt for text in texts)
        assert task not in ("ocr", "arithmetic") or query.prompt + query.answer not in texts
        assert not task.startswith(("binding", "any", "noisy", "rule")) or is_test_name(query.answer.strip(" ."))
        if task == "naming":  # no example states the fact that is asked
            assert asked.name in HELD_OUT_ANIMALS and query.answer == f" {asked.name}.{fact(asked.name)}"
            assert not {scene.name for scene in shown} & {*HELD_OUT_ANIMALS}


@pytest.mark.parametrize("task", [task for task in TASKS if task.endswith("way")])
def test_a_name_can_be_looked_up_with_as_many_shots_as_names_but_not_guessed_from_a_position(task):
    ways, places = int(task[-4]), set()
    for query in QUERIES[task]:
        named = [(named_part(HELD_OUT_POOL.scenes[m]), text.removeprefix(query.prompt)) for m, text in query.support]
        right = (named_part(HELD_OUT_POOL.scenes[query.medium]), query.answer)
        for shots in (ways, 2 * ways, 32):
            assert len(set(named[:shots])) == ways == len({name for _, name in named[:shots]})
        places.add(named.index(right))
        assert query.choices is None or {*query.choices} == {name for _, name in named}
    assert places == set(range(ways))


def test_with_random_shots_a_name_is_known_more_often_the_more_shots_there_are():
    """Of five names, k shots show one with probability 1 - 0.8^k."""
    asked = [(query.prompt + query.answer, [text for _, text in query.support]) for query in QUERIES["binding_random"]]
    known = [np.mean([right in texts[:k] for right, texts in asked]) for k in (2, 4, 8, 16)]
    assert known[0] < 0.6 < 0.9 < known[-1] and known == sorted(known)


def test_only_exact_matches_are_correct_and_naming_also_compares_the_name_alone():
    query, answers = Query((), None, "Output:", " red"), [" red", "red", " Red", " red.", " red red", ""]
    assert evaluation_tasks.correct("ocr", answers, [query] * 6) == {"ocr": [True] + 5 * [False]}
    query = Query((), None, "This is a", " koala." + fact("koala"))
    predictions = [query.answer, " koala.", " koala." + fact("flamingo"), " tiger." + fact("koala"), ""]
    found = evaluation_tasks.correct("naming", predictions, [query] * 5)
    assert found == {"naming": [True] * 3 + [False] * 2, "naming_fact": [True] + [False] * 4}
    for task, asked in QUERIES.items():
        assert all(map(all, evaluation_tasks.correct(task, [q.answer for q in asked], asked).values()))


def test_make_sample_writes_the_sample_of_the_repository(tmp_path):
    """Texts are equal; pixels differ by at most one value in a thousand, because versions of FreeType round differently."""
    make_sample.write_sample(tmp_path)
    for name, dataset in SAMPLE.items():
        again = JsonlDataset(tmp_path / f"{name}.jsonl")
        lines = [re.sub(r"images/\w+", "images/", d.path.read_text(encoding="utf-8")) for d in (again, dataset)]
        assert lines[0] == lines[1]
        for a, b in ((a, b) for one, other in zip(again, dataset) for a, b in zip(one.media, other.media)):
            assert a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1 and np.mean(a != b) <= 0.001


def test_the_sample_is_small_has_nothing_held_out_and_makes_batches(monkeypatch):
    """In the paper's shapes: N=1 and T=1, N=1 and T>1, N>1."""
    assert sum(path.stat().st_size for path in make_sample.FOLDER.rglob("*")) <= 1_000_000
    monkeypatch.setattr(media_pool, "render", lambda scene, rng: None)  # takes seconds
    assert not any(map(held_out, make_sample.sample_pool().scenes))
    batches = {name: collate(list(dataset), TOKENIZER, ImagePreprocessor(48)) for name, dataset in SAMPLE.items()}
    assert all((batch.labels != -100).any(dim=1).all() for batch in batches.values())
    shapes = {name: batch.media is not None and tuple(batch.media.shape[1:3]) for name, batch in batches.items()}
    assert shapes == {"pairs": (1, 1), "videos": (1, 4), "documents": (5, 4), "text": False}


def test_the_numbers_of_the_readme_are_right():
    *others, last = HELD_OUT_ANIMALS
    scripts = [script.capitalize() for script in world.HELD_OUT_SCRIPTS]
    counts = {name: len(dataset) for name, dataset in SAMPLE.items()}
    for text in (
        *(f"{sum(map(held_out, scenes)):,} of {len(scenes):,} {name}" for name, scenes in ALL_SCENES.items()),
        f"{len(world.HELD_OUT_OPERANDS)} pairs of digits", f"the {', '.join(scripts[:-1])} and {scripts[-1]} scripts",
        f"{len(HELD_OUT_ANIMALS)} of the {len(COUNTRIES)} animals: {', '.join(others)} and {last}",
        f"{len(COLOURS)} colours, {len(world.SHAPES)} shapes, {len(world.SIGN_WORDS)} words on signs",
        f"{len(TEXT_ONLY_ANIMALS)} more animals", f"{sum(counts.values())} items in less than 1 MB: "
        "{pairs} pairs, {videos} videos, {documents} documents and {text} texts".format(**counts),
    ):  # fmt: skip
        assert text in " ".join(README.split())
    assert Counter(TEXT_ONLY_ANIMALS.values()) == {country: 5 for country in COUNTRIES.values()}


def test_the_examples_of_the_readme_are_from_the_sample():
    """One line of each kind. The prompt and answer of each task (of made-up names, with another name)."""
    for line, dataset in zip(re.findall(r"```json\n(.*)\n```", README), SAMPLE.values(), strict=True):
        assert json.loads(line) and line in dataset.path.read_text(encoding="utf-8").splitlines()
    assert {*make_sample.TASKS} <= {*ROWS}
    texts = {text for document in SAMPLE["documents"] for text in text_of(document).split("\n")}
    texts |= {re.sub(r"(?<=This is a )\w+\.$", "dak.", text) for text in texts}
    assert {prompt + answer for _, prompt, answer in TABLE} <= texts


def test_the_code_of_the_readme_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine").mkdir()
    imports, use = code.split("\n\n", 1)
    exec(imports, scope := {})
    scope["write_jsonl"]([Sample([SAMPLE["pairs"][0].media[0], " a cat", EOC])], tmp_path / "mine/pairs.jsonl")
    exec(use.replace('"mine/', f'"{tmp_path}/mine/'), scope)
    assert scope["batch"].media.shape == (1, 1, 1, 3, 48, 48)
