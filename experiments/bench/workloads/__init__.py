"""The workloads by name."""

from fedjax_fm.experiments.bench.workload import Workload
from fedjax_fm.experiments.bench.workloads import (
    cifar_cnn,
    clients_1e6,
    lora_gpt,
    lora_minilm,
    lora_smollm2,
    mlp,
)

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        mlp.MLP_1000,
        lora_gpt.LORA_GPT,
        lora_minilm.LORA_MINILM,
        lora_smollm2.LORA_SMOLLM2,
        cifar_cnn.CIFAR_CNN,
        mlp.TINY_ROUND,
        mlp.RAGGED,
        mlp.RAGGED_EQUAL,
        *clients_1e6.WORKLOADS,
    )
}
