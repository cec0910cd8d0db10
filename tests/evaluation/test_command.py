"""`fedjax-fm eval` on folders of models and adapters."""

import json

import jax
import pytest

from fedjax_fm import cli, models, peft
from fedjax_fm.evaluation import command


def test_a_folder_is_a_model_or_an_adapter(tiny_llama, tmp_path):
    assert command.arguments_of(tiny_llama) == {"pretrained": str(tiny_llama)}
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "owner/name"})
    )
    assert command.arguments_of(tmp_path) == {
        "pretrained": "owner/name",
        "peft": str(tmp_path),
    }
    other = command.arguments_of(tmp_path, str(tiny_llama))
    assert other["pretrained"] == str(tiny_llama)


def test_refusals(tiny_llama, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        command.arguments_of(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="it is no adapter, and takes no base"):
        command.arguments_of(tiny_llama, "owner/name")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="names no base model"):
        command.arguments_of(tmp_path)


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", str(tmp_path / "nowhere"), "--tasks", "piqa"])
    assert stop.value.code == 2
    assert "there is no folder" in capsys.readouterr().err


def test_lines():
    results = {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.25,
                "exact_match_stderr,strict-match": "N/A",
                "exact_match,flexible-extract": 0.5,
                "exact_match_stderr,flexible-extract": 0.125,
                "sample_len": 8,
            }
        }
    }
    assert list(command.lines(results)) == [
        "gsm8k  exact_match [strict-match]  0.2500",
        "gsm8k  exact_match [flexible-extract]  0.5000 (standard error 0.1250)",
    ]


def test_an_adapter_on_a_local_task(tiny_llama, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    rows = [
        {"q": q, "choices": ["Yes.", "No, my lord.", "O!"], "gold": i % 3}
        for i, q in enumerate(["Is it", "Who goes there", "Art thou", "Speak"])
    ]
    path = tmp_path / "rows.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    base = models.from_pretrained(tiny_llama)
    adapted = peft.apply(base, peft.lora(2, targets=["q_proj"]))
    delta = jax.tree.map(lambda x: x + 0.1, adapted.delta)
    adapted.save_pretrained(
        tmp_path / "adapter", delta, base_model_name_or_path=str(tiny_llama)
    )
    results = command.evaluated(tmp_path / "adapter", [task], limit=3)
    (line,) = command.lines(results)
    assert line.startswith("local  acc  ")
    assert results["config"]["model_args"]["peft"] == str(tmp_path / "adapter")
