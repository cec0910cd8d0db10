"""LoRA of a decoder with random weights in Hugging Face PEFT, the loop that its users write.

`python peft_on_card.py SETTINGS` prints one JSON object; SETTINGS is one, too: the fields
of a config.json, batch, length, rank, steps.
"""

import json
import sys
import time

import torch
import transformers
from peft import LoraConfig, get_peft_model


def main(settings):
    """Trains a few steps and prints how long one takes."""
    config = transformers.AutoConfig.for_model(**settings["fields"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_config(
        config, torch_dtype=torch.bfloat16
    ).to(device)
    how = LoraConfig(r=settings["rank"], target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, how).train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2
    )
    shape = (settings["batch"], settings["length"])
    ids = torch.zeros(shape, dtype=torch.long, device=device)

    def steps(n):
        for _ in range(n):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return float(loss)  # waits for the card

    steps(2)
    begin = time.perf_counter()
    steps(settings["steps"])
    seconds = (time.perf_counter() - begin) / settings["steps"]
    print(
        json.dumps(
            {
                "seconds a step": seconds,
                "tokens a second": shape[0] * shape[1] / seconds,
                "device": device,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
