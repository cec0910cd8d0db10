r"""From a checkpoint and a file of people's texts to a federated adapter and its report.

    fedjax-fm finetune --model HuggingFaceTB/SmolLM2-135M-Instruct --data chats.jsonl \
        --prompt instruction --response output --client user_id --out runs/mine

Its run is a study (see `fedjax_fm.study`): the chosen method, and the standing baselines
before training, centralised and local only, on the same split.
"""

from fedjax_fm.finetune.settings import Settings

__all__ = ["Settings"]
