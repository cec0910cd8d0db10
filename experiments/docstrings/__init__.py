"""The study of `generate` with packages as clients: function -> docstring, in Alpaca's format, scored by ROUGE-L too."""

from fedjax_fm.experiments.generate.config import DocstringsConfig
from fedjax_fm.runs.experiment import Experiment, later

EXPERIMENT = Experiment(
    "docstrings",
    "Federated LoRA of SmolLM2-135M on the docstrings of installed packages: perplexity and ROUGE-L on unseen packages",
    DocstringsConfig,
    later("fedjax_fm.experiments.generate.study", "run"),
    later("fedjax_fm.experiments.generate.report", "write_report"),
)
