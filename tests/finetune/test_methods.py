"""What the settings make of methods, adapters and samplers."""

from types import SimpleNamespace

import pytest
from small_checkpoints import LLAMA, checkpoint

from fedjax_fm import models, peft
from fedjax_fm.finetune.adapters import adapter_of, scalings_of
from fedjax_fm.finetune.methods import sampler_of
from fedjax_fm.finetune.outputs import check_merge
from fedjax_fm.finetune.settings import Settings
from fedjax_fm.population import samplers
from fedjax_fm.runs.errors import UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    return models.from_pretrained(checkpoint(place / "llama", LLAMA))


@pytest.mark.parametrize(
    ("text", "alpha", "scale"),
    [
        ("lora", None, 2.0),
        ("lora:8", None, 2.0),
        ("lora:8", 4.0, 0.5),
        ("lora(rank=8, alpha=8)", None, 1.0),
        ("combine(lora(4), prompt_tuning(2))", None, 2.0),
    ],
)
@pytest.mark.parametrize("targets", [None, "q_proj"])
def test_alpha_is_twice_the_rank_wherever_that_is_given(
    text, alpha, scale, targets, model
):
    settings = Settings(peft=text, rank=2, alpha=alpha, targets=targets)
    adapted = peft.apply(model, adapter_of(settings, "llama"))
    assert scalings_of(adapted) == {scale}


@pytest.mark.parametrize("method", ["flora", "fedex_lora"])
def test_frozen_weights_that_change_are_dense(method, model):
    adapted = peft.apply(model, peft.lora(2, targets="q_proj"))
    settings = Settings(method=method, frozen="nf4")
    with pytest.raises(UsageError, match="leave out --frozen"):
        check_merge(settings, SimpleNamespace(adapted=adapted))


def test_a_sampler_takes_what_comes_after_clients_and_cohort():
    made = sampler_of(Settings(sampler="spaced:3", cohort=4), 20)
    assert made.law == samplers.spaced(20, 4, min_separation=3).law
    made = sampler_of(Settings(sampler="poisson", cohort=5), 20)
    assert made.law == samplers.poisson(20, 0.25).law
    made = sampler_of(Settings(sampler="poisson:0.5", cohort=5), 20)
    assert made.law == samplers.poisson(20, 0.5).law
    made = sampler_of(Settings(sampler="uniform", cohort=50), 20)
    assert made.law == samplers.uniform(20, 20).law
