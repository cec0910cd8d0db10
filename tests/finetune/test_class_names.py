"""Names of classes that `datasets` keeps: in files, predictions, report and folders."""

import json

import numpy as np
import pytest
from small_checkpoints import BERT, checkpoint, reviews, write_jsonl

from fedjax_fm.cli import main
from fedjax_fm.finetune import files, talk
from fedjax_fm.finetune.examples import choose, make
from fedjax_fm.finetune.files import class_names
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.runs.errors import UsageError

datasets = pytest.importorskip("datasets")

# Neither in order of the alphabet nor all of them there; 2 never occurs.
NAMES = ("pos", "neg", "odd")


def numbered(n=64):
    rows = reviews(n)
    return [{**row, "label": NAMES.index(row["label"])} for row in rows]


def as_dataset(rows, names=NAMES):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    whole = datasets.Dataset.from_dict(columns)
    return whole.cast_column("label", datasets.ClassLabel(names=list(names)))


def saved(place, rows):
    as_dataset(rows).save_to_disk(str(place / "saved"))
    return place / "saved"


def parquet(place, rows):
    as_dataset(rows).to_parquet(str(place / "a.parquet"))
    return place / "a.parquet"


def arrow(place, rows):
    ipc = pytest.importorskip("pyarrow.ipc")
    table = as_dataset(rows).with_format("arrow")[:]
    with ipc.new_file(str(place / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    return place / "a.arrow"


WAYS = {"saved": saved, "parquet": parquet, "arrow": arrow}


@pytest.mark.parametrize("way", WAYS)
def test_names_and_their_order_are_kept(way, tmp_path):
    rows = numbered(16)
    source = files.read(str(WAYS[way](tmp_path, rows)))
    assert source.classes == {"label": NAMES}
    settings = Settings(text="text", label="label")
    found = make(source, choose(settings, source))
    assert found.classes == NAMES
    assert found.labels.tolist() == [row["label"] for row in rows]


def test_minus_one_is_no_class():
    rows = [
        {**row, "label": -1 if k % 4 == 0 else row["label"]}
        for k, row in enumerate(numbered(16))
    ]
    source = files.Source(table=as_dataset(rows), name="t", kind="d", sha256="")
    found = make(source, choose(Settings(text="text", label="label"), source))
    assert found.dropped == {"missing label": 4}
    assert found.labels.tolist() == [row["label"] for row in rows if row["label"] >= 0]


def test_other_tables_name_no_classes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    assert class_names(pa.table({"a": [1]})) == {}
    assert class_names({"a": np.array([1])}) == {}
    features = {"a": {"dtype": "int64", "_type": "Value"}, "b": [{"_type": "Value"}]}
    written = json.dumps({"info": {"features": features}})
    table = pa.table({"a": [1]}).replace_schema_metadata({"huggingface": written})
    assert class_names(table) == {}


@pytest.mark.parametrize(
    "written", ["{", "[]", '{"info": {"features": {"a": {"_type": "ClassLabel"}}}}']
)
def test_metadata_that_are_damaged(written):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": [1]}).replace_schema_metadata({"huggingface": written})
    with pytest.raises(UsageError, match="metadata"):
        class_names(table)


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        ([0, 3], NAMES, "numbers from 0"),
        ([0, 1], ("a", "a"), "different names"),
        ([1, 1], NAMES, "all labels are 'neg'"),
    ],
)
def test_numbers_and_names_that_do_not_fit(labels, names, said):
    pa = pytest.importorskip("pyarrow")
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    written = json.dumps({"info": {"features": features}})
    table = pa.table({"text": ["a", "b"], "label": labels})
    table = table.replace_schema_metadata({"huggingface": written})
    source = files.Source(table=table, name="t", kind="parquet", sha256="")
    with pytest.raises(UsageError, match=said):
        make(source, choose(Settings(text="text", label="label"), source))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("named")
    checkpoint(place / "bert", BERT)
    path = parquet(place, numbered())
    main(
        [
            *("finetune", "--model", str(place / "bert"), "--data", str(path)),
            *("--client", "user", "--rounds", "1", "--cohort", "2", "--rank", "2"),
            *("--local-steps", "1", "--max-length", "16", "--no-baselines"),
            *("--out", str(place / "run")),
        ]
    )
    return place / "run"


def test_a_run_shows_names(run):
    for name in ("RESULTS.md", "report.html", "model/adapter/README.md"):
        assert "0 pos, 1 neg, 2 odd" in (run / name).read_text(encoding="utf-8"), name
    facts = json.loads((run / "finetune.json").read_text())
    assert facts["subject"]["classes"] == list(NAMES)


def test_predictions_are_names_and_are_scored_by_them(run, tmp_path):
    rows = numbered(16)
    target, scores = talk.predict(run, parquet(tmp_path, rows), None)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert {line["label"] for line in lines} <= set(NAMES)
    right = [
        line["label"] == NAMES[row["label"]]
        for line, row in zip(lines, rows, strict=True)
    ]
    assert scores["accuracy"] == pytest.approx(np.mean(right))
    # Names as text are the same classes; of another table's numbers nobody knows them.
    words = write_jsonl(tmp_path / "words.jsonl", reviews(16))
    assert talk.predict(run, words, None)[1] == scores
    with pytest.raises(UsageError, match="the class '0'"):
        talk.predict(run, write_jsonl(tmp_path / "numbers.jsonl", rows), None)


def test_the_adapters_folder_makes_the_model_that_it_fits(run):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    hf_peft = pytest.importorskip("peft")
    adapter = run / "model" / "adapter"
    config = transformers.AutoConfig.from_pretrained(adapter)
    assert config.id2label == dict(enumerate(NAMES))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        run.parent / "bert", config=config
    )
    theirs = hf_peft.PeftModel.from_pretrained(base, adapter)
    model = talk.opened(run)
    ids = np.array([[7, 8, 9, 10, 11]], np.int32)
    ours = model.adapted.model(*model.parts)(ids)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids, dtype=torch.int64)).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours), expected, atol=1e-5)
