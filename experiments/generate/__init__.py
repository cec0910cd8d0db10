"""Federated LoRA of a small decoder on speaking roles, scored by perplexity and by what it writes."""

from fedjax_fm.experiments.generate.config import Config
from fedjax_fm.runs.experiment import Experiment, later

EXPERIMENT = Experiment(
    "generate",
    "Federated LoRA of SmolLM2-135M on Shakespeare's roles: perplexity on seen and unseen roles, forgetting, answers",
    Config,
    later("fedjax_fm.experiments.generate.study", "run"),
    later("fedjax_fm.experiments.generate.report", "write_report"),
)
