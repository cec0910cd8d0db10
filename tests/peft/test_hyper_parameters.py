"""What no hyper-parameter of a method of fine-tuning may be: a table of factories by bad values."""

import jax.numpy as jnp
import pytest
from bad_values import Row, cases, is_refused, unlisted

from fedjax_fm import peft
from fedjax_fm.peft.dual_lora import instance_mix, pooled
from fedjax_fm.peft.lora_sb import lora_sb, lora_xs

LORA = {"rank": 2, "targets": ["q"]}
FEATURES = {"query": jnp.ones((2, 3)), "local": jnp.ones((4, 3))}
ROWS = [
    Row(
        peft.lora,
        LORA,
        {
            "rank": "whole",
            "alpha": "real?",
            "use_rslora": "flag",
            "dropout": "real",
            "freeze_a": "flag",
            "share_a": "flag",
        },
    ),
    Row(
        peft.dora,
        LORA,
        {"rank": "whole", "alpha": "real?", "use_rslora": "flag", "dropout": "real"},
    ),
    Row(
        lora_sb,
        {**LORA, "updates": {}},
        {"rank": "whole", "alpha": "real?", "start": "choice"},
    ),
    Row(lora_xs, LORA, {"rank": "whole", "alpha": "real?"}),
    Row(
        peft.lora_experts,
        {**LORA, "experts": 2},
        {"rank": "whole", "alpha": "real?", "experts": "whole"},
    ),
    Row(
        peft.ravan,
        LORA,
        {"rank": "whole", "alpha": "real?", "heads": "whole", "basis": "choice"},
    ),
    Row(peft.bitfit, {}, {"which": "choice"}),
    Row(peft.attention_adapter, {}, {"init": "choice"}),
    Row(
        peft.houlsby,
        {"bottleneck": 2},
        {"bottleneck": "whole", "act": "choice", "std": "real", "norms": "flag"},
    ),
    Row(
        peft.parallel_adapter,
        {"bottleneck": 2},
        {"bottleneck": "whole", "scale": "real", "act": "choice", "std": "real"},
    ),
    Row(
        peft.prefix_tuning,
        {"n_tokens": 2},
        {"n_tokens": "whole", "hidden": "whole?", "std": "real?", "init": "choice"},
    ),
    Row(
        peft.prefix_tuning,
        {"n_tokens": 2, "hidden": 3},
        {"width": "whole?"},
        "prefix_tuning with a network",
    ),
    Row(
        peft.p_tuning_v2,
        {"n_tokens": 2},
        {"n_tokens": "whole", "encoder": "choice", "hidden": "whole", "init": "choice"},
    ),
    Row(
        peft.p_tuning,
        {"n_tokens": 2},
        {
            "n_tokens": "whole",
            "encoder": "choice",
            "hidden": "whole?",
            "layers": "whole",
        },
    ),
    Row(peft.prompt_tuning, {"n_tokens": 2}, {"n_tokens": "whole"}),
    Row(
        peft.vpt,
        {"n_tokens": 2},
        {"n_tokens": "whole", "mode": "choice", "dropout": "real"},
    ),
    Row(instance_mix, FEATURES, {"omega_max": "real", "omega_weighs": "choice"}),
    Row(
        pooled,
        {"hidden": jnp.ones((2, 3, 4)), "attention_mask": jnp.ones((2, 3), jnp.int32)},
        {"by": "choice"},
    ),
]
FACTORIES = [row.make for row in ROWS] + [
    peft.ia3,
    peft.head,
    peft.full,
    peft.on_layers,
    peft.combine,
    peft.by_path,
]


@pytest.mark.parametrize(("row", "parameter", "value"), cases(ROWS))
def test_values_that_make_no_sense_are_refused(row, parameter, value):
    is_refused(row, parameter, value)


def test_the_table_has_every_number_flag_and_choice():
    assert unlisted(FACTORIES, ROWS) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: peft.lora(0, targets="q"), "rank=0"),
        (lambda: peft.lora(2, 0, targets="q"), "alpha=0"),
        (lambda: peft.lora(2, -1.0, targets="q"), "alpha=-1.0"),
        (lambda: peft.lora(2, targets="q", dropout=-0.1), "dropout=-0.1"),
        (lambda: peft.lora(2, targets="q", rank_pattern={"q": 0}), "rank_pattern=0"),
        (lambda: peft.lora(2, targets="q", alpha_pattern={"q": 0}), "alpha_pattern=0"),
        (lambda: peft.houlsby(2, std=-1.0), "std=-1.0"),
        (lambda: peft.on_layers(peft.full(), [True]), "layers=True"),
        (lambda: peft.on_layers(peft.full(), [1.5]), "layers=1.5"),
        (lambda: peft.on_layers(peft.full(), ["1"]), "layers='1'"),
        (lambda: peft.prompt_tuning(1, init_ids=[1.5]), "init_ids=1.5"),
        (lambda: peft.prompt_tuning(1, init_ids=[True]), "init_ids=True"),
        (
            lambda: peft.prefix_tuning(2, width=4),
            "width=4 is that of a network's tokens",
        ),
        (
            lambda: peft.prefix_tuning(2, hidden=4, std=0.1),
            "std=0.1 is of keys and values that start small",
        ),
        (
            lambda: peft.prefix_tuning(2, init="torch", std=0.1),
            "std=0.1 is of keys and values",
        ),
        (lambda: instance_mix(**FEATURES, omega_max=1.5), "omega_max=1.5"),
    ],
)
def test_values_outside_of_their_bounds_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
