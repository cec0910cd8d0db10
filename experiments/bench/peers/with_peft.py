"""Hugging Face PEFT: LoRA, one client after the other, the loop that a PEFT user writes."""

import bert
import gpt2
import protocol
import torch
from peft import LoraConfig, TaskType, get_peft_model


def lora_gpt(data):
    """(model, what is trained, how the arrays of data.start are got from it), as `lora_minilm`."""
    a = data.start["lora_a"]
    config = LoraConfig(
        r=a.shape[-1],
        lora_alpha=int(data.frozen["alpha"]),
        lora_dropout=0.0,
        target_modules=["c_attn"],
        fan_in_fan_out=True,
        bias="none",
    )
    model = get_peft_model(gpt2.pretrained(data.frozen), config).train()
    parts = {f"lora_{x.lower()}": factors(model, f"lora_{x}.") for x in "AB"}
    return model, parts


def lora_minilm(data):
    """The classifier is trained with the factors, as PEFT does for TaskType.SEQ_CLS."""
    a = data.start["bert.query.lora_a"]
    config = LoraConfig(
        r=a.shape[-1],
        lora_alpha=int(data.frozen["alpha"]),
        lora_dropout=0.0,
        target_modules=["query", "value"],
        task_type=TaskType.SEQ_CLS,
    )
    model = get_peft_model(bert.pretrained(data), config).train()
    parts = {
        f"bert.{m}.lora_{x.lower()}": factors(model, f"{m}.lora_{x}.")
        for m in ("query", "value")
        for x in "AB"
    }
    head = {
        name.rsplit(".", 1)[1]: [p]
        for name, p in model.named_parameters()
        if ".classifier.modules_to_save." in name
    }
    return model, parts | {
        "classifier.kernel": head["weight"],
        "classifier.bias": head["bias"],
    }


def factors(model, part):
    """One factor of every layer, in order; PEFT's are the transposes of the data file's."""
    return [p for name, p in model.named_parameters() if part in name]


def gpt_batch(client):
    """What the model is called with."""
    ids = torch.from_numpy(client["x"]).long()
    return {"input_ids": ids, "labels": ids}


def bert_batch(client):
    """What the model is called with."""
    ids, mask, labels = (
        torch.from_numpy(client[name]).long() for name in ("ids", "mask", "y")
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


WORKLOADS = {
    "lora-gpt": (lora_gpt, gpt_batch),
    "lora-minilm": (lora_minilm, bert_batch),
}


def build(workload, data):
    """See protocol.serve; for clients whose batch is all they have."""
    make, batch = WORKLOADS[workload]
    model, parts = make(data)
    for name, parameters in parts.items():
        value = data.start[name]
        layers = [value] if len(parameters) == 1 and "lora" not in name else value
        _assign(parameters, [torch.from_numpy(layer.T.copy()) for layer in layers])
    trained = [p for parameters in parts.values() for p in parameters]
    if {id(p) for p in trained} != {
        id(p) for p in model.parameters() if p.requires_grad
    }:
        raise ValueError("PEFT trains other parameters than the data file starts")
    clients = [batch(data.client(k)) for k in range(data.n_clients)]

    def run(rounds):
        for _ in range(rounds):
            start = [p.detach().clone() for p in trained]
            mean = [torch.zeros_like(p) for p in start]
            for inputs in clients:
                _assign(trained, start)
                optimizer = torch.optim.SGD(trained, lr=data.learning_rate)
                for _ in range(data.epochs):
                    optimizer.zero_grad()
                    model(**inputs).loss.backward()
                    optimizer.step()
                for total, p in zip(mean, trained, strict=True):
                    total += p.detach() / len(clients)
            _assign(trained, mean)

    return run, lambda: {
        name: torch.stack([p.detach().t() for p in parameters])
        .numpy()
        .reshape(data.start[name].shape)
        for name, parameters in parts.items()
    }


def _assign(parameters, values):
    with torch.no_grad():
        for p, value in zip(parameters, values, strict=True):
            p.copy_(value)


if __name__ == "__main__":
    protocol.serve(build)
