"""Stand-ins: schema, sizes, sameness, answers that are right, and a Bayes rate that is one."""

import ast
import itertools

import numpy as np
import pytest
from scipy.stats import pearsonr

from fedjax_fm.datasets import load
from fedjax_fm.datasets.named.benchmark import Request
from fedjax_fm.datasets.named.stand_ins import (
    chats,
    expressions,
    images,
    labels,
    questions,
    sizes,
    tasks,
    words,
)
from fedjax_fm.datasets.named.table import BENCHMARKS
from fedjax_fm.evaluation import rouge_l

MADE_UP = sorted(name for name, b in BENCHMARKS.items() if b.stand_in)
# One of each generator: papers that deal the same task share theirs.
OWN = [name for name in MADE_UP if name.count("/") < 2]


def request(n, seed=0, n_clients=0):
    clients = np.full(n, -1)
    if n_clients:
        clients = np.sort(np.arange(n) % n_clients)
    return Request(
        clients=clients,
        n_clients=n_clients,
        rng=np.random.default_rng(seed),
        test=False,
    )


@pytest.mark.parametrize("name", MADE_UP)
def test_rows_have_the_columns_of_the_hub(name):
    benchmark = BENCHMARKS[name]
    asked = sizes.request(benchmark, 0, 50, test=False)
    made = benchmark.stand_in(asked)
    assert made
    for row in made:
        assert set(benchmark.hub.columns) <= set(row)


@pytest.mark.parametrize("name", OWN)
def test_the_same_seed_gives_the_same_rows_and_another_gives_others(name):
    limit = max(60, 2 * (BENCHMARKS[name].partition.clients or 0))
    if name == "glue/wnli":
        limit = 300
    first, again, other = (
        load(name, source="stand-in", limit=limit, seed=seed).provenance["sha256"]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_the_law_of_sizes():
    rng = np.random.default_rng(0)
    found = sizes.client_sizes(2000, 200_000, 1.0, rng)
    assert found.sum() == 200_000
    assert found.min() >= 1
    assert abs(np.log(found - 0.999).std() - 1.0) < 0.1
    bounded = sizes.client_sizes(4089, 204_112, 1.0, rng, most=64)
    assert (bounded.sum(), bounded.max()) == (204_112, 64)


def test_sizes_that_cannot_be_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="expected 5 to 50 rows"):
        sizes.client_sizes(5, 51, 1.0, rng, most=10)
    with pytest.raises(ValueError, match="give limit="):
        sizes.request(BENCHMARKS["stackoverflow"], 0, None, test=False)


@pytest.mark.parametrize(
    "name", ["fedllm/chatbot-it", "pfl/oasst2", "ni/fedkseed", "fedllm/aya"]
)
def test_natural_clients_are_as_many_as_the_papers(name):
    benchmark = BENCHMARKS[name]
    asked = sizes.request(benchmark, 0, None, test=False)
    counts = np.bincount(asked.clients)
    assert len(counts) == benchmark.settings.clients
    assert counts.sum() == benchmark.rows


def test_a_limit_keeps_all_clients_where_it_can():
    benchmark = BENCHMARKS["fedllm/chatbot-it"]
    few = sizes.request(benchmark, 0, 500, test=False).clients
    assert len(np.unique(few)) == 237
    assert len(few) == 500
    fewer = sizes.request(benchmark, 0, 100, test=False).clients
    assert len(fewer) == 100
    assert len(np.unique(fewer)) < 237


# Gold answers


def test_the_right_option_and_no_other_is_of_the_category():
    rng = np.random.default_rng(0)
    for _ in range(200):
        drawn = questions.choice(rng)
        kind = drawn.question.split()[-1].rstrip("?")
        fits = [option in words.CATEGORIES[kind] for option in drawn.options]
        assert fits.index(True) == drawn.right
        assert sum(fits) == 1


def test_categories_share_no_word():
    everything = list(itertools.chain.from_iterable(words.CATEGORIES.values()))
    assert len(everything) == len(set(everything))


def test_general_answers_are_letters_of_the_right_option():
    for row in questions.general(request(100)):
        question, *options = row["instruction"].splitlines()
        kind = question.split()[-1].rstrip("?")
        named = dict(option.split(". ") for option in options)
        assert list(named) == ["A", "B", "C", "D"]
        assert named[row["output"]] in words.CATEGORIES[kind]


def test_finance_takes_the_sign_of_the_rating():
    rating = dict(words.sentences())
    made = questions.finance(request(300))
    for row in made:
        score = rating[row["input"]]
        expected = (
            "positive" if score > 0.8 else "negative" if score < -0.8 else "neutral"
        )
        assert row["output"] == expected
    assert {row["output"] for row in made} == set(questions.SENTIMENTS)


def test_medical_asks_for_the_term_of_a_definition():
    for row in questions.medical(request(100)):
        assert questions.GLOSSARY[row["output"]] in row["input"]
        assert row["output"] not in row["input"]


def test_commonsense_answers_are_right():
    for row in questions.commonsense(request(200)):
        text, answer = row["instruction"], row["answer"]
        assert answer in row["output"]
        if answer in ("true", "false"):
            option, kind = text.split("Is ")[1].split("?")[0].split(" a", 1)
            kind = kind.split()[-1]
            assert (option in words.CATEGORIES[kind]) == (answer == "true")
        else:
            kind = text.split("?")[0].split()[-1]
            chosen = text.split(f"{answer}: ")[1].split()[0]
            assert chosen in words.CATEGORIES[kind]


def test_sums_are_right_in_every_language():
    seen = set()
    for row in chats.aya(request(400, n_clients=40)):
        first, second = row["inputs"].removesuffix(" = ?").split(" + ")
        numbers = chats.NUMBERS[row["language"]]
        assert numbers.index(first) + numbers.index(second) == numbers.index(
            row["targets"]
        )
        seen.add(row["language"])
    assert len(seen) == 8
    assert all(len(set(numbers)) == 11 for numbers in chats.NUMBERS.values())


def test_the_chosen_list_is_right_and_the_rejected_one_is_not():
    for row in chats.preferences(request(100, n_clients=5)):
        kind = row["instruction"].split(": ")[1].rstrip(".")
        assert set(row["chosen"].split(", ")) <= set(words.CATEGORIES[kind])
        assert not set(row["rejected"].split(", ")) <= set(words.CATEGORIES[kind])


def test_clients_differ_in_language_topic_and_length():
    asked = request(4000, n_clients=20)
    made = chats.lists(asked)
    lengths = np.array([len(row["response"].split(", ")) for row in made]).reshape(
        20, 200
    )
    within = lengths.var(axis=1).mean() / 200
    assert lengths.mean(axis=1).var() > 5 * within
    topics = [
        row["instruction"].split()[-1]
        for row in chats.topics(request(4000, n_clients=20))
    ]
    counts = [
        max(map(topics[k : k + 200].count, set(topics))) for k in range(0, 4000, 200)
    ]
    assert np.mean(counts) > 2 * 200 / 8


def test_word_tasks_are_solved_and_each_has_a_name_of_its_own():
    known = tasks.word_tasks()
    assert len(known) >= 738 + 119
    assert len({task.name for task in known}) == len(known)
    given = ["alpha", "bravo", "cat", "dog", "echo", "fox"]
    answers = {task.name.split("_", 1)[1]: task.solve(given) for task in known}
    assert answers["word_2"] == "cat"
    assert answers["first_1"] == "alpha bravo"
    assert answers["without_0"] == "bravo cat dog echo fox"
    assert answers["swap_0_5"] == "fox bravo cat dog echo alpha"
    assert answers["append_123"] == "fox 123"
    assert answers["count_o"] == "4"
    assert answers["with_x"] == "fox"
    assert answers["with_q"] == "none"
    assert answers["replace_o_u"] == "alpha bravu cat dug echu fux"


def test_unseen_tasks_are_no_training_tasks():
    data = load("ni/fedkseed", source="stand-in")
    train, test = (set(split["category"].tolist()) for split in (data.train, data.test))
    assert (len(train), len(test)) == (738, 119)
    assert not train & test


def test_next_words_follow_a_chain():
    """The commonest follower of a word takes most of its places, as the chain has it."""
    follow = {}
    for row in chats.next_words(request(2000, n_clients=10)):
        text = row["tokens"].split()
        for one, two in itertools.pairwise(text):
            follow.setdefault(one, []).append(two)
    shares = [
        max(map(f.count, set(f))) / len(f) for f in follow.values() if len(f) > 20
    ]
    assert 0.6 < np.mean(shares) < 0.85


# Expressions


def evaluated(tree, names):
    """The value of a parsed expression, by the standard library's own parser."""
    if isinstance(tree, ast.Constant):
        return tree.value
    if isinstance(tree, ast.Name):
        return names[tree.id]
    if isinstance(tree, ast.UnaryOp):
        return -evaluated(tree.operand, names)
    left, right = evaluated(tree.left, names), evaluated(tree.right, names)
    signs = {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}
    return signs[type(tree.op)]


@pytest.mark.parametrize(
    "text",
    ["1 + 2 * 3", "(1+2)*3", "a - b - 2", "-a * -(b + 1)", "2 * 3 - 4 * -5", "((a))"],
)
def test_values_are_those_of_pythons_grammar(text):
    tree = ast.parse(text, mode="eval").body
    for a, b in expressions.POINTS:
        assert expressions.value(text, a, b) == evaluated(tree, {"a": a, "b": b})


def test_made_expressions_have_the_value_of_pythons_grammar():
    rng = np.random.default_rng(0)
    for _ in range(200):
        _, text = expressions.problem(rng)
        tree = ast.parse(text, mode="eval").body
        assert expressions.value(text, 3, -2) == evaluated(tree, {"a": 3, "b": -2})


@pytest.mark.parametrize(
    "text",
    ["", "a b", "a +", "(a", "a)", "c", "__import__('os')", "a ** b", "a / b", "1.5",
     "(" * 40 + "a" + ")" * 40, "a+" * 200 + "a", "-" * 100 + "a", "²"],
)  # fmt: skip
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(expressions.NotAnExpression):
        expressions.value(text, 1, 2)
    assert not expressions.agrees(text, "a")


def test_agreement_is_of_values_and_not_of_letters():
    assert expressions.agrees("(b + a) * 2", "2*a + 2*b")
    assert not expressions.agrees("a * a", "a + a")  # alike at a = 0 and a = 2


# Scores of the gold answers are the largest that there are.


def scores(name, given, gold):
    """What answers score by the benchmark's judge: values of expressions, words in order."""
    judge = expressions.agrees if name == "flowertune/code" else rouge_l
    return np.array([judge(a, b) for a, b in zip(given, gold, strict=True)], float)


@pytest.mark.parametrize(
    "name",
    ["flowertune/code", "flowertune/finance", "flowertune/medical", "dolly/shepherd",
     "fedllm/chatbot-it", "commonsense/fslora"],
)  # fmt: skip
def test_gold_answers_score_one(name):
    benchmark = BENCHMARKS[name]
    made = benchmark.stand_in(sizes.request(benchmark, 0, 500, test=False))
    answer = "output" if "output" in made[0] else "response"
    gold = [row[answer] for row in made]
    np.testing.assert_array_equal(scores(name, gold, gold), 1)
    others = [*gold[1:], gold[0]]  # the answers of other rows
    assert scores(name, others, gold).mean() < 0.95


# Labels: the Bayes rate


@pytest.mark.parametrize(
    ("n_classes", "n_cues"), [(2, 1), (2, 4), (2, 7), (3, 4), (4, 3)]
)
def test_the_bayes_rate_is_that_of_all_sequences(n_classes, n_cues):
    own, other = 0.65, 0.35 / (n_classes - 1)
    total = 0.0
    for drawn in itertools.product(range(n_classes), repeat=n_cues):
        chance = np.prod([own if c == 0 else other for c in drawn])
        counts = np.bincount(drawn, minlength=n_classes)
        best = np.flatnonzero(counts == counts.max())
        total += chance * (0 in best) / len(best)
    assert labels.bayes_rate(n_classes, n_cues) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("name", ["glue/sst2", "glue/mnli", "20news"])
def test_the_best_guess_reaches_the_bayes_rate_and_no_more(name):
    benchmark = BENCHMARKS[name]
    made = benchmark.stand_in(request(6000))
    texts = [
        name
        for name in ("sentence", "premise", "hypothesis", "text")
        if name in made[0]
    ]
    rng, right = np.random.default_rng(1), 0
    for row in made:
        counts = labels.most_cues(" ".join(row[t] for t in texts), benchmark.classes)
        best = np.flatnonzero(counts == counts.max())
        right += rng.choice(best) == row["label"]
    rate = labels.bayes_rate(benchmark.classes)
    error = (rate * (1 - rate) / 6000) ** 0.5
    assert abs(right / 6000 - rate) < 4 * error
    assert rate > 1.5 / benchmark.classes


def test_a_classifier_that_learns_from_half_comes_between_chance_and_bayes():
    """Naive Bayes over words, from counts: the stand-in can be learnt."""
    made = BENCHMARKS["glue/sst2"].stand_in(request(6000))
    train, test = made[:4000], made[4000:]
    seen = {}
    for row in train:
        for word in row["sentence"].split():
            seen.setdefault(word, np.ones(2))[row["label"]] += 1
    right = 0
    for row in test:
        logs = [np.log(seen.get(w, np.ones(2))) for w in row["sentence"].split()]
        right += int(np.argmax(np.sum(logs, axis=0))) == row["label"]
    rate = labels.bayes_rate(2)
    assert 0.7 < right / 2000 < rate + 4 * (rate * (1 - rate) / 2000) ** 0.5


def test_the_best_correlation_of_scores():
    made = labels.similarities(request(5000))
    shared = [
        len(set(row["sentence1"].split()) & set(row["sentence2"].split()))
        for row in made
    ]
    scores = np.array([row["label"] for row in made])
    assert scores.min() >= 0
    assert scores.max() <= 5
    assert pearsonr(shared, scores).statistic == pytest.approx(
        labels.bayes_pearson(), abs=2e-3
    )


# Images


def test_the_nearest_prototype_is_the_label():
    made = BENCHMARKS["cifar10"].stand_in(request(200))
    means = images.prototypes(10, 32, 3).reshape(10, -1)
    pictures = np.stack([row["img"] for row in made]).reshape(200, -1).astype(float)
    nearest = ((pictures[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == [row["label"] for row in made]).mean() > 0.99


def test_writers_tilt_their_pictures():
    made = BENCHMARKS["femnist"].stand_in(request(2000, n_clients=10))
    brightness = np.array([row["image"].mean() for row in made]).reshape(10, 200)
    within = brightness.var(axis=1).mean() / 200
    assert brightness.mean(axis=1).var() > 20 * within
