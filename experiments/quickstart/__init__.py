"""Federated LoRA of MiniLM on real sentences, compressed uploads, against the baselines every report carries."""

from fedjax_fm.experiments.quickstart.config import Config
from fedjax_fm.runs.experiment import Experiment, later

EXPERIMENT = Experiment(
    "quickstart",
    "Federated LoRA of a pretrained MiniLM on sentiment in four domains, with compressed uploads and baselines",
    Config,
    later("fedjax_fm.experiments.quickstart.study", "run"),
    later("fedjax_fm.experiments.quickstart.report", "write_report"),
)
