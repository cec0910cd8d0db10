"""Whisper beside torch, transformers and PEFT: parts, shorter windows, generation, LoRA,
the loss, what stays fixed. Hidden states, logits and gradients of whole models are in
test_families.
"""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_models as reference
from flax import nnx
from safetensors.numpy import load_file, save_file

import fedjax_fm as ffm
from fedjax_fm import models, peft, tasks
from fedjax_fm.models.modules import Fixed
from fedjax_fm.models.weights import read_config
from fedjax_fm.models.whisper_layers import sinusoids, windows
from fedjax_fm.peft.names import Names
from fedjax_fm.peft.targets import named_modules

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FIRST = np.array([[2, 7], [2, 8], [2, 9]], np.int32)  # as if language and task
N = 9  # new tokens
TARGETS = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def both():
    theirs, folder = reference.folder_of("whisper")
    return models.from_pretrained(folder), theirs


@pytest.fixture(scope="module")
def classifiers():
    theirs, folder = reference.folder_of("whisper-classifier")
    return models.from_pretrained(folder, num_labels=3), theirs


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [1, 8, 9])
def test_a_product_with_windows_is_torch_s_convolution(stride, length):
    torch.manual_seed(0)
    convolution = torch.nn.Conv1d(5, 7, kernel_size=3, stride=stride, padding=1)
    frames = np.random.default_rng(0).normal(size=(2, length, 5)).astype(np.float32)
    kernel = convolution.weight.detach().numpy().reshape(7, -1).T
    found = windows(jnp.asarray(frames), stride) @ kernel
    with torch.no_grad():
        given = torch.tensor(frames).transpose(1, 2)
        expected = convolution(given).transpose(1, 2) - convolution.bias
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_positions_are_those_of_transformers():
    from transformers.models.whisper.modeling_whisper import sinusoids as theirs

    np.testing.assert_allclose(sinusoids(1500, 512), theirs(1500, 512), atol=2e-4)
    np.testing.assert_allclose(sinusoids(20, 8), theirs(20, 8), atol=1e-6)


def test_a_shorter_window_is_a_model_with_fewer_positions(both, tmp_path):
    model, theirs = both
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.encoder.embed_positions.weight"
    tensors[name] = np.ascontiguousarray(tensors[name][:4])
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    fields = read_config(tmp_path) | {"max_source_positions": 4}
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    shorter = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path)
    inputs = reference.transcription()
    inputs["input_features"] = inputs["input_features"][:, :, :8]
    with torch.no_grad():
        expected = reference.run(shorter.eval(), inputs).logits.numpy()
    real = inputs["decoder_attention_mask"].astype(bool)
    found = np.asarray(reference.quick_jit(model)(**inputs))
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)


def with_loud_positions(model, theirs):
    """Copies that do not write one word again and again."""
    model, theirs = nnx.clone(model), copy.deepcopy(theirs)
    table = model.model.decoder.embed_positions.embedding
    table[...] = 10 * table[...]
    with torch.no_grad():
        theirs.model.decoder.embed_positions.weight.mul_(10)
    return model, theirs


def test_greedy_decoding_equals_whole_passes_of_transformers(both):
    model, theirs = with_loud_positions(*both)
    features = reference.sound()["input_features"]

    def run(features, first):
        arguments = model.start(features, first, N)
        return models.generate(model.next_logits, *arguments, max_new_tokens=N).tokens

    found = np.asarray(reference.quick_jit(run)(features, FIRST))
    texts = torch.tensor(FIRST).long()
    with torch.no_grad():
        for _ in range(N):
            given = {"input_features": torch.tensor(features)}
            logits = theirs(**given, decoder_input_ids=texts).logits[:, -1]
            texts = torch.cat([texts, logits.argmax(-1, keepdim=True)], dim=1)
    np.testing.assert_array_equal(found, texts[:, 2:].numpy())
    assert len(np.unique(found)) > 3


def test_a_beam_of_one_is_greedy(both):
    model, _ = both
    features = reference.sound()["input_features"]

    def run(features, first):
        arguments = model.start(features, first, N)
        greedy = models.generate(model.next_logits, *arguments, max_new_tokens=N)
        beams = models.beam_search(
            model.next_logits, *arguments, num_beams=1, max_new_tokens=N
        )
        return greedy.tokens, beams.tokens[:, 0]

    one, other = reference.quick_jit(run)(features, FIRST)
    np.testing.assert_array_equal(one, other)


def test_the_loss_is_transformers_on_the_columns_of_sound(both):
    model, theirs = both
    adapted = peft.apply(model, peft.lora(2, targets=TARGETS))
    task = tasks.language_modeling(adapted)
    labels = reference.text()["input_ids"].astype(np.int32)
    labels[1, 5:], labels[2, 1:] = -100, -100
    batch = {**reference.sound(), "labels": labels}
    loss, _ = task.loss(adapted.delta, adapted.backbone, batch, None)
    features = torch.tensor(batch["input_features"])
    with torch.no_grad():
        expected = [
            theirs(
                input_features=features[row : row + 1],
                labels=torch.tensor(labels[row : row + 1]).long(),
            ).loss.item()
            for row in range(3)
        ]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_array_equal(task.weight(batch), [11, 5, 1])
    text = tasks.language_features(adapted)
    assert text(adapted.delta, adapted.backbone, batch, None).shape == (3, 16)
    message = "the task needs the columns input_features, labels"
    del batch["input_features"]
    with pytest.raises(ValueError, match=message):
        task.loss(adapted.delta, adapted.backbone, batch, None)


def moved(delta):
    """Nothing of it is at its initial value."""
    random = np.random.default_rng(0)

    def move(x):
        return x + jnp.asarray(0.3 * random.normal(size=x.shape), x.dtype)

    return jax.tree.map(move, delta)


def peft_s_model(theirs, folder, **how):
    """PEFT's LoRA on a copy of the model, moved away from its start and saved."""
    import peft as hugging_face

    torch.manual_seed(1)
    config = hugging_face.LoraConfig(r=2, lora_alpha=6, **how)
    adapted = hugging_face.get_peft_model(copy.deepcopy(theirs), config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize("kind", ["text", "classes"])
def test_an_adapter_of_peft_opens_here_and_ours_there(
    kind, both, classifiers, tmp_path
):
    hugging_face = pytest.importorskip("peft")
    model, theirs = both if kind == "text" else classifiers
    inputs = reference.transcription() if kind == "text" else reference.sound()
    heads = None if kind == "text" else ["classifier", "projector"]
    how = {"target_modules": TARGETS, "modules_to_save": heads}
    adapted = peft_s_model(theirs, tmp_path / "theirs", **how)
    with torch.no_grad():
        expected = reference.run(adapted, inputs).logits.numpy()
    opened = peft.load_pretrained(tmp_path / "theirs", model)
    found = np.asarray(reference.quick_jit(nnx.merge(*opened))(**inputs))
    real = inputs.get("decoder_attention_mask", np.ones(3)).astype(bool)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)

    saved = tmp_path / "ours"
    own = peft.apply(model, peft.lora(2, 6.0, targets=TARGETS))
    delta = moved(own.delta)
    peft.save_pretrained(saved, own.graphdef, delta, own.backbone)
    back = hugging_face.PeftModel.from_pretrained(copy.deepcopy(theirs), saved).eval()
    with torch.no_grad():
        expected = reference.run(back, inputs).logits.numpy()
    found = np.asarray(reference.quick_jit(own.model(delta))(**inputs))
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)
    plain = np.asarray(reference.quick_jit(model)(**inputs))
    assert np.abs(found - plain).max() > 1e-2


@pytest.mark.parametrize("targets", [TARGETS, ["fc1", "fc2"], "all-linear"])
def test_names_of_layers_are_peft_s(both, tmp_path, targets):
    pytest.importorskip("peft")
    model, theirs = both
    adapted = peft_s_model(theirs, tmp_path, target_modules=targets)
    end = ".lora_A.default.weight"
    expected = {
        name.removesuffix(end).removeprefix("base_model.model.")
        for name, _ in adapted.named_parameters()
        if name.endswith(end)
    }
    own = nnx.merge(*peft.apply(model, peft.lora(2, targets=targets)))
    names = Names(own)
    found = {
        name
        for path, module in named_modules(own)
        if type(module).__name__ == "LoRALinear"
        for name in names.module(path)
    }
    assert found == expected


def test_the_sinusoids_are_never_trained_and_are_saved(both, tmp_path):
    model, theirs = both
    adapted = peft.apply(model, peft.full())
    fixed = jax.tree.leaves(adapted.backbone)
    assert [leaf.shape for leaf in fixed] == [(9, 16)]
    assert jax.tree.leaves(nnx.state(model, Fixed))[0].shape == (9, 16)
    peft.save_merged(tmp_path, model, read_config(reference.folder_of("whisper")[1]))
    saved = load_file(tmp_path / "model.safetensors")
    state = theirs.state_dict()
    del state["proj_out.weight"]  # the table of tokens
    assert saved.keys() == state.keys()
    for name, array in saved.items():
        np.testing.assert_array_equal(array, state[name].numpy(), name)


def test_a_head_that_is_stored_must_be_the_table(tmp_path):
    _, folder = reference.folder_of("whisper")
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.decoder.embed_tokens.weight"]
    fields = json.dumps(read_config(folder))
    (tmp_path / "config.json").write_text(fields, encoding="utf-8")
    place = tmp_path / "model.safetensors"
    save_file({**tensors, "proj_out.weight": table}, place, {"format": "pt"})
    assert models.from_pretrained(tmp_path)
    save_file({**tensors, "proj_out.weight": -table}, place, {"format": "pt"})
    with pytest.raises(models.WeightError, match=r"proj_out\.weight is no copy"):
        models.from_pretrained(tmp_path)


def test_a_classifier_is_read_from_a_model_that_writes(both):
    model, _ = both
    _, folder = reference.folder_of("whisper")
    found = models.from_pretrained(folder, num_labels=4)
    features = reference.sound()["input_features"]
    encoded = reference.quick_jit(model.encode)(features)
    mean = reference.quick_jit(found.features)(features)
    np.testing.assert_allclose(mean, np.asarray(encoded).mean(axis=1), atol=1e-5)
    assert np.std(found.projector.kernel[...]) == pytest.approx(0.02, rel=0.3)


def test_clients_tune_the_encoder_for_classes(classifiers):
    model, _ = classifiers
    adapted = peft.apply(model, peft.lora(2, targets=TARGETS))
    trained = {str(path[0]) for path, _ in nnx.to_flat_state(adapted.delta)}
    assert trained == {"encoder", "projector", "classifier"}
    task = tasks.classification(adapted)
    features = reference.sound()["input_features"]
    rows = {"input_features": features, "label": np.array([0, 1, 2], np.int32)}
    population = ffm.Population.from_clients([rows, rows])
    algorithm = ffm.fedavg(task, optax.adam(1e-2), local_steps=5, batch_size=3)
    simulator = ffm.Simulator(
        algorithm, population, backbone=adapted.backbone, cohort_size=2
    )
    _, metrics = simulator.run(simulator.init(adapted.delta), 6)
    assert metrics["loss"][-1] < 0.5 * metrics["loss"][0]


@pytest.mark.parametrize(
    ("method", "leaves"),
    [
        (peft.prefix_tuning(2), {"keys", "values"}),
        (peft.houlsby(2, norms=False), {"down", "down_bias", "up", "up_bias"}),
        (peft.ia3(), {"ia3"}),
        (peft.bitfit(), {"bias"}),
    ],
)
def test_other_methods_find_their_places_in_both_halves(both, method, leaves):
    model, _ = both
    adapted = peft.apply(model, method)
    paths = [tuple(map(str, path)) for path, _ in nnx.to_flat_state(adapted.delta)]
    assert {path[-1] for path in paths} == leaves
    inputs = reference.transcription()

    def loss(delta):
        logits = adapted.model(delta, adapted.backbone)(**inputs)
        return jnp.square(logits).sum()

    gradient = reference.quick_jit(jax.grad(loss))(adapted.delta)
    for half in ("encoder", "decoder"):
        inside = [v for path, v in nnx.to_flat_state(gradient) if half in path]
        assert inside
        for variable in inside:
            assert np.abs(variable[...]).max() > 0


def test_what_is_refused(both):
    model, _ = both
    inputs = reference.transcription()
    features, ids = inputs["input_features"], inputs["decoder_input_ids"]
    for given in (features[:, :5], features[0], np.ones((3, 6, 19), np.float32)):
        with pytest.raises(
            ValueError, match=r"expected input_features of shape \[B, 6"
        ):
            model(given, ids)
    with pytest.raises(ValueError, match="needs decoder_input_ids"):
        model(features)
    with pytest.raises(ValueError, match="25 tokens exceed the decoder's 24 positions"):
        model(features, np.ones((3, 25), np.int32))
    fields = {"model_type": "whisper", **reference.WHISPER}
    for change, message in (
        ({"d_model": 18}, "d_model=18 is not a multiple of encoder_attention_heads=4"),
        ({"use_weighted_layer_sum": True}, "use_weighted_layer_sum=True is not"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not"),
        ({"activation_function": "swish7"}, "activation_function must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            models.from_config(fields | change)
