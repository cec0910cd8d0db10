"""Hugging Face's GPT-2 with the weights of the data file."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def pretrained(frozen):
    """GPT2LMHeadModel, dropout off, from arrays under its own names, layers stacked."""
    n_layers, d, _ = frozen["attn.c_attn.weight"].shape
    config = GPT2Config(
        vocab_size=len(frozen["wte"]),
        n_positions=len(frozen["wpe"]),
        n_embd=d,
        n_layer=n_layers,
        n_head=int(frozen["n_heads"]),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    state = model.state_dict()
    for name in ("wte", "wpe"):
        state[f"transformer.{name}.weight"] = torch.from_numpy(frozen[name])
    state["lm_head.weight"] = state["transformer.wte.weight"]
    for name, stacked in frozen.items():
        if name.startswith("ln_f"):
            state[f"transformer.{name}"] = torch.from_numpy(stacked)
        elif stacked.ndim > 1 and name not in ("wte", "wpe"):
            for layer, array in enumerate(stacked):
                state[f"transformer.h.{layer}.{name}"] = torch.from_numpy(array)
    model.load_state_dict(state)
    return model
