"""Named arrays of adapters: PEFT's own state dict is the oracle, both ways."""

import numpy as np
import pytest
from peft_pairs import make_pair, ours, peft_adapter, theirs

from fedjax_fm import peft

torch = pytest.importorskip("torch")
hugging_face = pytest.importorskip("peft")
pytest.importorskip("transformers")

CASES = {
    "lora": ("llama", peft.lora(3, 6, targets=["q_proj", "v_proj"]), lambda: hugging_face.LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")),
    "prefix": ("llama", peft.prefix_tuning(4), lambda: hugging_face.PrefixTuningConfig(
        num_virtual_tokens=4, task_type="CAUSAL_LM")),
    "lora and head": ("bert", peft.lora(2, 4, targets=["query", "value"]), lambda: hugging_face.LoraConfig(
        r=2, lora_alpha=4, target_modules=["query", "value"], task_type="SEQ_CLS")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_names_and_arrays_are_pefts(name, tmp_path):
    family, method, config = CASES[name]
    pair = make_pair(family, tmp_path / "base")
    reference = peft_adapter(pair, config(), tmp_path / "adapter")
    expected = {
        key: value.numpy()
        for key, value in hugging_face.get_peft_model_state_dict(reference).items()
    }
    start = peft.apply(pair.model, method)
    found = peft.with_state_dict(start, expected)
    np.testing.assert_allclose(ours(found), theirs(reference), rtol=1e-4, atol=1e-4)
    arrays = peft.state_dict(found)
    assert arrays.keys() == expected.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, expected[key])
    assert peft.state_dict(start).keys() == expected.keys()
