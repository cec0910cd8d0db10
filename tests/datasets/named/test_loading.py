"""load(): nothing takes the place of real rows unasked; files in the place of the hub; clients."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import fedjax_fm as ffm
from fedjax_fm.datasets import DataFileError, load
from fedjax_fm.datasets.named import real, table
from fedjax_fm.datasets.named.normal import deal, examples_of, hold_out
from fedjax_fm.datasets.named.stand_ins import sizes
from fedjax_fm.datasets.named.table import (
    ALIASES,
    BENCHMARKS,
    describe,
    find,
    list_names,
)

MADE_UP = sorted(name for name, b in BENCHMARKS.items() if b.stand_in)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


# The table


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_row_of_the_table_fits_together(name):
    row = BENCHMARKS[name]
    assert row.name == name
    natural = row.partition.natural
    assert (row.n_clients > 0) == natural
    if row.partition.clients:
        assert row.partition.clients == row.settings.clients
    assert (row.held.how == "split") == (row.hub.test is not None)
    assert row.hub.revision is None or len(row.hub.revision) == 40
    named = set(vars(row.settings))
    assert set(row.settings.unverified) <= named
    assert row.settings.source
    assert row.metric
    assert row.citation
    row.partition.build(0)  # its arguments are those of its class


def test_the_names_of_the_literature_are_there():
    asked = [
        "flowertune/general",
        "flowertune/finance",
        "flowertune/medical",
        "flowertune/code",
        "fedllm/aya",
        "fedllm/chatbot-it",
        "fedllm/wildchat-single",
        "fedllm/wildchat-multi",
        "fedllm/chatbot-pa",
        "pfl/alpaca",
        "pfl/aya",
        "pfl/oasst2",
        "dolly/shepherd",
        "dolly/fedkseed",
        "alpaca-gpt4",
        "ni/fedkseed",
        "glue/cola",
        "glue/sst2",
        "glue/mrpc",
        "glue/qqp",
        "glue/stsb",
        "glue/mnli",
        "glue/qnli",
        "glue/rte",
        "glue/wnli",
        "20news",
        "shakespeare",
        "stackoverflow",
        "femnist",
        "cifar10",
        "cifar100",
        "commonsense/fslora",
        "glue/fedsa/rte",
        "glue/ffa/mnli",
        "glue/fedex/stsb",
        "glue/frlora/qnli",
        "glue/fedpetuning/mrpc",
        "glue/fedsvd-dp/snli",
    ]
    assert set(asked) <= set(list_names())


def test_aliases_lead_to_names_and_are_none_themselves():
    assert set(ALIASES.values()) <= set(BENCHMARKS)
    assert not set(ALIASES) & set(BENCHMARKS)
    assert find("SST2").name == find("sst-2").name == "glue/sst2"
    assert find("dolly").name == "dolly/shepherd"
    assert find("Natural_Instructions").name == "ni/fedkseed"


def test_unknown_names_and_families_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match="did you mean 'flowertune/medical'"):
        load("flowertune/medicine")
    with pytest.raises(
        ValueError, match="a family of benchmarks; name one of glue/fedsa/mnli"
    ):
        load("glue/fedsa")


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_descriptions_hold_what_is_known(name):
    text = describe(name)
    words = " ".join(text.split())
    row = BENCHMARKS[name]
    assert text.startswith(name)
    assert f"settings ({row.settings.source})" in words
    if row.template:
        assert row.template.sha256 in text
    if row.hub.id and row.stand_in:
        assert "not pinned" in text


def test_the_table_of_a_page_has_a_row_a_name():
    lines = table.markdown_table().splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == list_names()


# Arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": "cache"}, "expected source to be one of 'auto', 'hub', 'stand-in'"),
        ({"seed": -1}, "seed"),
        ({"limit": 0}, "limit"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        load("sst2", **{"source": "stand-in", **arguments})


def test_fewer_rows_than_clients_are_refused():
    with pytest.raises(ValueError, match="has 100 clients, and 50 rows are left"):
        load("sst2", source="stand-in", limit=50)


# No stand-in unasked


@pytest.fixture
def no_hub(monkeypatch):
    """A hub that cannot be reached, and a list of what was asked of it."""
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        raise ConnectionError("no route to the hub")

    def config(local_files_only=False):
        return local_files_only

    fake = types.SimpleNamespace(load_dataset=load_dataset, DownloadConfig=config)
    monkeypatch.setattr(real, "_datasets", lambda: fake)
    return asked


@pytest.mark.parametrize("source", ["auto", "hub"])
@pytest.mark.parametrize("name", ["sst2", "flowertune/finance", "pfl/aya"])
def test_without_a_hub_there_is_an_error_that_names_the_stand_in(source, name, no_hub):
    with pytest.raises(DataFileError, match=r'unasked: .* source="stand-in"') as raised:
        load(name, source=source)
    assert "no route to the hub" in str(raised.value)
    (args, asked), *_ = no_hub
    assert args[0] == find(name).hub.id
    assert asked["revision"] is None


def test_offline_the_cache_alone_is_asked(no_hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataFileError, match="HF_HUB_OFFLINE forbids the hub"):
        load("sst2")
    assert no_hub[0][1]["download_config"] is True
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(DataFileError):
        load("sst2")
    assert no_hub[1][1]["download_config"] is False


@pytest.mark.parametrize("name", ["fed-aya", "stackoverflow"])
def test_what_is_on_no_hub_asks_for_files(name, no_hub):
    with pytest.raises(DataFileError, match="on no hub; give cache=FOLDER"):
        load(name)
    assert not no_hub


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(real.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'fedjax-fm\[hub\]'"):
        load("sst2")


def test_what_ships_needs_no_stand_in():
    with pytest.raises(ValueError, match="ships with the package"):
        load("shakespeare", source="stand-in")
    with pytest.raises(DataFileError, match='source="auto" has the rows that ship'):
        load("shakespeare", source="hub")


def test_shakespeare_is_real_and_holds_out_the_latest_speeches():
    data = load("shakespeare")
    plays = ffm.datasets.load_shakespeare()
    assert data.provenance["kind"] == "real"
    assert len(data.train) + len(data.test) == len(plays) == 27_708
    for role in ("hamlet/HAM", "macbeth/MACBETH"):
        own = plays["speech"][plays["client"] == role].tolist()
        if not own:
            continue
        train = data.train["text"][data.client == role].tolist()
        test = data.test["text"][data.test["client"] == role].tolist()
        assert own == train + test
        assert len(test) == round(0.2 * len(own))


# Files in the place of the hub


def flowertune_rows(n):
    return [
        {"instruction": "Say", "input": f"{k}", "output": f"out {k}"} for k in range(n)
    ]


def write_parquet(path, rows):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def quiet_cache(tmp_path, monkeypatch):
    """`datasets` keeps what it reads in a folder of the test's own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    return tmp_path


def test_parquet_files_of_a_folder_are_real_rows(quiet_cache):
    folder = quiet_cache / "files"
    for part in range(2):
        write_parquet(
            folder / "data" / f"train-0000{part}-of-00002.parquet", flowertune_rows(200)
        )
    data = load("flowertune/finance", cache=folder)
    assert data.provenance["kind"] == "real"
    assert data.provenance["revision"] is None
    assert data.provenance["pinned"] is False
    assert len(data.train) + len(data.test) == 400
    assert len(data.test) == 8  # two in a hundred
    assert len(set(data.client)) == 50
    first = data.train["messages"][0]
    assert first[0]["content"].startswith("Say ")
    answer = first[0]["content"].removeprefix("Say ")
    assert first[1]["content"] == f"out {answer}"


def test_splits_and_configs_of_a_folder(quiet_cache):
    folder = quiet_cache / "files"
    rows = [{"sentence": f"s{k}", "label": k % 2, "idx": k} for k in range(200)]
    write_parquet(folder / "sst2" / "train-00000-of-00001.parquet", rows)
    write_parquet(folder / "sst2" / "validation-00000-of-00001.parquet", rows[:7])
    secret = [{**row, "label": -1} for row in rows]
    write_parquet(folder / "sst2" / "test-00000-of-00001.parquet", secret)
    data = load("sst2", cache=folder)
    assert (len(data.train), len(data.test)) == (200, 7)
    assert data.test["label"].tolist() == [0, 1] * 3 + [0]
    assert set(data.test["client"].tolist()) == {""}


def test_matched_and_mismatched_validation_are_told_apart(quiet_cache):
    folder = quiet_cache / "files"
    row = {"premise": "p", "hypothesis": "h", "label": 0, "idx": 0}
    write_parquet(
        folder / "train.parquet", [{**row, "label": k % 3} for k in range(300)]
    )
    write_parquet(folder / "validation_matched.parquet", [row] * 3)
    write_parquet(folder / "validation_mismatched.parquet", [row] * 5)
    assert len(load("mnli", cache=folder).test) == 3


def test_json_lines_and_two_splits_as_one(quiet_cache):
    folder = quiet_cache / "files"
    folder.mkdir()
    for split, users in (("train", range(12)), ("test", range(12, 20))):
        lines = [
            {"inputs": "q", "targets": "a", "language": "French", "user_id": f"u{u}"}
            for u in users
        ]
        text = "\n".join(map(json.dumps, lines))
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    data = load("pfl/aya", cache=folder)
    assert (len(data.train), len(data.test)) == (18, 2)
    assert set(data.test["client"].tolist()) == {"u18", "u19"}


def test_the_authors_files_by_client(quiet_cache):
    folder = quiet_cache / "files"
    folder.mkdir()
    rows = [{"instruction": f"i{k}", "response": f"r{k}"} for k in range(60)]
    content = {"0": rows[:40], "1": rows[40:]}
    (folder / "aya_38c_25k.json").write_text(json.dumps(content), encoding="utf-8")
    data = load("fed-aya", cache=folder)
    assert data.provenance["kind"] == "real"
    assert len(data.train) + len(data.test) == 60
    of = {
        m[0]["content"]: c
        for m, c in zip(data.train["messages"], data.client, strict=True)
    }
    assert all(client == ("0" if int(i[1:]) < 40 else "1") for i, client in of.items())


def test_a_folder_without_the_split_is_refused_and_nothing_else_is_tried(
    quiet_cache, no_hub
):
    folder = quiet_cache / "files"
    folder.mkdir()
    (folder / "a.csv").write_text("sentence,label\n", encoding="utf-8")
    (folder / "b.csv").write_text("sentence,label\n", encoding="utf-8")
    with pytest.raises(
        DataFileError, match="expected a file of the split 'validation'"
    ):
        load("sst2", cache=folder)
    with pytest.raises(DataFileError, match="expected cache= to be a folder"):
        load("sst2", cache=folder / "nothing")
    assert not no_hub


def test_another_schema_is_refused_by_name(quiet_cache):
    folder = quiet_cache / "files"
    write_parquet(folder / "train.parquet", [{"prompt": "p", "answer": "a"}] * 10)
    with pytest.raises(DataFileError, match=r"expected a column 'instruction'.*answer"):
        load("flowertune/code", cache=folder)


class Rows(list):
    """Rows with the place in the cache that `datasets` gives them."""

    def __init__(self, rows, commit):
        super().__init__(rows)
        place = f"cache/nyu-mll___glue/sst2/0.0.0/{commit}/glue-train.arrow"
        self.cache_files = [{"filename": place}]


@pytest.fixture
def hub_in_memory(monkeypatch):
    """{split: commit} of a hub that has SST-2, and a list of what was asked of it."""
    commits, asked = {}, []

    def load_dataset(name, config, *, split, revision, download_config):
        asked.append((name, config, split, revision))
        rows = [{"sentence": f"{split} {k}", "label": k % 2} for k in range(200)]
        return Rows(rows, commits.get(split, COMMIT))

    fake = types.SimpleNamespace(load_dataset=load_dataset, DownloadConfig=dict)
    monkeypatch.setattr(real, "_datasets", lambda: fake)
    return commits, asked


def test_a_revision_that_is_not_pinned_is_resolved_and_said(hub_in_memory):
    _, asked = hub_in_memory
    data = load("sst2")
    assert asked == [
        ("nyu-mll/glue", "sst2", "train", None),
        ("nyu-mll/glue", "sst2", "validation", None),
    ]
    assert data.provenance["revision"] == COMMIT
    assert data.provenance["pinned"] is False
    assert data.provenance["origin"] == "hub nyu-mll/glue"


def test_splits_of_two_commits_are_refused(hub_in_memory):
    commits, _ = hub_in_memory
    commits["validation"] = COMMIT[::-1]
    with pytest.raises(DataFileError, match="expected one commit for all splits"):
        load("sst2")


def test_a_pinned_revision_is_asked_for_and_no_other_is_taken(
    hub_in_memory, monkeypatch
):
    commits, asked = hub_in_memory
    row = BENCHMARKS["glue/sst2"]
    pinned = dataclasses.replace(row, hub=dataclasses.replace(row.hub, revision=COMMIT))
    monkeypatch.setitem(BENCHMARKS, "glue/sst2", pinned)
    assert load("sst2").provenance["pinned"] is True
    assert asked[0][-1] == COMMIT
    commits.update(train=COMMIT[::-1], validation=COMMIT[::-1])
    with pytest.raises(DataFileError, match=f"expected {COMMIT} of nyu-mll/glue"):
        load("sst2")


def test_a_revision_that_is_asked_for_is_read_and_recorded(hub_in_memory):
    commits, asked = hub_in_memory
    found = load("sst2", revision=COMMIT).provenance
    assert {one[-1] for one in asked} == {COMMIT}
    assert (found["revision"], found["asked_revision"]) == (COMMIT, COMMIT)
    assert found["pinned"] is True
    # A branch may be another commit tomorrow: that of today is recorded.
    found = load("sst2", revision="main").provenance
    assert asked[-1][-1] == "main"
    assert (found["revision"], found["asked_revision"]) == (COMMIT, "main")
    assert found["pinned"] is False
    assert load("sst2").provenance["asked_revision"] is None
    commits.update(train=COMMIT[::-1], validation=COMMIT[::-1])
    with pytest.raises(DataFileError, match=f"expected {COMMIT} of nyu-mll/glue"):
        load("sst2", revision=COMMIT)
    assert load("sst2", revision="main").provenance["revision"] == COMMIT[::-1]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("sst2", {"source": "stand-in"}),
        ("sst2", {"cache": "somewhere"}),
        ("shakespeare", {}),
        ("fed-aya", {"source": "hub"}),
    ],
)
def test_a_revision_of_what_is_not_the_hubs_is_refused(name, how):
    with pytest.raises(ValueError, match="leave it out"):
        load(name, revision="main", **how)


def test_files_have_no_commit(quiet_cache):
    import datasets

    path = quiet_cache / "train.parquet"
    write_parquet(path, flowertune_rows(3))
    read = datasets.load_dataset("parquet", data_files=str(path), split="train")
    assert real.commit_of(read) is None


def test_the_local_cache_of_the_hub_is_read_without_a_network(quiet_cache):
    """A cache as `datasets` leaves it behind: the folder is named after the commit."""
    import datasets

    rows = [{"sentence": f"s{k}", "label": k % 2, "idx": k} for k in range(200)]
    files = {}
    for split, part in (("train", rows), ("validation", rows[:7])):
        files[split] = str(quiet_cache / f"{split}.parquet")
        write_parquet(quiet_cache / f"{split}.parquet", part)
    read = datasets.load_dataset("parquet", data_files=files)
    made = Path(read["train"].cache_files[0]["filename"]).parent
    place = quiet_cache / "hub" / "nyu-mll___glue" / "sst2" / "0.0.0" / COMMIT
    shutil.copytree(made, place)
    for split in files:
        (place / f"parquet-{split}.arrow").rename(place / f"glue-{split}.arrow")
    about = (place / "dataset_info.json").read_text(encoding="utf-8")
    about = json.loads(
        about.replace('"dataset_name": "parquet"', '"dataset_name": "glue"')
    )
    about["config_name"] = "sst2"
    (place / "dataset_info.json").write_text(json.dumps(about), encoding="utf-8")
    code = (
        "from fedjax_fm.datasets import load\n"
        "data = load('sst2')\n"
        "print(len(data.train), len(data.test), data.provenance['revision'])\n"
    )
    found = in_a_process(code, quiet_cache, HF_DATASETS_CACHE=str(quiet_cache / "hub"))
    assert found.split() == ["200", "7", COMMIT]


def in_a_process(code, folder, **variables):
    """What code prints, in a process that may not use the hub."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_real_library_refuses_offline_in_a_process_of_its_own(tmp_path):
    pytest.importorskip("datasets")
    code = (
        "from fedjax_fm.datasets import load\n"
        "try:\n    load('sst2')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    found = in_a_process(code, tmp_path)
    assert found.startswith("DataFileError there are no real rows of glue/sst2")
    assert 'source="stand-in"' in found


def hub_is_reachable():
    try:
        import socket

        socket.create_connection(("huggingface.co", 443), timeout=2).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_the_hub_itself():
    pytest.importorskip("datasets")
    if not hub_is_reachable():
        pytest.skip("the Hugging Face hub cannot be reached from here")
    data = load("glue/rte", source="hub")
    assert (len(data.train), len(data.test)) == (2_490, 277)
    assert len(data.provenance["revision"]) == 40


# Clients, held-out rows, the normal form


def examples(name, n=600):
    benchmark = BENCHMARKS[name]
    made = benchmark.stand_in(sizes.request(benchmark, 0, n, test=False))
    return benchmark, examples_of(benchmark, made)[0]


def test_ten_of_each_category_are_held_out():
    data = load("dolly/shepherd", source="stand-in", limit=3000)
    categories, counts = np.unique(data.test["category"], return_counts=True)
    assert len(categories) == 8
    assert counts.tolist() == [10] * 8


def test_fedkseed_holds_out_a_category():
    data = load("dolly/fedkseed", source="stand-in", limit=6000)
    assert set(data.test["category"].tolist()) == {"summarization"}
    assert "summarization" not in data.train["category"]


@pytest.mark.parametrize("name", ["pfl/alpaca", "pfl/aya", "pfl/oasst2"])
def test_pfl_holds_out_one_user_in_ten(name):
    data = load(name, source="stand-in", limit=30_000)
    train, test = set(data.client.tolist()), set(data.test["client"].tolist())
    assert not train & test
    assert len(train) == int(0.9 * len(train | test))


def test_users_of_alpaca_are_about_as_many_as_in_the_paper():
    n = len(
        BENCHMARKS["pfl/alpaca"].partition.build(0).partition({"x": np.arange(52_002)})
    )
    assert int(0.9 * n) == pytest.approx(2_934, rel=0.02)


def test_held_out_rows_take_no_client_away():
    benchmark, all_rows = examples("fedllm/chatbot-pa", 1600)
    train, test = hold_out(benchmark, all_rows, np.random.default_rng(0))
    assert len(test) == 32
    before = {example["client"] for example in all_rows}
    assert {example["client"] for example in train} == before


def test_nobody_has_a_row_of_another_and_what_is_left_is_counted():
    data = load("glue/ffa/sst2", source="stand-in", limit=3000)
    assert data.provenance["dropped"]["dealt to no client"] == 3000 - len(data.train)
    for client, share in (("0", 0.85), ("1", 0.15), ("2", 0.5)):
        mine = data.train["label"][data.client == client]
        assert mine.mean() == pytest.approx(share, abs=0.01)


def test_the_partition_is_the_one_of_the_partitioner():
    benchmark, all_rows = examples("dolly/fedkseed", 6000)
    dealt, left, rule = deal(benchmark, all_rows, seed=7)
    assert left == 0
    assert rule.seed == 7
    column = {"category": np.array([example["category"] for example in all_rows])}
    for number, rows in enumerate(rule.partition(column)):
        assert {dealt[k]["client"] for k in rows} == {str(number)}


def test_a_population_is_made_of_it():
    data = load("glue/fedex/rte", source="stand-in", limit=300)
    table = {"label": data.train["label"], "client": data.client}
    population = ffm.Population.from_table(
        table, by=data.partitioner, columns=["label"]
    )
    assert population.sizes.sum() == len(data.train)
    assert len(population.sizes) == data.provenance["clients"] == 3


TYPES = {
    "messages": object,
    "text": object,
    "text_pair": object,
    "image": object,
    "prompt": object,
    "chosen": object,
    "rejected": object,
}


@pytest.mark.parametrize("name", MADE_UP)
def test_the_normal_form(name):
    """Made-up and real rows go through one parser, so that this holds for both."""
    benchmark = BENCHMARKS[name]
    limit = {"glue/wnli": None, "glue/rte": None}.get(
        name, max(100, 3 * (benchmark.partition.clients or 0))
    )
    data = load(name, source="stand-in", limit=limit)
    for split in (data.train, data.test):
        assert list(split.columns) == [*benchmark.columns, "client"]
        assert len(split)
        for column in benchmark.columns:
            expected = TYPES.get(column)
            if expected is not None:
                assert split[column].dtype == expected
            elif column == "label":
                assert split[column].dtype == (
                    np.int32 if benchmark.classes else np.float32
                )
            else:
                assert split[column].dtype.kind == "U"
    assert data.provenance["kind"] == "stand-in"
    assert "" not in data.client
    if benchmark.classes:
        assert set(data.train["label"].tolist()) <= set(range(benchmark.classes))
    if "messages" in benchmark.columns:
        for talk in data.train["messages"][:20]:
            roles = [message["role"] for message in talk]
            assert roles == ["user", "assistant"] * (len(talk) // 2)
            assert all(message["content"] for message in talk)
            text = ffm.models.render(benchmark.template.text, talk, eos_token="</s>")
            assert talk[-1]["content"] in text


def test_a_parser_reads_the_same_from_a_file_as_from_memory(quiet_cache):
    """Round trip: stand-in rows written as Parquet are the stand-in, but for their kind."""
    benchmark = BENCHMARKS["flowertune/medical"]
    made = benchmark.stand_in(sizes.request(benchmark, 0, 300, test=False))
    folder = quiet_cache / "files"
    write_parquet(folder / "train.parquet", made)
    from_file = load("flowertune/medical", cache=folder)
    from_memory = load("flowertune/medical", source="stand-in", limit=300)
    assert from_file.provenance["sha256"] == from_memory.provenance["sha256"]
    assert from_file.provenance["kind"] == "real"


def test_the_digest_sees_every_row_and_client():
    benchmark, all_rows = examples("flowertune/code", 100)
    train, _, _ = deal(benchmark, all_rows, seed=0)
    from fedjax_fm.datasets.named.normal import digest

    before = digest(benchmark, train, [])
    moved = [{**train[0], "client": "9"}, *train[1:]]
    assert train[0]["client"] != "9"
    assert digest(benchmark, moved, []) != before
    assert digest(benchmark, train[:-1], train[-1:]) != before
