"""Names that people give: each one is found or refused by name, in every method that
takes names.
"""

import numpy as np
import pytest
from flax import nnx
from peft_pairs import make_pair

from fedjax_fm import peft
from fedjax_fm.peft.lora_sb import first_gradients
from fedjax_fm.peft.names import Names
from fedjax_fm.peft.targets import named_modules

# A first update of the queries of `make_pair`'s llama.
UPDATES = {
    "model.layers.self_attn.q_proj": np.random.default_rng(0)
    .normal(size=(3, 8, 8))
    .astype(np.float32)
}
# name: (method with a typo, the typo)
TYPOS = {
    "lora": lambda t: peft.lora(2, targets=["q_proj", *t]),
    "lora, an alternative": lambda t: peft.lora(2, targets="|".join(["q_proj", *t])),
    "dora": lambda t: peft.dora(2, targets=["q_proj", *t]),
    "lora_sb": lambda t: peft.lora_sb(2, targets=["q_proj", *t], updates=UPDATES),
    "lora_experts": lambda t: peft.lora_experts(1, experts=2, targets=["q_proj", *t]),
    "ravan": lambda t: peft.ravan(1, targets=["q_proj", *t]),
    "ia3": lambda t: peft.ia3(["k_proj", *t], None),
    "ia3, feed-forward": lambda t: peft.ia3(["k_proj"], ["down_proj", *t]),
    "houlsby": lambda t: peft.houlsby(2, targets=["o_proj", *t]),
    "parallel_adapter": lambda t: peft.parallel_adapter(2, targets=["mlp", *t]),
    "on_layers": lambda t: peft.on_layers(peft.lora(2, targets=["q_proj", *t]), [0]),
    "exclude_modules": lambda t: peft.lora(
        2, targets="_proj", exclude_modules=["q_proj", *t]
    ),
    "rank_pattern": lambda t: peft.lora(
        2, targets=["q_proj"], rank_pattern={"q_proj": 1, **dict.fromkeys(t, 3)}
    ),
    "alpha_pattern": lambda t: peft.lora(
        2, targets=["q_proj"], alpha_pattern={"q_proj": 1, **dict.fromkeys(t, 3)}
    ),
}
SAVED = {
    "lora": lambda s: peft.lora(2, targets=["q_proj"], modules_to_save=s),
    "dora": lambda s: peft.dora(2, targets=["q_proj"], modules_to_save=s),
    "lora_sb": lambda s: peft.lora_sb(
        2, targets=["q_proj"], modules_to_save=s, updates=UPDATES
    ),
    "lora_experts": lambda s: peft.lora_experts(
        1, experts=2, targets=["q_proj"], modules_to_save=s
    ),
    "ravan": lambda s: peft.ravan(1, targets=["q_proj"], modules_to_save=s),
    "ia3": lambda s: peft.ia3(modules_to_save=s),
    "houlsby": lambda s: peft.houlsby(2, modules_to_save=s),
    "parallel_adapter": lambda s: peft.parallel_adapter(2, modules_to_save=s),
    "prompt_tuning": lambda s: peft.prompt_tuning(2, modules_to_save=s),
    "prefix_tuning": lambda s: peft.prefix_tuning(2, modules_to_save=s),
    "p_tuning": lambda s: peft.p_tuning(2, hidden=2, modules_to_save=s),
    "p_tuning_v2": lambda s: peft.p_tuning_v2(2, modules_to_save=s),
    "on_layers": lambda s: peft.on_layers(peft.full(), [0], modules_to_save=s),
    "inside on_layers": lambda s: peft.on_layers(
        peft.lora(2, targets=["q_proj"], modules_to_save=s), [0]
    ),
    "head": lambda s: peft.head(s),
    "combine": lambda s: peft.combine(peft.lora(2, targets=["q_proj"]), peft.head(s)),
}


@pytest.mark.parametrize("name", TYPOS)
def test_a_typo_beside_a_good_name_is_refused(name, llama):
    assert peft.apply(llama, TYPOS[name]([]))
    with pytest.raises(ValueError, match=r"'?v_porj'?.* match no .*There are: .*_proj"):
        peft.apply(llama, TYPOS[name](["v_porj"]))


@pytest.mark.parametrize("name", SAVED)
def test_a_module_to_save_that_is_not_there_is_refused(name, llama):
    good = "input_layernorm" if name == "inside on_layers" else "model.norm"
    assert peft.apply(llama, SAVED[name]([good]))
    with pytest.raises(
        ValueError, match=r"\['scroe'\] match no module with parameters"
    ):
        peft.apply(llama, SAVED[name]([good, "scroe"]))


def test_what_is_near_is_said(bert):
    with pytest.raises(
        ValueError,
        match=r"targets=\['valeu'\] match no LinearLayer; did you mean 'value'\?",
    ):
        peft.apply(bert, peft.lora(2, targets=["query", "valeu"]))
    with pytest.raises(
        ValueError,
        match=r"modules_to_save=\['classifer'\] match no .*did you mean 'classifier'\?",
    ):
        peft.apply(bert, peft.lora(2, targets=["query"], modules_to_save=["classifer"]))


@pytest.fixture(scope="module")
def tied():
    from fedjax_fm import models

    config = models.LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return models.LlamaForCausalLM(config, nnx.Rngs(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: peft.lora(2, targets=["q_proj", "lm_head"]),
        lambda: peft.lora(2, targets="q_proj|lm_head"),
        lambda: peft.lora(2, targets=["q_proj"], modules_to_save=["lm_head"]),
        lambda: peft.ia3(modules_to_save=["lm_head"]),
        lambda: peft.head(["model.norm", "lm_head"]),
    ],
)
def test_the_head_of_a_tied_model_is_not_there_and_untied_it_is(make, tied):
    with pytest.raises(
        ValueError, match=r"lm_head.* match no .*is its embedding: peft.untie\(model\)"
    ):
        peft.apply(tied, make())
    assert peft.apply(peft.untie(tied), make())


def test_lists_of_several_families_need_not_be_found_whole(llama, bert, net):
    for model in (llama, bert):
        assert peft.apply(model, peft.ia3())
        assert peft.apply(model, peft.houlsby(2))
        assert peft.apply(model, peft.parallel_adapter(2))
    with pytest.raises(ValueError, match="match no LinearLayer"):
        peft.apply(net, peft.houlsby(2))


@pytest.mark.parametrize(
    ("expression", "parts"),
    [
        ("query|value", ["query", "value"]),
        ("(query|value)$", ["(query|value)$"]),
        (r"q\|r|[a|b]|(c|(d|e))|f", [r"q\|r", "[a|b]", "(c|(d|e))", "f"]),
        ("query", ["query"]),
    ],
)
def test_alternatives_are_those_at_the_top(expression, parts):
    from fedjax_fm.peft.patterns import entries

    assert entries(expression) == parts


def test_entries_of_a_list_stand_for_themselves():
    from fedjax_fm.peft.patterns import AnyOf, entries

    assert entries(["a", "b"]) == [["a"], ["b"]]
    assert entries(AnyOf(("a", "b"))) == [("a", "b")]


@pytest.mark.parametrize(
    "family", ["llama", "tied", "gemma3", "bert", "roberta", "distilbert", "gpt2", "t5"]
)
def test_all_linear_names_what_peft_names(family, tmp_path):
    hugging_face = pytest.importorskip("peft")
    pair = make_pair(family, tmp_path)
    heads = {
        "bert": ["classifier"],
        "roberta": ["classifier"],
        "distilbert": ["pre_classifier", "classifier"],
    }
    config = hugging_face.LoraConfig(
        r=2, target_modules="all-linear", modules_to_save=heads.get(family)
    )
    adapted = hugging_face.get_peft_model(pair.reference(), config)
    end = ".lora_A.default.weight"
    theirs = {
        name.removesuffix(end)
        for name, _ in adapted.named_parameters()
        if name.endswith(end)
    }
    model = nnx.merge(*peft.apply(pair.model, peft.lora(2, targets="all-linear")))
    names = Names(model)
    ours = {
        n
        for p, m in named_modules(model)
        if type(m).__name__ == "LoRALinear"
        for n in names.module(p)
    }
    assert ours == {name.removeprefix("base_model.model.") for name in theirs}


def test_layers_may_be_named_by_their_numbers(llama, run, text):
    ids, _ = text
    by_name = peft.lora(
        2, targets=["layers.0.self_attn.q_proj", "model.layers.2.mlp.up_proj"]
    )
    parts = peft.apply(llama, by_name)
    sizes = {".".join(map(str, p)): v.shape for p, v in nnx.to_flat_state(parts[1])}
    assert sizes == {
        "model.layers.parts.0.self_attn.q_proj.lora_a": (1, 8, 2),
        "model.layers.parts.0.self_attn.q_proj.lora_b": (1, 2, 8),
        "model.layers.parts.2.mlp.up_proj.lora_a": (1, 8, 2),
        "model.layers.parts.2.mlp.up_proj.lora_b": (1, 2, 12),
    }
    np.testing.assert_allclose(run(parts, ids), llama(ids), atol=1e-6)
    assert len(Names(nnx.merge(*parts)).naming.stacked) == 1


def test_one_layer_of_a_stack_is_on_layers_with_the_same_factors(
    llama, shaken, run, text
):
    ids, _ = text
    named = peft.apply(llama, peft.lora(2, 4, targets=["layers.1.self_attn.q_proj"]))
    chosen = peft.apply(llama, peft.on_layers(peft.lora(2, 4, targets=["q_proj"]), [1]))
    a, b = (shaken(parts[1], 0.5, seed=3) for parts in (named, chosen))
    flat = [nnx.to_flat_state(delta) for delta in (a, b)]
    assert [p for p, _ in flat[0]] == [p for p, _ in flat[1]]
    same = nnx.from_flat_state([(p, v) for p, v in flat[0]])
    np.testing.assert_allclose(
        run((named[0], a, named[2]), ids),
        run((chosen[0], same, chosen[2]), ids),
        atol=1e-6,
    )


def test_methods_that_treat_all_layers_alike_say_so(llama):
    for method in (
        peft.ia3(["layers.0.self_attn.k_proj"], None),
        peft.houlsby(2, targets=["layers.1.mlp.down_proj"]),
    ):
        with pytest.raises(
            ValueError, match=r"some layers of .* only; choose layers by peft.on_layers"
        ):
            peft.apply(llama, method)
    with pytest.raises(ValueError, match="share_a=True shares A among all layers"):
        peft.apply(
            llama, peft.lora(2, targets=["layers.0.self_attn.q_proj"], share_a=True)
        )


def test_what_is_trained_in_full_is_not_adapted_too(bert):
    _, delta, _ = peft.apply(
        bert, peft.lora(2, targets="query|dense", modules_to_save=["pooler"])
    )
    names = {".".join(map(str, p)) for p, _ in nnx.to_flat_state(delta)}
    assert {n for n in names if "pooler" in n} == {
        "bert.pooler.dense.kernel",
        "bert.pooler.dense.bias",
    }
    with pytest.raises(
        ValueError,
        match=r"\['classifier'\] name classifier, which modules_to_save=.* train in full",
    ):
        peft.apply(bert, peft.lora(2, targets=["query", "classifier"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: peft.lora(2, targets=["q_proj", 3]), r"targets=\['q_proj', 3\]"),
        (lambda: peft.lora(2, targets=3), "targets=3"),
        (
            lambda: peft.lora(2, targets="q_proj("),
            r"expected targets a regular expression, got targets='q_proj\('",
        ),
        (lambda: peft.lora(2, targets="q", exclude_modules=7), "exclude_modules=7"),
        (
            lambda: peft.lora(2, targets="q", modules_to_save="score"),
            r"write modules_to_save=\['score'\]",
        ),
        (lambda: peft.ia3(modules_to_save="score"), "modules_to_save='score'"),
        (lambda: peft.head("score"), "modules='score'"),
        (
            lambda: peft.on_layers(peft.full(), [0], modules_to_save="score"),
            "modules_to_save='score'",
        ),
        (
            lambda: peft.lora(2, targets="q", rank_pattern=["a"]),
            r"rank_pattern=\['a'\]",
        ),
        (
            lambda: peft.lora(2, targets="q", rank_pattern={"a": 1.5}),
            "rank_pattern=1.5",
        ),
        (
            lambda: peft.lora(2, targets="q", alpha_pattern={"a": float("nan")}),
            "alpha_pattern=nan",
        ),
        (
            lambda: peft.lora(2, targets="q", rank_pattern={"a(": 1}),
            r"rank_pattern='a\('",
        ),
    ],
)
def test_what_is_no_choice_of_modules_is_refused_at_once(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: peft.lora(r=8, lora_alpha=16, target_modules=["q"]),
            r"lora\(\) takes no r=8, PEFT's word; write rank=8",
        ),
        (
            lambda: peft.lora(8, lora_alpha=16, targets=["q"]),
            "write alpha=16, or peft.lora_from_config",
        ),
        (lambda: peft.lora(8, targets=["q"], lora_dropout=0.1), "write dropout=0.1"),
        (lambda: peft.lora(8, target_modules=["q"]), r"write targets=\['q'\]"),
        (lambda: peft.lora(8, targets=["q"], use_dora=True), r"write peft.dora\(...\)"),
        (
            lambda: peft.lora(8, targets=["q"], layers_to_transform=[1]),
            r"write peft.on_layers\(method, \[1\]\)",
        ),
        (
            lambda: peft.lora(8, targets=["q"], bias="all"),
            r"write peft.combine\(method, peft.bitfit\(\)\)",
        ),
        (
            lambda: peft.lora(8, targets=["q"], task_type="CAUSAL_LM"),
            "write nothing: the model's class says it",
        ),
        (lambda: peft.dora(r=8, targets=["q"]), r"dora\(\) takes no r=8"),
        (lambda: peft.ia3(target_modules=["k"]), r"write targets=\['k'\]"),
        (lambda: peft.ia3(feedforward_modules=["k"]), r"write feedforward=\['k'\]"),
        (lambda: peft.prompt_tuning(num_virtual_tokens=4), "write n_tokens=4"),
        (lambda: peft.prefix_tuning(num_virtual_tokens=4), "write n_tokens=4"),
        (lambda: peft.prefix_tuning(4, encoder_hidden_size=4), "write hidden=4"),
        (lambda: peft.houlsby(4, target_modules=["k"]), r"write targets=\['k'\]"),
    ],
)
def test_pefts_words_are_answered_with_ours(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("method", [peft.lora, None, {"r": 8}])
def test_what_is_no_method_is_refused(method, llama):
    with pytest.raises(TypeError, match=r"expected method a peft\.Method"):
        peft.apply(llama, method)
    with pytest.raises(TypeError, match=r"expected methods a peft\.Method"):
        peft.combine(peft.full(), method)


def test_words_that_nobody_knows_are_pythons_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'rnk'"):
        peft.lora(rnk=8, targets=["q"])


@pytest.mark.parametrize("kind", ["batch norm", "dropout"])
def test_a_model_that_writes_to_itself_is_refused_until_it_only_reads(kind):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 4, rngs=rngs)
            self.inner = (
                nnx.BatchNorm(4, rngs=rngs)
                if kind == "batch norm"
                else nnx.Dropout(0.5, rngs=rngs)
            )

        def __call__(self, x):
            return self.inner(self.first(x))

    model = Net(nnx.Rngs(0))
    for method in (peft.full(), peft.lora(2, targets=["first"])):
        with pytest.raises(
            ValueError,
            match=r"at 'inner' .*(GroupNorm|randomness.dropout).*model.eval\(\)",
        ):
            peft.apply(model, method)
    model.eval()
    graphdef, delta, backbone = peft.apply(model, peft.full())
    x = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(nnx.merge(graphdef, delta, backbone)(x), model(x))


def test_first_gradients_refuse_what_is_not_there(llama):
    with pytest.raises(
        ValueError, match=r"\['q_porj'\] match no Linear; did you mean 'q_proj'"
    ):
        first_gradients(
            llama,
            lambda model: model.model.norm.scale[...].sum(),
            targets=["q_proj", "q_porj"],
        )
