"""The study of spoken numbers, on tones in the place of voices and a tiny random Whisper."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from small_runs import check_scores, run_arms

from fedjax_fm import datasets, models
from fedjax_fm.datasets.espeak import VARIANTS
from fedjax_fm.datasets.packaged.columns import object_column
from fedjax_fm.datasets.packaged.spoken import VOICES
from fedjax_fm.experiments.speech import STUDY, Config, data, tuning, voices
from fedjax_fm.models.log_mel import RATE
from fedjax_fm.wire import Options, wire

FIELDS = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "classifier_proj_size": 8,
    "max_source_positions": 30,
}
CONFIG = dataclasses.replace(
    Config(),
    languages=("en", "ru"),
    numbers=(0, 5, 90),
    speeds=(140,),
    seconds=0.5,
    rank=2,
    rounds=8,
    batch_size=3,
    lora_rates=(1e-2,),
    seeds=(0, 1),
)


def tones(voices, numbers):
    """A table of sounds, each a tone that its number has, a little out of tune."""
    rows = [(voice, number) for voice in voices for number in numbers]
    times = np.arange(RATE // 3) / RATE

    def tone(voice, number):
        detuned = 1 + 0.01 * (hash_of(voice) % 5)
        hertz = 200 * (1 + number % 7) * detuned
        return np.sin(2 * np.pi * hertz * times).astype(np.float32)

    columns = {
        "sound": object_column([tone(*row) for row in rows]),
        "rate": np.full(len(rows), RATE, np.int32),
        "number": np.array([number for _, number in rows], np.int32),
        "voice": np.array([voice for voice, _ in rows]),
    }
    return datasets.Table(columns, {"rows": len(rows)})


def hash_of(text):
    return sum(text.encode())


@pytest.fixture(scope="module", autouse=True)
def _stand_ins():
    def made(languages, variants, *, speeds, numbers):
        names = [f"{one}+{other}" for one in languages for other in variants]
        return tones([name for name in names for _ in speeds], numbers)

    def people(languages):
        return tones([VOICES[one] for one in languages], (0, 5, 11, 90))

    def encoder(n_classes, seed):
        return models.from_config(FIELDS, num_labels=n_classes, seed=seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "make_spoken_numbers", made)
        patch.setattr(datasets, "load_spoken_numbers", people)
        patch.setattr(tuning, "encoder", encoder)
        yield
    voices.voice_of.cache_clear()
    voices.people_of.cache_clear()


@pytest.fixture(scope="module")
def found():
    return run_arms(STUDY, CONFIG)


def test_all_arms_give_their_scores(found):
    check_scores(STUDY, found)
    assert len(found) == 6
    for ran in found.values():
        assert set(ran.scores) == {"accuracy", "people"}


def test_what_is_learned_is_learned_and_controls_fail(found):
    accuracy = {name: ran.scores["accuracy"] for name, ran in found.items()}
    assert accuracy["lora"] > 0.6 > accuracy["untrained"]
    assert accuracy["shuffled"] < accuracy["lora"]


def test_bytes_are_those_of_what_is_trained(found):
    sent = {name: ran.run.bytes["uplink_bytes"] for name, ran in found.items()}
    # Twice two matrices of two layers, and the head: four clients, eight rounds.
    head = 16 * 8 + 8 + 8 * 3 + 3
    lora = 2 * 2 * 2 * (16 + 16) + head
    assert sent["lora"] == sent["shuffled"] == 4 * 8 * 4 * lora
    assert sent["head"] == 4 * 8 * 4 * head
    assert sent["local"] == sent["untrained"] == 0
    assert sent["full"] > 5 * sent["lora"]


def test_a_voice_is_of_one_client_or_of_the_test(monkeypatch):
    asked = []

    def voice_of(language, variant, **how):
        asked.append((language, variant))
        row = np.array([[hash_of(language + variant)]], np.float32)
        return {"input_features": row, "label": np.zeros(1, np.int32)}

    monkeypatch.setattr(voices, "voice_of", voice_of)
    both = {}
    for split in ("tuning", "final"):
        asked.clear()
        dealt = data(Config(), 1, split)
        assert len(dealt.clients) == 10
        assert dealt.languages == np.repeat(Config().languages, 2).tolist()
        assert all(len(test["label"]) == 2 for test in dealt.test.values())
        assert len(set(asked)) == len(asked) == 20
        both[split] = {variant for _, variant in asked}
    assert not both["tuning"] & both["final"]
    assert both["tuning"] | both["final"] <= set(VARIANTS)


def test_the_full_size_is_what_is_written():
    text = Path(voices.__file__).with_name("EXPECTED.md").read_text(encoding="utf-8")
    written = re.search(r"shapes: ([\d,]+) numbers of ([\d,]+)", text)
    lora, full = (int(number.replace(",", "")) for number in written.groups())
    options = Options(rank=Config().rank)
    found = wire("whisper-base", "lora", len(Config().numbers), options)
    assert found.trainable_parameters == lora
    assert found.full_bytes == 4 * full
