"""`fedjax-fm audit` on folders of runs: what it finds, what it refuses, what it writes."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from small_checkpoints import (
    BERT,
    LLAMA,
    TEMPLATE,
    WORDS,
    checkpoint,
    reviews,
    write_jsonl,
)

from fedjax_fm.audit import page, subject
from fedjax_fm.audit.command import Effort, audit
from fedjax_fm.audit.findings import FAILS, HOLDS, LEAKS, NOTHING, SKIPPED, skipped
from fedjax_fm.audit.secrets import _verdict
from fedjax_fm.audit.subject import Promise
from fedjax_fm.cli import main
from fedjax_fm.evaluation.leaks import LowerBound
from fedjax_fm.runs.errors import UsageError
from fedjax_fm.runs.folder import RunFolder

N_CLIENTS, EACH = 16, 8
SMALL = (
    *("--cohort", str(N_CLIENTS), "--batch-size", "4", "--max-length", "16"),
    *("--holdout-clients", "0", "--holdout-examples", "0.5", "--no-baselines"),
    *("--text", "text", "--client", "user_id", "--schedule", "constant"),
)


def random_texts():
    """Eight words a row, so that no row tells anything of another."""
    random = np.random.default_rng(0)
    return [
        {"text": " ".join(random.choice(WORDS, 8)), "user_id": f"u{client}"}
        for client in range(N_CLIENTS)
        for _ in range(EACH)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("audit")
    checkpoint(place / "llama", LLAMA, TEMPLATE)
    checkpoint(place / "bert", BERT)
    write_jsonl(place / "texts.jsonl", random_texts())
    write_jsonl(place / "reviews.jsonl", reviews())
    return place


def finetune(folder, name, *words, model="llama", data="texts.jsonl", small=SMALL):
    model, data, place = (str(folder / one) for one in (model, data, name))
    main(["finetune", "--model", model, "--data", data, "--out", place, *small, *words])
    return folder / name


@pytest.fixture(scope="module")
def untrained(folder):
    """Steps too small to learn anything."""
    words = ("--rounds", "1", "--learning-rate", "1e-9", "--canaries", "12")
    return finetune(folder, "untrained", *words)


def by_name(found):
    return {one.name: one for one in found.findings}


EFFORT = Effort(examples=64, candidates=127)


def test_a_run_that_learnt_nothing_leaks_nothing(untrained):
    found = audit(untrained, effort=EFFORT)
    lines = by_name(found)
    for name, one in lines.items():
        # An upload gives its text away whether or not the model has learnt something.
        if not name.startswith("inversion"):
            assert one.verdict in (NOTHING, HOLDS, SKIPPED), name
    loss = lines["membership: loss"]
    assert loss.figure.low <= 0.5 <= loss.figure.high
    planted, left_out = lines["canaries, planted"], lines["control: canaries, left out"]
    assert planted.figure.low <= 1.443 <= planted.figure.high
    assert left_out.verdict == HOLDS
    assert lines["epsilon from one run"].figure.value == 0.0


def test_the_command_writes_a_page_a_picture_and_figures(untrained, capsys):
    main(["audit", str(untrained), "--examples", "64", "--candidates", "127"])
    said = capsys.readouterr().out
    assert "membership: Min-20 %" in said
    text = (untrained / "audit.md").read_text(encoding="utf-8")
    assert "| membership: loss | area under the ROC curve |" in text
    assert "What this cannot show" in text
    ElementTree.fromstring((untrained / "audit.svg").read_text(encoding="utf-8"))
    fields = json.loads((untrained / "audit.json").read_text(encoding="utf-8"))
    names = [one["name"] for one in fields["findings"]]
    assert all(name in text and name in said for name in names)
    assert fields["seed"] == 0


@pytest.mark.slow
def test_an_overfitted_run_leaks(folder):
    words = ("--rounds", "12", "--local-steps", "24", "--learning-rate", "0.02")
    more = (
        "--peft",
        "full",
        "--every",
        "12",
        "--canaries",
        "16",
        "--canary-repeats",
        "3",
    )
    lines = by_name(audit(finetune(folder, "overfitted", *words, *more), effort=EFFORT))
    for name in ("loss", "Min-20 %", "loss against the base model"):
        one = lines[f"membership: {name}"]
        assert one.verdict == LEAKS
        assert one.figure.value > 0.8
    assert lines["canaries, planted"].verdict == LEAKS
    assert lines["canaries, planted"].figure.value > 5  # of 7
    assert lines["epsilon from one run"].figure.value > 0
    for name, one in lines.items():
        if name.startswith("control"):
            assert one.verdict == HOLDS, name


@pytest.mark.slow
def test_a_private_run_keeps_its_promise(folder):
    words = ("--rounds", "2", "--learning-rate", "0.02", "--canaries", "16")
    more = ("--method", "dp_fedavg", "--epsilon", "4", "--dp-delta", "0.01")
    place = finetune(folder, "private", *words, *more)
    line = by_name(audit(place, effort=EFFORT))["epsilon from one run"]
    assert line.verdict == HOLDS
    # The sampler draws without replacement: one client's data replaced, as it is tested.
    assert subject.opened(place).promise.epsilon == pytest.approx(4.0, rel=1e-3)
    assert "the accountant's bound for this change is 4" in line.note


@pytest.mark.slow
def test_a_classifier_is_audited_by_its_loss(folder, capsys):
    small = (
        "--client",
        "user",
        "--rounds",
        "1",
        "--max-length",
        "16",
        "--no-baselines",
    )
    words = {"model": "bert", "data": "reviews.jsonl", "small": small}
    place = finetune(folder, "classified", "--holdout-examples", "0.5", **words)
    lines = by_name(audit(place, effort=EFFORT))
    assert lines["membership: loss"].verdict in (LEAKS, NOTHING)
    assert lines["membership: Min-20 %"].verdict == SKIPPED
    assert "--canaries" in lines["canaries"].note
    with pytest.raises(SystemExit):
        finetune(folder, "refused", "--canaries", "2", **words)
    assert "this run trains a classifier" in capsys.readouterr().err


# What is refused, by name


def test_a_study_is_refused(tmp_path):
    folder = RunFolder.create(tmp_path / "study", {"rounds": 1}, "quickstart")
    folder.write_json("results.json", {})
    with pytest.raises(
        UsageError, match=r"study, 'quickstart': it keeps scores, .*inversion"
    ):
        audit(folder.path)


def test_a_run_of_own_code_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"round": 1, "loss": 0.5})
    with pytest.raises(UsageError, match="a run of your own code"):
        audit(tmp_path)


def test_any_other_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no folder of a run"):
        audit(tmp_path / "nothing")


def test_a_seed_that_was_not_run_is_refused(untrained):
    with pytest.raises(UsageError, match=r"has the seeds \(0,\), got seed=3"):
        audit(untrained, seed=3)


def test_effort_that_is_none_is_refused(untrained):
    with pytest.raises(UsageError, match="examples >= 2, got examples=1"):
        audit(untrained, effort=Effort(examples=1))


def test_more_canaries_than_clients_are_refused(folder, capsys):
    with pytest.raises(SystemExit):
        finetune(folder, "many", "--rounds", "1", "--canaries", "17")
    assert "no client has two, and 16 train" in capsys.readouterr().err
    assert not (folder / "many").exists()


# The promise


def bound(epsilon):
    return LowerBound(
        epsilon=epsilon, ceiling=3.0, delta=1e-5, n_correct=9, n_guesses=9, n_canaries=9
    )


def test_a_bound_above_the_promise_refutes_it():
    assert _verdict(bound(2.1), Promise(2.0, 1e-5))[0] == FAILS
    assert _verdict(bound(1.9), Promise(2.0, 1e-5))[0] == HOLDS
    assert _verdict(bound(1.9), Promise(None, 0.0))[0] == LEAKS
    assert _verdict(bound(0.0), Promise(None, 0.0))[0] == NOTHING


def test_two_steps_cost_twice():
    found = subject.for_a_replaced_client(
        1.0, 1e-5, "one client's contribution there or zero"
    )
    assert found.epsilon == 2.0
    assert found.delta == pytest.approx((1 + np.e) * 1e-5)


def test_markup_in_a_note_stays_text():
    (row,) = page.table([skipped("<b>x</b>|y", "line\nend")])[2:]
    assert "&lt;b&gt;x&lt;/b&gt;\\|y" in row
    assert "line end" in row
