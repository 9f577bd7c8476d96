"""data_toy: few-shot tasks, held-out cases, the text corpus, the mixture, the sample on disk, and the numbers of its README."""

import json
import random
import re
from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest
import torch

from data_toy import contrastive_data, evaluation_tasks, make_sample, mixture, shot_rows, words, world
from data_toy.contrastive_data import contrastive_batch, hard_negative, visible_caption
from data_toy.media_pool import FREQUENCIES, MediaPool, draw_media_pool, random_scene
from data_toy.shot_rows import to_sample
from data_toy.text_corpus import TEXT_KINDS, as_list, corpus_text, lookup_practice, naming_text
from data_toy.words import LIST_MARKER, attributes, caption, fact, questions
from data_toy.world import COLOURS, COUNTRIES, HELD_OUT_ANIMALS, MADE_UP_NAMES, TEXT_ONLY_ANIMALS, Scene, Video, held_out
from minflamingo.data.images import ImagePreprocessor
from minflamingo.data.readers import JsonlDataset
from minflamingo.data.sample import EOC, NoLoss, Sample, collate, is_medium, tokenize_sample
from minflamingo.evaluation.fewshot import SHOTS, Query, few_shot_prompt
from minflamingo.tokenizer import split_pieces

TOKENIZER = words.toy_tokenizer()
ROWS = {name: getattr(shot_rows, f"{name}_row") for name in make_sample.TASKS}
TASKS = list(evaluation_tasks.TASKS)
README = (make_sample.FOLDER.parent / "README.md").read_text(encoding="utf-8")


def numbered_pool(split: str) -> MediaPool:
    """A pool with numbers instead of pixels: `pool.scenes[medium]` is the scene that a medium shows."""
    scenes = draw_media_pool(1500, seed=0, split=split).scenes
    return MediaPool(scenes, [np.array(i) for i in range(len(scenes))])


@pytest.fixture(scope="module")
def pool() -> MediaPool:
    return numbered_pool("train")


@pytest.fixture(scope="module")
def held_out_pool() -> MediaPool:
    return numbered_pool("test")


@pytest.fixture(scope="module")
def queries(held_out_pool) -> dict[str, list[Query]]:
    return {task: evaluation_tasks.queries(task, held_out_pool, 40, seed=0) for task in TASKS}


def rows(draw_row, pool: MediaPool, times: int = 100, n: int = 9, **options) -> list[list[shot_rows.Shot]]:
    return [draw_row(pool, random.Random(seed), n, **options) for seed in range(times)]


def content(piece: object) -> object:
    """A piece of a sample without its NoLoss."""
    return piece.text if isinstance(piece, NoLoss) else piece


def text_of(sample: Sample) -> str:
    """All text of a sample, with or without loss. EOC is a line break."""
    return "".join("\n" if p is EOC else p for p in map(content, sample.pieces) if not is_medium(p))


def chunks_of(pieces: list, is_last=lambda piece: content(piece) is EOC) -> list[list]:
    """The pieces divided after each last one of a chunk."""
    chunks = [[]]
    for piece in pieces:
        chunks[-1].append(piece)
        if is_last(piece):
            chunks.append([])
    assert chunks.pop() == []
    return chunks


def all_scenes() -> dict[str, list[Scene | Video]]:
    """Every scene of each kind, except animals and numbers."""
    things = list(product(COLOURS, world.SHAPES))
    pairs = [(a, b) for a, b in product(things, things) if a[0] != b[0] and a[1] != b[1]]
    triples = [tuple(zip(c, s)) for c in permutations(COLOURS, 3) for s in permutations(world.SHAPES, 3)]
    operands = product(world.DIGITS, world.OPERATORS, world.DIGITS)
    counted = product(things, world.COUNTS, world.PLACES)
    signs = product(COLOURS, world.SIGN_WORDS, world.HALVES)
    return {
        "scenes of things": [Scene("things", colour=c, shape=s, count=n, place=p) for (c, s), n, p in counted],
        "signs": [Scene("sign", colour=c, word=w, place=p) for c, w, p in signs],
        "pairs": [Scene("pair", things=p, relation=r) for p, r in product(pairs, world.RELATIONS)],
        "rows": [Scene("row", things=triple) for triple in triples],
        "videos": [Video(*p, d) for p, d in product(pairs, world.DIRECTIONS)],
        "sums": [Scene("sum", colour="red", operands=o, place="top") for o in operands],
    }


ALL_SCENES = all_scenes()


@pytest.mark.parametrize("split", ["train", "test"])
def test_training_pools_show_no_held_out_scene_and_test_pools_only_these(split):
    """Except animals, which are never held out."""
    rng = random.Random(0)
    drawn = [random_scene(rng, kind, split) for kind in (*FREQUENCIES, "number") for _ in range(200)]
    for scene in (*drawn, *draw_media_pool(300, seed=1, split=split).scenes):
        is_animal = isinstance(scene, Scene) and scene.kind == "animal"
        assert held_out(scene) == (split == "test" and not is_animal), scene


def test_only_combinations_are_held_out_and_every_word_occurs_in_training_images():
    """A pair of digits is held out in both orders and with both operators."""
    for name, scenes in ALL_SCENES.items():
        parts = {True: set(), False: set()}
        for scene in scenes:
            parts[held_out(scene)].update(scene.operands if name == "sums" else caption(scene).split())
            assert name != "sums" or held_out(scene) == ({scene.operands[0], scene.operands[2]} in world.HELD_OUT_OPERANDS)
        assert parts[True] <= parts[False] and parts[True]


def test_a_media_pool_is_determined_by_size_seed_and_split_and_finds_media_by_content():
    one, again = draw_media_pool(300, seed=3), draw_media_pool(300, seed=3)
    assert one.scenes == again.scenes and all(map(np.array_equal, one.media, again.media))
    assert one.scenes != draw_media_pool(300, seed=4).scenes != draw_media_pool(300, seed=3, split="test").scenes
    captions = {i: caption(scene) for i, scene in enumerate(one.scenes)}
    starts = {("kind", "video"): "the ", ("animal", "yak"): "a yak", ("single", ("red", "star")): "a red star at"}
    for key, start in starts.items():
        assert one.having(*key) == [i for i, text in captions.items() if text.startswith(start)] != []
    assert one.having("attribute", "word") == [i for i, text in captions.items() if " says " in text] != []
    with pytest.raises(ValueError, match="draw a larger pool"):
        one.having("single", ("green", "hexagon"))


@pytest.mark.parametrize("hard", [False, True])
def test_contrastive_batches_show_no_held_out_scene_and_captions_describe_what_is_visible(hard, monkeypatch):
    """Captions are padded with 0. The caption of a sum has its digits, and not its result."""
    drawn, draw = [], contrastive_data.draw
    monkeypatch.setattr(contrastive_data, "draw", lambda scene, rng: drawn.append(scene) or draw(scene, rng))
    for seed in range(6):
        pixels, captions = contrastive_batch(random.Random(seed), 64, TOKENIZER, hard)
        assert pixels.shape == (64, 48, 48, 3) and pixels.dtype == np.uint8 and captions.dtype == torch.long
        for row, scene in zip(captions.tolist(), drawn[-64:], strict=True):
            ids = TOKENIZER.encode(" " + visible_caption(scene))
            assert 0 not in ids and row == ids + [0] * (len(row) - len(ids))
            digits = [int(digit) for digit in re.findall(r"\d+", visible_caption(scene))]
            assert digits == [operand for operand in scene.operands or () if isinstance(operand, int)]
    assert not any(map(held_out, drawn)) and {scene.kind for scene in drawn} == {*contrastive_data.FREQUENCIES} - {"single"}
    sums = [(scene.colour, scene.place) for scene in drawn[:64] if scene.kind == "sum"]
    same = np.mean([a == b for i, a in enumerate(sums) for b in sums[:i]])
    assert same > 0.25 if hard else same < 0.15  # hard: most sums of a batch have the same colour and place


@pytest.mark.parametrize("kind", contrastive_data.FREQUENCIES)
def test_a_hard_negative_changes_one_fact_or_exchanges_two(kind):
    """Colours and shapes in an image of different things remain different."""
    rng, changed = random.Random(0), 0

    def facts(scene: Scene) -> list:
        """Colours and shapes of different things, operands of a sum, then all other fields."""
        parts = [part for same in zip(*scene.things or ()) for part in same] + [*(scene.operands or ())]
        return parts + [value for name, value in vars(scene).items() if name not in ("things", "operands")]

    for _ in range(200):
        scene = random_scene(rng, kind, "train")
        other = hard_negative(rng, scene)
        changed += other != scene  # 7x7 reversed is 7x7
        before, after = facts(scene), facts(other)
        assert sum(a != b for a, b in zip(before, after, strict=True)) <= 1 or Counter(before) == Counter(after)
        assert all(len(set(part)) == len(other.things) for part in zip(*other.things or ()))
    assert changed > 150


def test_made_up_names_are_not_words_and_those_of_the_test_are_not_used_in_training(pool, held_out_pool):
    vocabulary = {word.strip().lower() for word in words.vocabulary()}
    assert not vocabulary & {name for names in MADE_UP_NAMES.values() for name in names}
    assert not set(MADE_UP_NAMES["train"]) & set(MADE_UP_NAMES["test"])
    for split, media in (("train", pool), ("test", held_out_pool)):
        drawn = rows(shot_rows.binding_row, media, split=split)
        names = {choice.strip(" .") for row in drawn for shot in row for choice in shot.choices}
        assert names <= set(MADE_UP_NAMES[split]) and len(names) > 100


def test_training_documents_state_no_fact_about_a_held_out_animal(pool):
    """A fact carries loss only next to an image of something else, and never next to an animal of its country."""
    seen = Counter()
    for row, attend_next in product(rows(shot_rows.naming_row, pool, times=200), (False, True)):
        pieces = to_sample(row, pool, attend_next).pieces
        for chunk in chunks_of(pieces, is_medium) if attend_next else chunks_of(pieces):
            *_, stated, end = [piece for piece in chunk if not is_medium(piece)]
            sentences = re.fullmatch(r"This is a (\w+)\.(?: They are mainly found in (\w+)\.)?\n", text_of(Sample(chunk)))
            name, country = sentences.groups()
            assert (country is None) == (name in HELD_OUT_ANIMALS) == (end == NoLoss(EOC))
            if country is None:
                continue
            assert fact(name).endswith(f" {country}.")
            shown = pool.scenes[[*filter(is_medium, chunk)][-1]]  # the text attends to this image
            own = shown.kind == "animal" and COUNTRIES[shown.name] == country
            assert own == (shown.name == name) == isinstance(stated, NoLoss) and content(stated) == fact(name)
            seen["own image" if own else "other image", name in TEXT_ONLY_ANIMALS] += 1
            seen["next to a held-out animal"] += shown.name in HELD_OUT_ANIMALS
    assert set(seen) == {("own image", False), ("other image", False), ("other image", True), "next to a held-out animal"}
    assert min(seen.values()) > 40


def test_sums_in_text_next_to_other_images_are_not_held_out(pool):
    for shot in (shot for row in rows(shot_rows.sums_text_row, pool, times=20) for shot in row):
        a, operator, b = re.fullmatch(r"Output: (\d)([+x])(\d)=", shot.prompt).groups()
        assert int(shot.answer) == (int(a) + int(b) if operator == "+" else int(a) * int(b))
        assert {int(a), int(b)} not in world.HELD_OUT_OPERANDS


def test_a_task_row_asks_for_one_of_six_attributes_and_only_all_shots_together_show_which(pool):
    found = Counter()
    for row in rows(shot_rows.task_row, pool, n=20):
        assert {shot.prompt for shot in row} == {"Output:"}
        fitting = [{a for a, v in attributes(pool.scenes[s.medium]).items() if " " + v == s.answer} for s in row]
        (attribute,) = set.intersection(*fitting)
        found[attribute] += 1
    assert set(found) == {"colour", "shape", "count", "place", "word", "sum"}


@pytest.mark.parametrize("shown", ["single", "mover"])
@pytest.mark.parametrize("ways", [2, 3, 4])
def test_each_round_of_binding_shows_every_name_once_and_a_name_has_one_meaning_per_row(pool, ways, shown):
    """In videos a name means the moving thing. No two things of a row share a colour or shape. First mentions have no loss."""
    meanings = set()
    for row in rows(shot_rows.binding_row, pool, n=2 * ways + 1, ways=ways, shown=shown):
        for start in (0, ways):
            assert sorted(shot.answer for shot in row[start : start + ways]) == sorted(row[0].choices)
        meant = {}
        for shot in row:
            scene = pool.scenes[shot.medium]
            thing = scene.mover if shown == "mover" else (scene.colour, scene.shape)
            assert meant.setdefault(shot.answer, thing) == thing and shot.choices == row[0].choices
        assert all(len(set(part)) == ways for part in zip(*meant.values()))
        meanings |= set(meant.values())
        without_loss = [content(p) for p in to_sample(row, pool).pieces if isinstance(p, NoLoss) and p.text != "This is a"]
        assert without_loss == [shot.answer for shot in row[:ways]]
    assert len(meanings) > 30


def right_texts(name: str, scene: Scene | Video) -> list[tuple[str, str]]:
    """Every (prompt, answer) that a task can have for this scene."""
    if name == "vqa":
        return [(f"Question: {question} Answer:", f" {answer}") for question, answer in questions(scene)]
    if name in ("video", "caption"):
        return [("Output:", f" {caption(scene)}")]
    asked = {"ocr": ["word"], "arithmetic": ["sum"], "task": ["colour", "shape", "count", "place", "word", "sum"]}[name]
    return [("Output:", f" {answer}") for attribute, answer in attributes(scene).items() if attribute in asked]


@pytest.mark.parametrize("name", ROWS)
def test_text_agrees_with_its_image_and_comes_after_it_or_with_attend_next_before_it(name, pool):
    """The paper's p_next, section 2.4. Loss is on answers and EOC, never on the prompt."""
    for row, attend_next in product(rows(ROWS[name], pool, times=30, n=4), (False, True)):
        sample = to_sample(row, pool, attend_next)
        assert sample.attend_next == attend_next
        chunks = chunks_of(sample.pieces, is_medium) if attend_next else chunks_of(sample.pieces)
        for shot, chunk in zip(row, chunks, strict=True):
            assert chunk[-1 if attend_next else 0] is pool.media[shot.medium]
            assert text_of(Sample(chunk)) == f"{shot.prompt}{shot.answer}{shot.fact}\n"
            assert not shot.prompt or NoLoss(shot.prompt) in [piece for piece in chunk if not is_medium(piece)]
            if name not in ("binding", "naming"):
                assert (shot.prompt, shot.answer) in right_texts(name, pool.scenes[shot.medium])


def test_several_questions_about_one_image_follow_it_in_their_own_chunks(pool):
    """With attend_next only the first is kept: the others would attend to the wrong image."""
    for row in rows(shot_rows.vqa_row, pool, times=20, n=4, per_image=2):
        assert sum(shot.medium is not None for shot in row) == 4 < len(row) <= 8 and row[0].medium is not None
        for attend_next in (False, True):
            sample = to_sample(row, pool, attend_next)
            assert len(sample.media) == 4 and text_of(sample).count("\n") == (4 if attend_next else len(row))
        for shot in row:
            scene = scene if shot.medium is None else pool.scenes[shot.medium]  # noqa: F821
            assert (shot.prompt, shot.answer) in right_texts("vqa", scene)


def test_in_long_documents_markers_replace_images_and_a_name_is_known_after_its_first_image(pool):
    """As many markers and images together as a prompt with that many shots has images."""
    for row in rows(shot_rows.binding_row, pool, n=20, times=20, ways=3):
        pieces = to_sample(row, pool, markers=[LIST_MARKER, " zoo"] * 6).pieces
        assert sum(is_medium(p) or p in (NoLoss(LIST_MARKER), NoLoss(" zoo")) for p in pieces) == 20
        answers = [p for p in pieces[36:] if not is_medium(p) and content(p) in row[0].choices]
        assert len(answers) == sum(map(is_medium, pieces)) == 8
        mentioned = set()
        for answer in answers:
            assert isinstance(answer, str) == (content(answer) in mentioned)
            mentioned.add(content(answer))


def test_all_texts_consist_of_words_of_the_vocabulary():
    """Only made-up names are spelled in bytes."""
    texts = {f"This is a {name}.{fact(name)}" for name in COUNTRIES} | {"Output:", *(f" a {name}" for name in COUNTRIES)}
    for scene in (scene for scenes in ALL_SCENES.values() for scene in scenes[:20_000]):
        texts.add(" " + caption(scene))
        if isinstance(scene, Scene):
            texts |= {f" {answer}" for answer in attributes(scene).values()}
            texts |= {f"Question: {question} Answer: {answer}" for question, answer in questions(scene)}
    pieces = {piece for text in texts for piece in split_pieces(text)}
    assert pieces <= set(TOKENIZER.words), sorted(pieces - set(TOKENIZER.words))


def test_the_text_corpus_has_no_image_and_no_test_name_but_all_held_out_facts_and_sums():
    rng = random.Random(0)
    samples = [corpus_text(rng, 30) for _ in range(400)] + [lookup_practice(rng, TOKENIZER.words, 5, 100) for _ in range(40)]
    for sample in samples:
        assert not sample.media and TOKENIZER.image_id not in tokenize_sample(sample, TOKENIZER).ids
        assert not {*MADE_UP_NAMES["test"]} & set(re.findall("[a-z]+", text_of(sample).lower()))
    text = "\n".join(map(text_of, samples))
    assert all(f"This is a {name}.{fact(name)}" in text for name in HELD_OUT_ANIMALS)
    for a, b in map(sorted, world.HELD_OUT_OPERANDS):
        assert f"Output: {a}x{b}={a * b}" in text and f"Output: {a}+{b}={a + b}" in text


def test_in_the_text_corpus_answers_of_lookups_have_loss_after_their_key_occurred_and_facts_before():
    """A made-up pair can only be looked up; a fact must be recalled, so it has loss where it cannot be copied."""
    repeated = 0
    for seed in range(60):
        answers = {}
        for key, *rest, _ in chunks_of(lookup_practice(random.Random(seed), TOKENIZER.words, 3, 120).pieces):
            assert any(isinstance(p, str) for p in rest) == (key.text in answers)
            assert answers.setdefault(key.text, [*map(content, rest)]) == [*map(content, rest)]
        seen = set()
        for name, *stated, _ in chunks_of(naming_text(random.Random(seed), 20).pieces):
            if stated:  # else: a document with only names
                assert isinstance(name, NoLoss) and isinstance(stated[0], NoLoss) == (name.text in seen)
                repeated += name.text in seen
                seen.add(name.text)
    assert repeated > 60


@pytest.mark.parametrize("draw", TEXT_KINDS, ids=lambda draw: draw.__name__)
def test_a_list_has_a_marker_without_loss_before_each_chunk(draw):
    """In half of the lists all markers are "-"."""
    sample, dashes = draw(random.Random(0), 7), Counter()
    for seed in range(60):
        chunks = chunks_of(as_list(sample, random.Random(seed)).pieces)
        assert len(chunks) == 7 and [piece for chunk in chunks for piece in chunk[1:]] == sample.pieces
        assert all(isinstance(chunk[0], NoLoss) and chunk[0].text in (LIST_MARKER, *words.vocabulary()) for chunk in chunks)
        dashes[sum(chunk[0] == NoLoss(LIST_MARKER) for chunk in chunks)] += 1
    assert 18 < dashes[7] < 42


def test_the_curriculum_trains_on_single_images_then_names_then_everything(pool):
    """Each step has all shots that its size states; p_next and long documents have their shares."""
    size = mixture.StepData(shots=40, pairs=16, videos=6, single_image_steps=5, name_steps=5)
    next_, long = [], []
    for step in range(150):
        drawn = mixture.draw_step(pool, random.Random(step), step, size)
        assert list(drawn) == (["pairs"] if step < 5 else ["documents", "pairs"] if step < 10 else [*mixture.LAMBDAS])
        assert all(len(sample.media) == 1 for sample in drawn["pairs"])
        if step >= 10:
            assert all(isinstance(pool.scenes[medium], Video) for sample in drawn["videos"] for medium in sample.media)
            next_ += [sample.attend_next for sample in drawn["documents"]]
            long.append(any(text_of(sample).count("\n") >= 32 for sample in drawn["documents"]))
        elif step >= 5:
            assert all("Output" not in text_of(sample) for sample in drawn["documents"])
    assert 0.05 < np.mean(next_) < 0.15 and 0.2 < np.mean(long) < 0.5


@pytest.mark.parametrize("task", TASKS)
def test_queries_are_determined_by_the_seed_and_show_held_out_scenes(task, queries, held_out_pool):
    """Animals are never held out. Each query has support for 32 shots, in the format of its own prompt."""
    again, other = ([*map(repr, evaluation_tasks.queries(task, held_out_pool, 6, seed))] for seed in (0, 1))
    assert [*map(repr, queries[task][:6])] == again != other
    for query in queries[task]:
        assert len(query.support) == 32 and all(few_shot_prompt(query, shots) for shots in SHOTS)
        assert (query.choices is not None) == task.startswith("binding")
        asked, *shown = (held_out_pool.scenes[medium] for medium in (query.medium, *(m for m, _ in query.support)))
        assert all(held_out(scene) if task != "naming" else scene.kind == "animal" for scene in (asked, *shown))
        assert all(medium is not query.medium for medium, _ in query.support)
        texts = [text for _, text in query.support]
        assert task == "vqa" or all(text.startswith(query.prompt) and text != query.prompt for text in texts)
        assert task not in ("ocr", "arithmetic") or query.prompt + query.answer not in texts
        if task == "naming":  # no example states the fact that is asked
            assert asked.name in HELD_OUT_ANIMALS and query.answer == f" {asked.name}.{fact(asked.name)}"
            assert not {scene.name for scene in shown} & {*HELD_OUT_ANIMALS}


@pytest.mark.parametrize("ways", [2, 4])
def test_a_name_can_be_looked_up_with_as_many_shots_as_names_but_not_guessed_from_a_position(ways, queries, held_out_pool):
    asked = queries[f"binding_{ways}way"]

    def thing(medium) -> tuple[str, str]:
        return held_out_pool.scenes[medium].colour, held_out_pool.scenes[medium].shape

    for query in asked:
        assert len(set(query.choices)) == ways
        for shots in (ways, 2 * ways, 32):
            shown = {thing(m): text.removeprefix(query.prompt) for m, text in query.support[:shots]}
            assert shown[thing(query.medium)] == query.answer and sorted(shown.values()) == sorted(query.choices)
    assert {query.choices.index(query.answer) for query in asked} == set(range(ways))
    assert 0 < sum(query.support[-1][1].endswith(query.answer) for query in asked) < 40


def test_only_exact_matches_are_correct_and_naming_also_compares_the_name_alone(queries):
    query, answers = Query((), None, "Output:", " red"), [" red", "red", " Red", " red.", " red red", ""]
    assert evaluation_tasks.correct("ocr", answers, [query] * 6) == {"ocr": [True] + 5 * [False]}
    query = Query((), None, "This is a", " koala." + fact("koala"))
    predictions = [query.answer, " koala.", " koala." + fact("flamingo"), " tiger." + fact("koala"), ""]
    found = evaluation_tasks.correct("naming", predictions, [query] * 5)
    assert found == {"naming": [True] * 3 + [False] * 2, "naming_fact": [True] + [False] * 4}
    for task, asked in queries.items():
        assert all(map(all, evaluation_tasks.correct(task, [q.answer for q in asked], asked).values()))


@pytest.fixture(scope="module")
def sample() -> dict[str, JsonlDataset]:
    return {name: JsonlDataset(make_sample.FOLDER / f"{name}.jsonl") for name in ("pairs", "videos", "documents", "text")}


def test_make_sample_writes_the_sample_of_the_repository(tmp_path, sample):
    """Texts are equal; pixels differ by at most one value in a thousand, because versions of FreeType round differently."""
    make_sample.write_sample(tmp_path)
    for name, dataset in sample.items():
        again = JsonlDataset(tmp_path / f"{name}.jsonl")
        lines = [re.sub(r"images/\w+", "images/", d.path.read_text(encoding="utf-8")) for d in (again, dataset)]
        assert lines[0] == lines[1]
        for one, other in zip(again, dataset, strict=True):
            for a, b in zip(one.media, other.media, strict=True):
                assert a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1 and np.mean(a != b) <= 0.001


def test_the_sample_is_small_has_nothing_held_out_and_makes_batches(sample):
    """In the paper's shapes: N=1 and T=1, N=1 and T>1, N>1."""
    assert sum(path.stat().st_size for path in make_sample.FOLDER.rglob("*")) <= 1_000_000
    assert not any(map(held_out, make_sample.small_pool().scenes))
    batches = {name: collate(list(dataset), TOKENIZER, ImagePreprocessor(48)) for name, dataset in sample.items()}
    assert all((batch.labels != -100).any(dim=1).all() for batch in batches.values())
    assert batches.pop("text").media is None
    shapes = {name: tuple(batch.media.shape) for name, batch in batches.items()}
    assert shapes == {"pairs": (40, 1, 1, 3, 48, 48), "videos": (12, 1, 4, 3, 48, 48), "documents": (24, 6, 4, 3, 48, 48)}


def test_the_numbers_of_the_readme_are_right(sample):
    train, test = len(MADE_UP_NAMES["train"]), len(MADE_UP_NAMES["test"])
    *others, last = HELD_OUT_ANIMALS
    counts = {name: len(dataset) for name, dataset in sample.items()}
    for text in (
        *(f"{sum(map(held_out, scenes)):,} of {len(scenes):,} {name}" for name, scenes in ALL_SCENES.items()),
        f"{test:,} of {train + test:,} made-up names", f"{len(world.HELD_OUT_OPERANDS)} pairs of digits",
        f"{len(HELD_OUT_ANIMALS)} of the {len(COUNTRIES)} animals: {', '.join(others)} and {last}",
        f"{len(COLOURS)} colours, {len(world.SHAPES)} shapes, {len(world.SIGN_WORDS)} words on signs",
        f"{len(TEXT_ONLY_ANIMALS)} more animals", f"{sum(counts.values())} items in less than 1 MB: "
        "{pairs} pairs, {videos} videos, {documents} documents and {text} texts".format(**counts),
    ):  # fmt: skip
        assert text in " ".join(README.split())
    assert Counter(TEXT_ONLY_ANIMALS.values()) == {country: 5 for country in COUNTRIES.values()}


def test_the_examples_of_the_readme_are_from_the_sample(sample):
    """One line of each kind. The prompt and answer of each task (of `binding`, with another name)."""
    for line, dataset in zip(re.findall(r"```json\n(.*)\n```", README), sample.values(), strict=True):
        assert json.loads(line) and line in dataset.path.read_text(encoding="utf-8").splitlines()
    table = re.findall(r"\| `(\w+)` \| .* \| `(.*)` → `(.*)` \|", README.split("## Nine benchmarks")[0])
    assert [name for name, _, _ in table] == list(make_sample.TASKS) and "dak" in MADE_UP_NAMES["train"]
    texts = {text for document in sample["documents"] for text in text_of(document).split("\n")}
    texts |= {re.sub(r"(?<= )[a-z]{3}(?=\.$)", "dak", text) for text in texts}
    assert {prompt + answer for _, prompt, answer in table} <= texts


def test_the_code_of_the_readme_runs(tmp_path, sample):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine").mkdir()
    scope = {"tokenizer": TOKENIZER}
    imports, use = code.split("\n\n", 1)
    exec(imports, scope)
    scope["write_jsonl"]([Sample([sample["pairs"][0].media[0], " a cat", EOC])], tmp_path / "mine/pairs.jsonl")
    exec(use.replace('"mine/', f'"{tmp_path}/mine/'), scope)
    assert scope["batch"].media.shape == (1, 1, 1, 3, 48, 48)
