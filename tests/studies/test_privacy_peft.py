"""The study on what parts of a model memorise, on made-up hidden states."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from made_up import made_up_states
from small_runs import check_scores, run_arms
from tiny_decoders import LLAMA
from tiny_encoder import BERT

from fedjax_fm import models, privacy, tasks, trees
from fedjax_fm.evaluation.leaks import span_residuals
from fedjax_fm.experiments.privacy_peft import (
    PARTS,
    STUDY,
    Config,
    conversations,
    inversion,
    leaks,
    likelihoods,
    tags,
    verdicts,
)
from fedjax_fm.experiments.privacy_peft.clients import Pool, deal, only, split_users
from fedjax_fm.experiments.privacy_peft.parts import adapted_by, upload
from fedjax_fm.experiments.privacy_peft.training import multiplier, scores
from fedjax_fm.experiments.shared.token_tail import DecoderTail, EncoderTail
from fedjax_fm.models.language_modeling import IGNORED
from fedjax_fm.population import samplers
from fedjax_fm.study.results import Results
from fedjax_fm.study.run import Run

WIDTH, LENGTH, CLASSES, USERS = 24, 7, 5, 60
SIZES = {"clients": 20, "outsiders": 12, "tuning_clients": 10, "test": 6}
SMALL = {"canaries": 10, "cohort": 10, "public_clients": 4, "few": 4, "candidates": 63}
PART = {"rank": 2, "core_rank": 2, "bottleneck": 3, "prompt": 2}
CONFIG = dataclasses.replace(Config().smoke(), **SIZES, **SMALL, **PART, rounds=4)
FIELDS = {**BERT, "hidden_size": WIDTH, "intermediate_size": 32}


def made_up_rows(n, seed=0, width=WIDTH):
    sizes = {"width": width, "length": LENGTH, "classes": CLASSES}
    return made_up_states(n, seed, **sizes)


def canary(canaries, seed):
    m, s = canaries.secrets.shape
    made = made_up_rows(m, 1000 + seed)
    made["attention_mask"][:] = 1
    made["labels"][:] = IGNORED
    made["labels"][:, 1 : s + 1] = canaries.secrets
    return made


@pytest.fixture(scope="module")
def pool():
    whole = models.from_config(FIELDS, num_labels=CLASSES, pooling="none", seed=0)
    sizes = {"tuning": 10, "validation": 6, "test": 6}
    return Pool(
        model=EncoderTail(whole),
        rows=made_up_rows(USERS * CONFIG.rows),
        users=split_users(USERS, **sizes),
        alphabet=np.arange(CLASSES, dtype=np.int32),
        secret=2,
        canary=canary,
        targets=r"^layer\.(intermediate|output)\.dense$",
    )


@pytest.fixture
def data(pool):
    return deal(pool, CONFIG, 0, "final")


@pytest.fixture
def run(data):
    return Run("arm", CONFIG, 0, "final", {}, lambda: data)


OF_A_LLAMA = {"lora": 192, "ffa_lora": 96, "fed_sb": 8, "adapter": 230, "bitfit": 128}
OF_A_LLAMA |= {
    "prompts": 32,
    "head": 80,
    "full": 2 * 272 + 2 * 136 + 2 * 544 + 528 + 128,
}


@pytest.mark.parametrize("part", PARTS)
def test_what_is_trained_of_a_decoder(data, part):
    tail = DecoderTail(LLAMA, np.arange(CLASSES, dtype=np.int32))
    public = made_up_rows(10, width=16)
    found = data._replace(model=tail, targets=conversations.TARGETS, public=public)
    run = Run("arm", CONFIG, 0, "final", {}, lambda: found)
    adapted = adapted_by(run, part)
    assert trees.size(adapted.delta) == OF_A_LLAMA[part]
    rows = {name: jnp.asarray(public[name]) for name in ("hidden", "attention_mask")}
    assert adapted.model()(**rows).shape == (10, LENGTH, CLASSES)


def rows_in(*parts):
    return {row.tobytes() for part in parts for row in part["hidden"]}


def test_members_outsiders_and_public_users_are_others(pool, data):
    tuning = deal(pool, CONFIG, 1000, "tuning")
    trained = rows_in(*data.clients)
    assert not trained & rows_in(data.outsiders, data.test, data.public)
    assert rows_in(data.members) <= trained
    assert rows_in(data.public) & rows_in(*tuning.clients)
    assert not rows_in(*tuning.clients) & (trained | rows_in(data.test))
    assert not rows_in(data.test) & rows_in(tuning.test)


def test_a_client_with_a_planted_canary_has_nothing_else(data):
    planted = data.canaries.is_planted
    assert 0 < planted.sum() < len(planted)
    trained = rows_in(*data.clients)
    for k, row in enumerate(data.secrets["hidden"]):
        assert (row.tobytes() in trained) == planted[k]
        own = data.clients[data.canaries.clients[k]]["hidden"]
        assert all((x == row).all() == planted[k] for x in own)
    assert not rows_in(data.members) & rows_in(data.secrets)


def test_a_few_clients_are_the_planted_ones_and_some_members(data):
    few = only(data, 4)
    assert len(few.clients) == data.canaries.is_planted.sum() + 4
    assert rows_in(few.members) <= rows_in(*few.clients)
    assert len(few.members["labels"]) == 4 * CONFIG.rows


def test_log_likelihoods_of_secrets_are_sums_over_their_places():
    rng = np.random.default_rng(0)
    chances = rng.normal(size=(3, 2, 5))
    found = rng.integers(0, 5, (3, 4, 2))
    expected = [
        [chances[i, 0, c[0]] + chances[i, 1, c[1]] for c in found[i]] for i in range(3)
    ]
    np.testing.assert_allclose(likelihoods.of_secrets(chances, found), expected)
    every = np.stack(np.meshgrid(range(5), range(5)), axis=-1).reshape(1, -1, 2)
    chances = np.log(rng.dirichlet(np.ones(5), size=(3, 2)))
    total = np.exp(likelihoods.of_secrets(chances, every)).sum(axis=1)
    np.testing.assert_allclose(total, 1.0)


def test_scores_of_a_model_against_loops_over_clients_and_canaries(run, data):
    adapted = adapted_by(run, "full")
    watched = leaks.watch(run, data, adapted)
    model = adapted.model()

    def log_p(rows):
        logits = model(jnp.asarray(rows["hidden"]), jnp.asarray(rows["attention_mask"]))
        return np.asarray(jax.nn.log_softmax(logits))

    rows, each = data.outsiders, log_p(data.outsiders)
    for client, found in enumerate(watched.before.outsiders):
        own = [
            each[row, t, label]
            for row in range(client * CONFIG.rows, (client + 1) * CONFIG.rows)
            for t, label in enumerate(rows["labels"][row])
            if label != IGNORED
        ]
        np.testing.assert_allclose(found, np.mean(own), rtol=1e-4)
    told, secrets = log_p(data.secrets), data.canaries.secrets
    for k, found in enumerate(watched.secrets_before):
        expected = told[k, 1, secrets[k, 0]] + told[k, 2, secrets[k, 1]]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    found = watched.of(adapted.delta, adapted.backbone)
    assert found.scores["area"] == 0.5  # nothing has changed
    assert found.scores["refuted"] == 0
    assert found.sides == (10, 12)


@pytest.mark.parametrize("part", PARTS)
def test_an_upload_is_the_gradient_over_all_labelled_tokens(run, data, part):
    adapted, rows = adapted_by(run, part), data.clients[0]
    task = tasks.token_classification(adapted)

    def mean(delta):
        model = adapted.model(delta)
        logits = model(jnp.asarray(rows["hidden"]), jnp.asarray(rows["attention_mask"]))
        counts = rows["labels"] != IGNORED
        nats = jax.nn.log_softmax(logits)[counts]
        return -nats[np.arange(counts.sum()), rows["labels"][counts]].mean()

    expected = jax.grad(mean)(adapted.delta)
    found = upload(task, adapted.delta, adapted.backbone, rows)
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


READ = {"full": 7, "lora": 4, "ffa_lora": 2, "fed_sb": 2, "adapter": 2, "head": 1}


def moved(adapted):
    """The model away from zeros, where factors have no gradient."""
    keys = iter(jax.random.split(jax.random.key(0), 100))
    delta = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), adapted.delta
    )
    return adapted._replace(delta=delta)


@pytest.mark.parametrize("part", PARTS)
def test_gradients_of_matrices_lie_in_the_span_of_what_they_read(run, data, part):
    adapted = moved(adapted_by(run, part))
    task, own = tasks.token_classification(adapted), data.clients[1]
    sent = upload(task, adapted.delta, adapted.backbone, own)
    matrices = inversion.matrices_of(sent)
    assert len(matrices) == READ.get(part, 0)
    inputs = inversion.inputs_of(adapted, list(matrices), own)
    for name, matrix in matrices.items():
        read = inputs[name][own["attention_mask"] == 1]
        outside = span_residuals(read.T, matrix.T)
        assert np.linalg.norm(matrix) > 0
        weights = np.linalg.norm(matrix, axis=0)
        np.testing.assert_allclose(outside * weights, 0, atol=1e-4 * weights.max())
        if matrix.shape[0] == WIDTH:  # and other inputs do not span it
            rng = np.random.default_rng(0)
            other = rng.normal(size=read.shape)
            assert (span_residuals(other.T, matrix.T) > 0.3).any()


def test_full_tuning_is_read_and_biases_and_the_first_factors_are_not(run, data):
    def found(part, noise=0.0):
        adapted = adapted_by(run, part)
        task = tasks.token_classification(adapted)
        values = []
        for client in range(3):
            own = data.clients[client]
            sent = upload(task, adapted.delta, adapted.backbone, own)
            sent = inversion.noisy(sent, 1.0, noise, jax.random.key(client))
            others = data.outsiders
            values.append(inversion.recovered(adapted, sent, own, others, seed=client))
        return float(np.mean(values))

    assert found("full") == 1.0
    chance = CONFIG.rows / (CONFIG.rows * (1 + CONFIG.outsiders))
    for part in ("bitfit", "prompts", "lora", "ffa_lora"):
        assert found(part) < 4 * chance, part
    assert found("full", noise=1.0) < 4 * chance


def test_noise_is_added_to_what_is_clipped():
    sent = {"w": jnp.full((300, 300), 2.0)}
    plain = inversion.noisy(sent, 3.0, 0.0, jax.random.key(0))["w"]
    np.testing.assert_allclose(np.linalg.norm(plain), 3.0, rtol=1e-5)
    small = inversion.noisy({"w": jnp.ones(4)}, 3.0, 0.0, jax.random.key(0))["w"]
    np.testing.assert_allclose(small, 1.0)
    loud = inversion.noisy(sent, 3.0, 0.5, jax.random.key(0))["w"] - plain
    n = loud.size
    assert abs(float((loud**2).sum()) / 1.5**2 - n) < 4 * math.sqrt(2 * n)


@pytest.mark.parametrize("shape", [(6, 5), (5, 6)])
def test_leading_vectors_span_the_nearest_matrix_of_that_rank(shape):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=shape)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    found = inversion.leading(matrix, 2)
    nearest = (u[:, :2] * s[:2]) @ vt[:2]
    np.testing.assert_allclose(found @ found.T, nearest @ nearest.T, atol=1e-9)
    low = rng.normal(size=(shape[0], 2)) @ rng.normal(size=(2, shape[1]))
    assert inversion.leading(low, 4).shape == (shape[0], 2)
    assert inversion.leading(np.zeros(shape), 4).shape == (shape[0], 0)


def test_at_equal_loss_is_the_first_look_at_the_target():
    columns = ("round", "eval_loss", "eval_exposure", "eval_area")
    curve = [
        dict(zip(columns, row, strict=True))
        for row in ((2, 0.9, 1.0, 0.5), (4, 0.5, 3.0, 0.6), (6, 0.6, 5.0, 0.7))
    ]
    found = scores(curve, target=0.6)
    assert found["exposure"] == 3.0
    assert found["final"] == 5.0
    assert found["area_at"] == 0.6
    assert found["reached"] == 4
    assert found["loss"] == 0.6
    assert found["loss_at"] == 0.5
    assert scores(curve, target=0.95)["exposure"] == 1.0
    never = scores(curve, target=0.1)
    assert "reached" not in never
    assert never["exposure"] == 3.0  # at the lowest loss


@pytest.mark.parametrize("epsilon", [8.0, 2.0, 0.5])
def test_the_noise_spends_epsilon_with_the_sampler_of_a_run(epsilon):
    config = Config()
    sampler = samplers.poisson(config.clients, config.cohort / config.clients)
    how = {"rounds": config.rounds, "delta": config.delta}
    z = multiplier(epsilon, config)
    found = privacy.spent(sampler, privacy.independent(), float(z), **how)
    assert 0.99 * epsilon < found.epsilon <= epsilon
    assert z.accounted.law == sampler.law


def test_next_tokens_of_a_vocabulary():
    ids = np.array([[5, 7, 9, 0], [7, 5, 5, 8]], np.int32)
    tokens = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int32)}
    found = conversations.next_of(tokens, np.array([5, 7, 8], np.int32))
    no = IGNORED
    assert found.tolist() == [[1, no, no, no], [0, 0, 2, no]]
    common = conversations.commonest(np.array([[4, 4, 0], [9, 3, 3]]), 2, pad=0)
    assert common.tolist() == [3, 4]


def test_random_sentences_have_pieces_of_real_ones_and_their_tags():
    tokens = {
        "input_ids": np.array([[101, 7, 8, 102, 0, 0], [101, 9, 7, 5, 102, 0]]),
        "attention_mask": np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]),
        "labels": np.full((2, 6), IGNORED),
    }
    found = tags.random_sentences(np.array([[3, 1], [0, 2], [4, 4]]), tokens, seed=0)
    assert set(found["input_ids"][:, 1:3].ravel().tolist()) <= {5, 7, 8, 9}
    assert found["input_ids"][:, [0, 3]].tolist() == [[101, 102]] * 3
    assert found["labels"][:, 1:3].tolist() == [[3, 1], [0, 2], [4, 4]]
    assert (found["labels"] == IGNORED).sum() == 3 * 4
    assert found["attention_mask"].sum(axis=1).tolist() == [4, 4, 4]


def test_users_are_sentences_of_one_text_that_follow_each_other():
    documents = np.array(["a"] * 5 + ["b"] * 4)
    rows = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])
    found = tags.users_of(documents, rows, 2, 4)
    assert sorted(map(tuple, found.tolist())) == [(0, 1), (2, 3), (5, 6), (7, 8)]
    with pytest.raises(ValueError, match="expected 5 users, the texts give 4"):
        tags.users_of(documents, rows, 2, 5)


def test_too_few_users_are_told(pool):
    with pytest.raises(ValueError, match="38 users with 2 rows, clients=30"):
        deal(pool, dataclasses.replace(CONFIG, clients=30), 0, "final")


RUN = ("full_noiseless", "lora_noiseless", "ffa_lora_eps2", "untrained", "overfitted")


def test_arms_give_their_scores(monkeypatch, pool):
    monkeypatch.setattr(tags, "pool", lambda config: pool)
    left = [arm.name for arm in STUDY.arms if arm.name not in RUN]
    found = run_arms(STUDY, CONFIG, leave_out=left)
    check_scores(STUDY, found)
    assert found["ffa_lora_eps2"].scores["noise"] > 0
    assert found["full_noiseless"].scores["noise"] == 0
    assert found["untrained"].scores["area"] == 0.5
    assert found["overfitted"].scores["loss"] != found["untrained"].scores["loss"]
    notes = found["full_noiseless"].run.notes
    assert len(notes["exposures"]["planted"]) + len(
        notes["exposures"]["left_out"]
    ) == len(deal(pool, CONFIG, 0, "final").secrets["labels"])
    lora, ffa = (found[name].scores["numbers"] for name in RUN[1:3])
    assert lora == 2 * ffa


def test_rates_are_chosen_by_the_loss(monkeypatch, pool):
    monkeypatch.setattr(tags, "pool", lambda config: pool)
    own = deal(pool, CONFIG, 1000, "tuning")
    run = Run("lora", CONFIG, 1000, "tuning", {"learning_rate": 1e-2}, lambda: own)
    found = STUDY.arm("lora_eps2").run(run)
    assert set(found) == {"exposure"}
    assert found["exposure"] == run.curve[-1]["eval_loss"]


def test_every_arm_with_noise_takes_the_rate_of_epsilon_two():
    noisy = [arm for arm in STUDY.arms if arm.name.endswith(("eps8", "eps0.5"))]
    assert len(noisy) == 2 * len(PARTS)
    assert {arm.like.split("_eps")[1] for arm in noisy} == {"2"}
    STUDY.check_budgets(Config())
    STUDY.check_budgets(Config().smoke())


def made_up_results(found=True, refuted=0.0):
    """Exposures of chance, but of what was planted in an overfitted model."""
    rng = np.random.default_rng(0)
    arms = {}
    for arm in STUDY.arms:
        runs = []
        for seed in range(3):
            chance = rng.exponential(1 / math.log(2), 80)
            seen = arm.name == "overfitted" and found
            planted = chance[:40] + (9.0 if seen else 0.0)
            noise = 0.1 * ("eps" in arm.name) * (2 if arm.name[:5] == "lora_" else 1)
            values = {
                "exposure": planted.mean(),
                "loss": 1.0 + noise + 0.01 * rng.normal(),
                "area": 0.95 if seen else 0.5,
                "area_of_loss": 0.5,
                "refuted": refuted,
            }
            exposures = {"planted": planted.tolist(), "left_out": chance[40:].tolist()}
            runs.append(
                {
                    "seed": seed,
                    "scores": values,
                    "exposures": exposures,
                    "sides": [80, 80],
                }
            )
        arms[arm.name] = {"label": arm.title, "runs": runs}
    scores = [vars(score) for score in STUDY.all_scores]
    return Results(
        {
            "arms": arms,
            "scores": scores,
            "comparisons": STUDY.comparisons,
            "config": {"delta": 1e-4},
        }
    )


def test_controls_hold_where_they_must_and_fail_where_not():
    held = verdicts.checks(made_up_results())
    assert all(check.holds for check in held)
    broken = verdicts.checks(made_up_results(found=False))
    fails = [check.name for check in broken if not check.holds]
    assert fails == [x.name for x in broken if x.name.endswith("are found")]
    refuted = verdicts.checks(made_up_results(refuted=3.0))
    fails = [check.name for check in refuted if not check.holds]
    assert fails == ["epsilon 0.5: no run refutes it"]


def test_the_cost_of_noise_in_both_factors_is_one_family_with_exposure():
    results = made_up_results()
    found = verdicts.family(results)
    assert len(found) == len(STUDY.comparisons) + 3
    one = found["cost of epsilon 2 in nats, lora against ffa_lora"]
    assert abs(one.difference + 0.1) < 0.05  # lora loses 0.2, ffa_lora 0.1
    assert len(verdicts.written(results)) == len(found) + len(verdicts.checks(results))


def test_taps_do_not_stay_in_the_model(run, data):
    adapted = adapted_by(run, "full")
    sent = upload(
        tasks.token_classification(adapted),
        adapted.delta,
        adapted.backbone,
        data.clients[0],
    )
    inversion.inputs_of(adapted, list(inversion.matrices_of(sent)), data.clients[0])
    assert not any(
        isinstance(module, inversion.Tap)
        for _, module in nnx.iter_modules(adapted.model())
    )


def test_as_many_canaries_as_clients_are_refused(pool):
    with pytest.raises(
        ValueError, match="fewer canaries than clients=20, got canaries=20"
    ):
        deal(pool, dataclasses.replace(CONFIG, canaries=20), 0, "final")
