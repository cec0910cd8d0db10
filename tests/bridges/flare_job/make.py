"""Makes this folder's files by NVIDIA FLARE 2.9.0, peft, torch and transformers.

    pip install nvflare==2.9.0 torch transformers peft
    python tests/bridges/flare_job/make.py

`FL_global_model.pt` is what FLARE's server saves after a round: its `PTFileModelPersistor`
holds an adapter under `model.`, as `hf_peft_model.py` of its example llm_hf does
(NVIDIA/NVFlare, examples/advanced/llm_hf, commit 0b3cce3e), takes a round's FLModel and
writes. The adapter of that FLModel is also saved by peft, beside it.
"""

from pathlib import Path

import peft
import torch
import transformers
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor

HERE = Path(__file__).resolve().parent
LLAMA = dict(
    vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=8, tie_word_embeddings=False,
)  # fmt: skip


class CausalLMPEFTModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**LLAMA)
        lora = peft.LoraConfig(
            r=2,
            lora_alpha=4,
            target_modules=["q_proj", "v_proj"],
            task_type="CAUSAL_LM",
        )
        self.model = peft.get_peft_model(transformers.LlamaForCausalLM(config), lora)

    def state_dict(self, *args, **how):
        state = peft.get_peft_model_state_dict(self.model)
        return {f"model.{name}": value for name, value in state.items()}


def main():
    server = CausalLMPEFTModel()
    persistor = PTFileModelPersistor(model=server)
    persistor.load_model(FLContext())
    torch.manual_seed(1)
    trained = {
        name: torch.randn(x.shape).numpy() for name, x in server.state_dict().items()
    }
    update = FLModel(params=trained, current_round=0, total_rounds=1)
    persistor.persistence_manager.update(make_model_learnable(update.params, {}))
    persistor.save_model_file(str(HERE / "FL_global_model.pt"))
    plain = {
        name.removeprefix("model."): torch.tensor(x) for name, x in trained.items()
    }
    peft.set_peft_model_state_dict(server.model, plain)
    server.model.save_pretrained(HERE)
    (HERE / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
