"""`fedjax-fm finetune` as a person uses it: one command, on small checkpoints."""

import json
import shutil

import numpy as np
import pytest
from small_checkpoints import (
    BERT,
    GPT2,
    LLAMA,
    TEMPLATE,
    VIT,
    chats,
    checkpoint,
    reviews,
    write_jsonl,
)

import fedjax_fm as ffm
from fedjax_fm import models
from fedjax_fm.cli import main
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.finetune import command, talk
from fedjax_fm.finetune import data as of_data
from fedjax_fm.finetune.outputs import restored
from fedjax_fm.finetune.settings import Settings, read_toml
from fedjax_fm.runs.settings import replace

SMALL = (
    *("--rounds", "2", "--cohort", "3", "--batch-size", "2"),
    *("--max-length", "16", "--rank", "2", "--new-tokens", "3", "--answers", "3"),
    *("--local-clients", "2"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("finetune")
    checkpoint(place / "llama", LLAMA, TEMPLATE)
    checkpoint(place / "bert", BERT)
    checkpoint(place / "gpt2", GPT2)
    checkpoint(place / "vit", VIT)
    write_jsonl(place / "chats.jsonl", chats())
    write_jsonl(place / "reviews.jsonl", reviews())
    return place


def finetune(folder, out, *words, model="llama", data="chats.jsonl"):
    """Runs the command and returns the folder of its run."""
    place = folder / out
    if "--epochs" not in words:
        words = ("--local-steps", "1", *words)
    main(
        [
            *("finetune", "--model", str(folder / model), "--data", str(folder / data)),
            *("--out", str(place), *SMALL, *map(str, words)),
        ]
    )
    return place


@pytest.fixture(scope="module")
def chatted(folder):
    return finetune(folder, "chatted", "--merge", "safetensors", "--seeds", 0, 1, 2)


@pytest.fixture(scope="module")
def classified(folder):
    words = ("--peft", "lora", "--client", "user", "--learning-rate", "0.01")
    return finetune(folder, "classified", *words, model="bert", data="reviews.jsonl")


def test_a_run_leaves_everything_that_a_person_wants(chatted):
    for name in (
        "report.html", "RESULTS.md", "finetune.toml", "results.json", "finetune.json",
        "provenance.json", "model/adapter/adapter_config.json", "model/delta.npz",
        "model/adapter/adapter_model.safetensors", "model/adapter/README.md",
        "model/merged/model.safetensors", "model/merged/tokenizer.json",
        "model-seed-1/delta.npz",
    ):  # fmt: skip
        assert (chatted / name).is_file(), name
    found = json.loads((chatted / "results.json").read_text())
    assert list(found["arms"]) == ["federated", "centralised", "local", "zero_shot"]
    runs = found["arms"]["federated"]["runs"]
    assert [one["seed"] for one in runs] == [0, 1, 2]
    assert all(np.isfinite(one["scores"]["perplexity"]) for one in runs)
    answers = runs[0]["answers"]
    assert len(answers) == 3
    assert set(answers[0]) == {"prompt", "wanted", "before", "after"}
    page = (chatted / "report.html").read_text()
    assert "Held-out prompts" in page
    assert "SHA-256" in page


def test_bytes_are_those_of_the_adapter_and_its_cohort(chatted):
    found = json.loads((chatted / "results.json").read_text())
    one = found["arms"]["federated"]["runs"][0]
    with np.load(chatted / "model" / "delta.npz") as arrays:
        n_bytes = sum(4 * array.size for array in arrays.values())
    assert one["uplink_bytes"] == one["downlink_bytes"] == 2 * 3 * n_bytes
    assert found["arms"]["centralised"]["runs"][0]["uplink_bytes"] == 0


def test_the_adapter_opens_in_peft_with_the_same_logits(folder, chatted):
    torch = pytest.importorskip("torch")
    hf_peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
    theirs = hf_peft.PeftModel.from_pretrained(base, chatted / "model" / "adapter")
    model = talk.opened(chatted)
    ids = np.array([[7, 8, 9, 10, 11]], np.int32)
    ours = model.adapted.model(*model.parts)(ids)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids, dtype=torch.int64)).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours), expected, atol=1e-5)
    start = model.adapted.model()(ids)
    assert not np.allclose(np.asarray(start), expected, atol=1e-5)


def test_the_merged_model_gives_the_same_logits(chatted):
    model = talk.opened(chatted)
    ids = np.array([[7, 8, 9, 10, 11]], np.int32)
    merged = models.from_pretrained(chatted / "model" / "merged")
    ours = model.adapted.model(*model.parts)(ids)
    np.testing.assert_allclose(np.asarray(merged(ids)), np.asarray(ours), atol=1e-5)


def test_the_toml_file_reproduces_the_run(folder, chatted):
    again = folder / "again"
    main(["finetune", str(chatted / "finetune.toml"), "--out", str(again)])
    first, second = (
        json.loads((place / "results.json").read_text()) for place in (chatted, again)
    )
    assert first["arms"] == second["arms"]
    one, other = (np.load(place / "model" / "delta.npz") for place in (chatted, again))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_an_interrupted_run_goes_on(folder, chatted):
    settings = command.settings_from(chatted / "finetune.toml", {})
    settings = Settings(**{**vars(settings), "out": str(folder / "cut")})
    begun = command.begin(command.resolved(settings))
    assert read_toml(begun.path / "finetune.toml")["rounds"] == 2
    main(["finetune", "--resume", str(begun.path)])
    first, second = (
        json.loads((place / "results.json").read_text())
        for place in (chatted, begun.path)
    )
    assert first["arms"] == second["arms"]


def test_pages_are_written_again(chatted, capsys):
    page = chatted / "report.html"
    before = page.read_text()
    page.unlink()
    main(["report", str(chatted)])
    assert page.read_text() == before


def test_a_folder_that_is_there_says_how_to_go_on(folder, chatted, capsys):
    with pytest.raises(SystemExit):
        finetune(folder, "chatted")
    assert f"fedjax-fm finetune --resume {chatted}" in capsys.readouterr().err


def test_a_talk(chatted):
    asked, told = iter(["say the number of red", "and blue", None]), []
    talk.chat(chatted, lambda: next(asked), told.append)
    assert len(told) == 2


def test_predictions_of_texts(folder, chatted):
    rows = chats(n_clients=2, each=2)
    path = write_jsonl(folder / "new.jsonl", rows)
    target, scores = talk.predict(chatted, path, None)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3]
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"]))


def test_a_classifier(folder, classified):
    found = json.loads((classified / "results.json").read_text())
    assert found["scores"][0]["name"] == "accuracy"
    path = write_jsonl(folder / "more.jsonl", reviews(16))
    target, scores = talk.predict(classified, path, folder / "out.jsonl")
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    right = [
        line["label"] == row["label"]
        for line, row in zip(lines, reviews(16), strict=True)
    ]
    assert scores["accuracy"] == pytest.approx(np.mean(right))
    config = json.loads((classified / "model/adapter/adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"


def test_classes_that_were_not_trained_are_refused(folder, classified):
    rows = [{"text": "a", "label": "odd", "user": 1}, {"text": "b", "label": "pos"}]
    path = write_jsonl(folder / "odd.jsonl", rows)
    with pytest.raises(SystemExit):
        main(["predict", str(classified), str(path)])
    with pytest.raises(SystemExit):
        main(["predict", str(classified), str(folder / "chats.jsonl")])


def test_predictions_need_no_classes(folder, classified):
    rows = reviews(16)
    path = write_jsonl(folder / "whole.jsonl", rows)
    target, _ = talk.predict(classified, path, None)
    wanted = target.read_text()
    bare = [{"text": row["text"]} for row in rows]
    target, scores = talk.predict(
        classified, write_jsonl(folder / "bare.jsonl", bare), None
    )
    assert scores == {}
    assert target.read_text() == wanted
    # Of one class alone; a row without one is predicted, too.
    some = [rows[0], rows[2], {**rows[4], "label": None}]
    target, scores = talk.predict(
        classified, write_jsonl(folder / "some.jsonl", some), None
    )
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    right = [line["label"] == "pos" for line in lines[:2]]
    assert len(lines) == 3
    assert scores["accuracy"] == pytest.approx(np.mean(right))


def test_predictions_need_no_answers(folder, chatted):
    rows = chats(n_clients=2, each=2)
    target, _ = talk.predict(
        chatted, write_jsonl(folder / "answered.jsonl", rows), None
    )
    wanted = [json.loads(line)["answer"] for line in target.read_text().splitlines()]
    bare = [{"instruction": row["instruction"]} for row in rows]
    target, scores = talk.predict(
        chatted, write_jsonl(folder / "asked.jsonl", bare), None
    )
    found = [json.loads(line)["answer"] for line in target.read_text().splitlines()]
    assert found == wanted
    assert scores == {}


def test_images_in_folders(folder):
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (folder / "images" / name).mkdir(parents=True)
        for k in range(12):
            pixels = random.integers(level - 30, level + 30, (20, 20, 3)).astype(
                "uint8"
            )
            image.fromarray(pixels).save(folder / "images" / name / f"{k}.png")
    words = ("--client", "iid:4", "--no-baselines", "--peft", "vpt:2,mode=shallow")
    run = finetune(folder, "pictures", *words, model="vit", data="images")
    found = json.loads((run / "results.json").read_text())
    assert list(found["arms"]) == ["federated", "zero_shot"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plain texts", ("--text", "instruction", "--client", "user_id")),
        ("a base model", ("--template", "flan", "--uplink", "top_k:0.5|quantize:4")),
        ("packed", ("--template", "alpaca_short", "--pack", "--max-length", 24)),
        ("epochs", ("--template", "flan", "--epochs", 1, "--sampler", "poisson")),
    ],
)
def test_gpt2(name, words, folder):
    run = finetune(folder, f"gpt2 {name}", *words, "--no-baselines", model="gpt2")
    assert (run / "model/adapter/adapter_config.json").is_file()


def test_a_model_of_texts_continues_each_by_itself(folder):
    words = ("--text", "instruction", "--client", "user_id", "--no-baselines")
    run = finetune(folder, "continued", *words)
    asked, told = iter(["say the", "number of", None]), []
    talk.chat(run, lambda: next(asked), told.append)
    assert len(told) == 2


def test_answers_that_call_tools_are_shown(folder):
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ m.content or 'two' }} </s> {% else %}{{ m.content }} {% endif %}{% endfor %}"
    )
    (folder / "tools.jinja").write_text(template, encoding="utf-8")
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    rows = [
        {
            "user_id": row["user_id"],
            "messages": [
                {"role": "system", "content": "say"},
                {"role": "user", "content": row["instruction"]},
                {"role": "assistant", "content": None, "tool_calls": [call]},
            ],
        }
        for row in chats()
    ]
    write_jsonl(folder / "tools.jsonl", rows)
    words = ("--template", folder / "tools.jinja", "--no-baselines")
    run = finetune(folder, "tools", *words, data="tools.jsonl")
    found = json.loads((run / "results.json").read_text())
    shown = found["arms"]["federated"]["runs"][0]["answers"][0]["wanted"]
    assert json.loads(shown) == {"tool_calls": [call]}


def test_own_examples_are_scored_by_the_clients_own_models(folder):
    words = ("--method", "local_only", "--no-baselines", "--learning-rate", 0.3)
    words = (*words, "--holdout-clients", 0, "--holdout-examples", 0.3)
    # The first client has too few examples for any to be held out.
    rows = [row for row in chats() if row["user_id"] != "user 0"]
    first = {"instruction": "say", "output": "one", "user_id": "user 0"}
    write_jsonl(folder / "uneven.jsonl", [first, *rows])
    run = finetune(folder, "own models", *words, data="uneven.jsonl")
    settings = replace(Settings(), **read_toml(run / "finetune.toml"))
    data = of_data.load(settings, 0, "final")
    kept = []
    for k, rows in enumerate(data.own):
        if len(rows["labels"]):
            delta = np.load(run / f"model/clients/{k}.npz")
            place = run / f"model/clients/{k}.npz"
            tree = restored(data.adapted.delta, dict(delta), place)
            scores = ffm.evaluate(data.task, tree, data.adapted.backbone, rows)
            kept.append(np.exp(means(scores)["loss"]))
    found = json.loads((run / "results.json").read_text())
    (one,) = found["arms"]["federated"]["runs"]
    np.testing.assert_allclose(one["clients"], kept, rtol=1e-4)


def test_no_unseen_client_without_an_example_is_called_one(folder, capsys):
    rows = [
        {"instruction": f"say {k % 5}", "output": "one", "user_id": f"user {k % 4}"}
        for k in range(40)
    ]
    write_jsonl(folder / "alike.jsonl", rows)
    with pytest.raises(SystemExit):
        finetune(folder, "alike", "--holdout-clients", 0.3, data="alike.jsonl")
    assert "nothing is held out" in " ".join(capsys.readouterr().err.split())


METHODS = {
    "fedavg": ("--server-optimizer", "fedadam:1e-2"),
    "fedit": (),
    "ffa_lora": (),
    "fedsa_lora": (),
    "rolora": (),
    "hetlora": (),
    "flexlora": (),
    "fedex_lora": (),
    "flora": (),
    "lora_fair": (),
    "fedsvd": (),
    "slora:sparse_rounds=1": (),
    "lora_a2": (),
    "fedask:sketch=16": (),
    "fslora": (),
    "fedrpca": (),
    "fedrot_lora": (),
    "feddpa_t": (),
    "feddpa_f": (),
    "fedkseed": (),
    "fedpaq": (),
    "fedlin": (),
    "fedobd": (),
    "flasc": (),
    "docofl": (),
    "local_only": (),
    "fedper:personal=lora_b": (),
    "apfl": (),
    "dp_fedavg": ("--epsilon", "50", "--sampler", "poisson"),
    "scaffold": (),
    "moon": (),
}
# They share what the two above them are made of.
OF_OPTIMISATION = {
    "fedprox:mu=0.1": (),
    "fedprox_adaptive": (),
    "fedsgd": (),
    "fedavgm": (),
    "fedadagrad": (),
    "fedyogi": (),
    "fedadam:server_learning_rate=0.01": (),
    "feddyn": (),
    "fednova": (),
    "mime": ("--optimizer", "sgd:momentum=0.9"),
    "mimelite": (),
    "diloco": (),
    "streaming_diloco:fragments=2": ("--local-steps", "4"),
    "qfedavg": (),
}
# They differ in what they keep of the same adapter.
OF_PRUNING = {
    "gradual_pruning:final_sparsity=0.5,last=1": (),
    "lottery_ticket:levels=1,rounds_per_level=1": (),
    "movement_pruning:final_sparsity=0.5,last=1": (),
    "soft_movement_pruning:penalty=0.1": (),
}
SLOWER = OF_OPTIMISATION | OF_PRUNING
METHODS |= SLOWER


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOWER else ())
        for name in METHODS
    ],
)
def test_every_method_by_name(method, folder):
    if method == "dp_fedavg":
        pytest.importorskip("dp_accounting")
    words = ("--method", method, *METHODS[method], "--no-baselines", "--answers", 0)
    run = finetune(folder, f"method {method.split(':')[0]}", *words)
    found = json.loads((run / "results.json").read_text())
    (one,) = found["arms"]["federated"]["runs"]
    assert np.isfinite(one["scores"]["perplexity"])
    if method == "dp_fedavg":
        assert 0 < one["epsilon"] <= 50
    saved = json.loads((run / "model/saved.json").read_text())
    if method in ("fedex_lora", "flora"):
        assert not saved["adapter"]
        assert saved["merged"] == ["merged"]
    else:
        assert saved["adapter"]


PEFT = (
    *("dora", "ia3", "prompt_tuning:2", "prefix_tuning:2", "houlsby:2", "bitfit"),
    *("full", "lora_xs:2", "ravan:2", "parallel_adapter:2"),
)


@pytest.mark.parametrize("method", PEFT)
def test_every_adapter_by_name(method, folder):
    words = ("--peft", method, "--no-baselines", "--answers", 0, "--rounds", 1)
    model = "bert" if method == "bitfit" else "llama"
    data = ("--client", "user") if model == "bert" else ()
    name = "reviews.jsonl" if model == "bert" else "chats.jsonl"
    run = finetune(folder, f"peft {method}", *words, *data, model=model, data=name)
    saved = json.loads((run / "model/saved.json").read_text())
    in_peft = method.split(":")[0] in ("dora", "ia3", "prompt_tuning", "prefix_tuning")
    assert saved["adapter"] == in_peft
    talk.opened(run)


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(folder, capsys):
    run = finetune(folder, "dry", "--dry-run")
    said = capsys.readouterr().out
    assert not run.exists()
    for word in (
        "clients", "trainable parameters", "bytes of one client", "a round:", "evaluation: ",
    ):  # fmt: skip
        assert word in said


REFUSED = {
    "an unknown method": (("--method", "fedavgg"), "did you mean 'fedavg'"),
    "a method of elsewhere": (("--method", "feddf"), "write it in Python"),
    "a choice of clients": (("--method", "power_of_choice"), "in front of another"),
    "an unknown adapter": (("--peft", "lora2"), "did you mean 'lora'"),
    "layers that are not there": (("--targets", "q_prj"), "q_prj"),
    "an unknown channel": (("--uplink", "topk:0.1"), "did you mean 'top_k'"),
    "a channel's bad value": (("--uplink", "top_k:1.5"), "1.5"),
    "an unknown sampler": (("--sampler", "uniformm"), "did you mean 'uniform'"),
    "an unknown optimizer": (("--optimizer", "adm"), "did you mean"),
    "a server optimizer in vain": (
        ("--method", "fedit", "--server-optimizer", "adam:1"),
        "takes no server optimizer",
    ),
    "a promise in vain": (("--epsilon", "1"), "dp_fedavg"),
    "no promise": (("--method", "dp_fedavg"), "needs --epsilon"),
    "a rule without factors": (("--method", "fedit", "--peft", "ia3"), "--peft lora"),
    "no column": (("--prompt", "instructoin", "--response", "output"), "instruction"),
    "a client's typo": (("--client", "user"), "did you mean 'user_id'"),
    "nothing held out": (
        ("--holdout-clients", "0", "--holdout-examples", "0"),
        "nothing is held out",
    ),
    "too short": (("--max-length", "8", "--template", "alpaca"), "larger --max-length"),
    "an unknown tracker": (("--track", "jsnl"), "did you mean 'jsonl'"),
    "noise of two kinds": (
        ("--method", "dp_fedavg:noise_multiplier=0.1", "--epsilon", "2"),
        "leave out noise_multiplier",
    ),
    "a rate of the optimizer's own": (("--optimizer", "adam:1e-3"), "adam:1e-3"),
    "a rate of its own by name": (
        ("--optimizer", "adam:learning_rate=1e-3"),
        "--learning-rate",
    ),
    "clients of the sampler's own": (("--sampler", "uniform:5"), "uniform:5"),
    "an optimizer that is not read": (
        ("--method", "fedkseed", "--optimizer", "sgd"),
        "--optimizer",
    ),
    "a norm that is not read": (("--dp-clip", "0.1"), "--dp-clip"),
    "a delta that is not read": (("--dp-delta", "0.1"), "--dp-delta"),
    "no merging of adapters": (
        ("--peft", "houlsby:2", "--merge", "safetensors"),
        "cannot be merged",
    ),
    "weights that lose small steps": (
        ("--peft", "full", "--dtype", "bfloat16"),
        "--no-baselines",
    ),
    "no new tokens": (("--new-tokens", "0"), "new_tokens >= 1"),
    "equal seeds": (("--seeds", "1", "1"), "without repetition"),
    "the tuning seed": (("--seeds", "1000"), "1000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_and_leaves_no_folder(case, folder, capsys):
    words, said = REFUSED[case]
    with pytest.raises(SystemExit) as stop:
        finetune(folder, "refused", *words)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not (folder / "refused").exists()


def test_texts_longer_than_the_context_are_refused_before_anything(folder, capsys):
    rows = [{"text": "red " * 100 + f"{k}", "user": k % 4} for k in range(16)]
    write_jsonl(folder / "long.jsonl", rows)
    words = ("--text", "text", "--client", "user", "--max-length", 128)
    with pytest.raises(SystemExit):
        finetune(folder, "refused", *words, model="gpt2", data="long.jsonl")
    said = capsys.readouterr().err
    assert "--max-length" in said
    assert "64" in said
    assert not (folder / "refused").exists()


def test_answers_longer_than_the_context_are_refused_before_anything(folder, capsys):
    words = ("--template", "flan", "--new-tokens", 40, "--no-baselines")
    with pytest.raises(SystemExit):
        finetune(folder, "no room", *words, model="gpt2")
    assert "no room for answers of 40 tokens" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (folder / "no room").exists()


def test_a_run_in_which_nothing_was_computed_leaves_no_folder(folder, monkeypatch):
    def broken(*words):
        raise ValueError("no")

    monkeypatch.setattr(command, "go", broken)
    with pytest.raises(SystemExit):
        finetune(folder, "refused")
    assert not (folder / "refused").exists()


def test_a_model_that_writes_nothing_cannot_answer(folder, capsys):
    with pytest.raises(SystemExit):
        finetune(folder, "refused", "--template", "flan", model="bert")
    assert "writes no text" in capsys.readouterr().err


def test_data_that_have_changed_are_not_gone_on_with(folder, capsys):
    rows = chats()
    path = write_jsonl(folder / "changing.jsonl", rows)
    settings = Settings(
        model=str(folder / "llama"),
        data=str(path),
        out=str(folder / "changed"),
        rounds=1,
        max_length=16,
        new_tokens=3,
        baselines=False,
    )
    command.begin(command.resolved(settings))
    write_jsonl(path, rows[:-1])
    of_data.prepare.cache_clear()
    with pytest.raises(SystemExit):
        main(["finetune", "--resume", str(folder / "changed")])
    assert "has changed since" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_settings_alone(chatted, capsys):
    for more in ("--pack", "--dry-run"):
        with pytest.raises(SystemExit):
            main(["finetune", f"--resume={chatted}", more])
        assert "the run's own settings" in capsys.readouterr().err


def test_weights_that_have_changed_are_not_used(folder, capsys):
    base = folder / "another"
    checkpoint(base, LLAMA, TEMPLATE)
    words = ("--no-baselines", "--rounds", 1)
    run = finetune(folder, "reweighted", *words, model="another")
    shutil.rmtree(base)
    checkpoint(base, LLAMA, TEMPLATE, seed=1)
    for command_line in (("chat", run), ("finetune", "--resume", run)):
        with pytest.raises(SystemExit):
            main([str(word) for word in command_line])
        assert "another has changed since this run began" in capsys.readouterr().err


def test_a_method_that_changes_weights_says_what_to_load(folder, capsys):
    words = ("--method", "flora", "--no-baselines", "--answers", 0)
    run = finetune(folder, "by flora", *words)
    with pytest.raises(SystemExit):
        main(["chat", str(run)])
    assert str(run / "model" / "merged") in capsys.readouterr().err
    models.from_pretrained(run / "model" / "merged")


def test_secrets_do_not_land_in_the_folder(folder, monkeypatch):
    secret = "hf_" + "s" * 30
    monkeypatch.setenv("HF_TOKEN", secret)
    run = finetune(folder, "secret", "--no-baselines", "--rounds", 1)
    for path in run.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_trackers_get_every_round(folder):
    run = finetune(folder, "tracked", "--no-baselines", "--track", "jsonl")
    text = (run / "tracked-seed-0" / "metrics.jsonl").read_text()
    assert [json.loads(line)["round"] for line in text.splitlines()] == [1, 2]


def test_a_learning_rate_is_chosen_on_clients_of_their_own(folder):
    write_jsonl(folder / "many.jsonl", chats(n_clients=16))
    words = ("--learning-rate", "1e-3", "1e-2", "--no-baselines")
    run = finetune(folder, "tuned", *words, data="many.jsonl")
    found = json.loads((run / "results.json").read_text())
    tried = found["arms"]["federated"]["tuning"]
    assert [one["settings"]["learning_rate"] for one in tried] == [1e-3, 1e-2]
    assert found["arms"]["federated"]["edges"] == ["learning_rate"]
