"""Every architecture against transformers: hidden states, logits and gradients of tiny
random models.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_models as reference
from flax import nnx

from fedjax_fm import models
from fedjax_fm.models.families import naming_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def real_rows(inputs: dict, shape: tuple) -> np.ndarray:
    """Where an output is read by somebody: not at padding."""
    mask = inputs.get("attention_mask", inputs.get("decoder_attention_mask"))
    return (
        mask.astype(bool)
        if mask is not None and shape[:2] == mask.shape
        else np.ones(shape[:1], bool)
    )


def in_memory(tensor: str) -> str:
    """transformers 5 renames ViT's modules when it reads a file."""
    for pattern, new in (
        (r"^vit\.encoder\.layer", "vit.layers"),
        (
            r"attention\.attention\.(query|key|value)",
            lambda m: f"attention.{m[1][0]}_proj",
        ),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"(layers\.\d+)\.output\.dense", r"\1.mlp.fc2"),
    ):
        tensor = re.sub(pattern, new, tensor)
    return tensor


def compare_gradients(ours, gradient, theirs) -> None:
    """Every parameter's, tensor by tensor under Hugging Face's names."""
    named, compared = dict(theirs.named_parameters()), 0
    for path, variable in nnx.to_flat_state(gradient):
        path, found = tuple(map(str, path)), np.asarray(variable[...])
        stacked = naming_of(ours).stack_of(path) is not None
        for layer in range(len(found)) if stacked else [None]:
            tensor, transposed = naming_of(ours).tensor(path, layer)
            expected = named[
                tensor if tensor in named else in_memory(tensor)
            ].grad.numpy()
            if transposed:
                expected = expected.reshape(len(expected), -1).T
            one = found if layer is None else found[layer]
            np.testing.assert_allclose(
                one, expected, atol=1e-3, rtol=1e-3, err_msg=tensor
            )
            compared += 1
    assert compared == sum(parameter.grad is not None for parameter in named.values())


@pytest.mark.compatibility
@pytest.mark.parametrize("name", reference.CASES)
def test_hidden_states_logits_and_gradients_equal_transformers(
    name: str, compatibility
):
    case, (theirs, folder) = reference.CASES[name], reference.folder_of(name)
    ours = models.from_pretrained(folder, num_labels=case.num_labels)
    inputs = case.inputs()
    expected = reference.logits_of(reference.run(theirs, inputs))
    real = real_rows(inputs, expected.shape)
    probe = np.random.default_rng(3).normal(size=expected.shape).astype(np.float32)
    probe *= np.expand_dims(real, tuple(range(real.ndim, probe.ndim)))
    graphdef, state = nnx.split(ours)

    def total(state):
        model = nnx.merge(graphdef, state)
        logits, hidden = reference.logits_of(model(**inputs)), None
        if case.hidden is not None:
            hidden = (
                model.hidden
                if hasattr(model, "hidden")
                else getattr(model, case.hidden)
            )(**inputs)
        return jnp.sum(logits * probe), (logits, hidden)

    program = (
        jax.value_and_grad(total, has_aux=True)
        if name in reference.GRADIENTS
        else lambda s: (total(s), None)
    )
    (_, (logits, hidden)), gradient = reference.quick_jit(program)(state)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(
        np.asarray(logits)[real], expected.detach().numpy()[real], atol=1e-4
    )
    if case.hidden is not None:
        with torch.no_grad():
            states = reference.run(
                getattr(theirs, case.hidden), inputs
            ).last_hidden_state.numpy()
        real = real_rows(inputs, states.shape)
        np.testing.assert_allclose(np.asarray(hidden)[real], states[real], atol=1e-4)
    if gradient is not None:
        theirs.zero_grad()
        (expected * torch.tensor(probe)).sum().backward()
        compare_gradients(ours, gradient, theirs)
    features = (
        ["logits"]
        + ["hidden states"] * (case.hidden is not None)
        + ["gradients"] * (gradient is not None)
    )
    for feature in features:
        compatibility.works("Architectures", name, feature)
