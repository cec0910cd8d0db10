"""The generative study's report, made from the run folder alone."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.evaluation import Comparison, TokenLosses, holm, paired_seeds, perplexity_by_client
from fedjax_fm.runs import RunFolder, RunFolderError, figures
from fedjax_fm.runs.html import Page
from fedjax_fm.runs.seeds import seed_folders

LABELS = {
    "federated": "Federated LoRA",
    "zero_shot": "Zero-shot (the base model)",
    "local_only": "Local only (some clients alone)",
    "centralised": "Centralised LoRA, equal tokens",
}
TITLES = {
    "shakespeare": ("A language model tuned on speaking roles", "roles of plays that no client has"),
    "docstrings": ("A language model tuned on packages' docstrings", "packages that no client has"),
}


class Seed(NamedTuple):
    """One seed's results as they lie in its folder."""

    config: dict[str, Any]
    provenance: dict[str, Any]
    rows: list[dict]
    numbers: dict[str, dict]
    arrays: dict[str, dict[str, np.ndarray]]

    def losses(self, arm: str, part: str) -> TokenLosses | None:
        """Sums over rows; None where an arm was not scored on that part."""
        arrays = self.arrays[arm]
        return TokenLosses(arrays[f"{part}_nll"], arrays[f"{part}_tokens"]) if f"{part}_nll" in arrays else None

    def perplexity(self, arm: str, part: str) -> float | None:
        """Token-weighted."""
        found = self.losses(arm, part)
        return None if found is None else found.perplexity


def read_seed(folder: RunFolder) -> Seed:
    """Whatever arms are done."""
    place = RunFolder(folder.path / "arms")
    done = [arm for arm in LABELS if place.has(f"{arm}.json")]
    if "federated" not in done:
        raise RunFolderError(f"{folder.path}: the federated arm is not finished, there is nothing to report yet")
    return Seed(
        folder.config,
        folder.read_json("provenance.json"),
        folder.metrics(),
        {arm: place.read_json(f"{arm}.json") for arm in done},
        {arm: place.read_arrays(f"{arm}.npz") for arm in done},
    )


def worst_decile(seed: Seed, arm: str, part: str) -> float:
    """The 90 % quantile of the clients' perplexities."""
    losses = seed.losses(arm, part)
    assert losses is not None
    return float(np.quantile(perplexity_by_client(losses, seed.provenance[f"{part}_sizes"]), 0.9))


def comparisons(seeds: list[Seed]) -> dict[str, Comparison]:
    """Federated against the other arms over seeds; a positive difference is federated's advantage.

    Nats a token on unseen clients for all (log-perplexity, other minus federated), on the clients' own last texts for
    local only, ROUGE-L where it was scored.
    """
    found = {}
    for arm in LABELS:
        if arm == "federated" or any(arm not in seed.arrays for seed in seeds):
            continue
        name = f"against {LABELS[arm]}"
        nats = lambda arm, part: np.array([np.log(seed.perplexity(arm, part) or np.nan) for seed in seeds])
        found[f"{name}, unseen clients, nats a token"] = paired_seeds(nats(arm, "unseen"), nats("federated", "unseen"))
        if arm == "local_only":
            mine = np.array([_first_seen(seed, seed.config["local_only_clients"]) for seed in seeds])
            found[f"{name}, these clients' own last texts, nats a token"] = paired_seeds(nats(arm, "own"), mine)
        if "rouge_l" in seeds[0].arrays[arm]:
            scores = lambda arm: np.array([seed.arrays[arm]["rouge_l"].mean() for seed in seeds])
            found[f"{name}, unseen clients, ROUGE-L"] = paired_seeds(scores("federated"), scores(arm))
    return holm(found)


def _first_seen(seed: Seed, n: int) -> float:
    """The federated model's nats a token on the first n training clients' own last texts."""
    losses, rows = seed.losses("federated", "seen"), sum(seed.provenance["seen_sizes"][:n])
    assert losses is not None
    return float(losses.nll[:rows].sum() / losses.tokens[:rows].sum())


def _advantage(comparison: Comparison) -> str:
    return (
        f"{comparison.difference:+.4f}, 95 % interval [{comparison.low:+.4f}, {comparison.high:+.4f}] over "
        f"{comparison.pairs} paired seeds: {comparison.verdict} (Holm, {comparison.family} comparisons)"
    )


def summary(seeds: list[Seed]) -> dict[str, Any]:
    """results.json."""
    arms = {}
    for arm in (arm for arm in LABELS if all(arm in seed.arrays for seed in seeds)):
        parts = [part for part in ("seen", "own", "unseen", "elsewhere") if seeds[0].perplexity(arm, part) is not None]
        arms[arm] = {f"{part}_perplexity": [seed.perplexity(arm, part) for seed in seeds] for part in parts}
        arms[arm] |= {
            name: [seed.numbers[arm][name] for seed in seeds]
            for name in ("uplink_bytes", "downlink_bytes", "trained_tokens_per_second", "generated_tokens_per_second",
                         "peak_memory_bytes", "seconds_a_round", "seconds")
            if name in seeds[0].numbers[arm]
        }  # fmt: skip
        if "rouge_l" in seeds[0].arrays[arm]:
            arms[arm]["rouge_l"] = [float(seed.arrays[arm]["rouge_l"].mean()) for seed in seeds]
    return {
        "seeds": [seed.config["seed"] for seed in seeds],
        "arms": arms,
        "comparisons": {name: _advantage(comparison) for name, comparison in comparisons(seeds).items()},
    }


def _mean(values: list[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return f"{np.mean(numbers):.2f}" if numbers else ""


def _table(page: Page, seeds: list[Seed], result: dict[str, Any]) -> None:
    rows = []
    for arm, entry in result["arms"].items():
        clients = arm != "local_only"
        worst = [
            _mean([worst_decile(seed, arm, part) for seed in seeds]) if clients else "" for part in ("seen", "unseen")
        ]
        traffic = [f"{np.mean(entry[k]) / 1e6:.1f}" if k in entry else "" for k in ("uplink_bytes", "downlink_bytes")]
        rows.append((
            LABELS[arm], _mean(entry.get("seen_perplexity", entry.get("own_perplexity", []))), worst[0],
            _mean(entry["unseen_perplexity"]), worst[1], _mean(entry.get("elsewhere_perplexity", [])),
            f"{np.mean(entry['rouge_l']):.3f}" if "rouge_l" in entry else "", *traffic,
            f"{np.mean(entry['seconds']):.0f} s",
        ))  # fmt: skip
    head = (
        "", "seen clients", "worst tenth", "unseen clients", "worst tenth", "editorials", "ROUGE-L, unseen", "MB up",
        "MB down", "time",
    )  # fmt: skip
    page.table(head, rows, main=0)


def write_report(folder: RunFolder) -> Path:
    """results.json and report.html; returns the page's path."""
    seeds = [read_seed(below) for below in seed_folders(folder)]
    result = summary(seeds)
    folder.write_json("results.json", result)
    first, config, provenance = seeds[0], seeds[0].config, seeds[0].provenance
    mine = result["arms"]["federated"]
    page = Page(
        TITLES[config["data"]][0],
        f"LoRA on {config['model']}, {config['clients']} clients, {config['cohort']} a round, {config['rounds']} rounds: "
        f"perplexity {_mean(mine['unseen_perplexity'])} on {TITLES[config['data']][1]}"
        + (
            f", {_mean(result['arms']['zero_shot']['unseen_perplexity'])} before."
            if "zero_shot" in result["arms"]
            else "."
        ),
    )
    points = [row for row in first.rows if "eval_perplexity" in row]
    values = [row["eval_perplexity"] for row in points]
    traffic = [(row["uplink_bytes_total"] + row["downlink_bytes_total"]) / 1e6 for row in points]
    panels = [
        ("rounds", False, {LABELS["federated"]: ([row["round"] for row in points], values)}),
        ("megabytes sent, both ways", False, {LABELS["federated"]: (traffic, values)}),
    ]
    page.figure(figures.curves(panels, {}, "perplexity"), "Eight training clients' own last texts, during the run.")
    page.heading("Perplexity by arm")
    _table(page, seeds, result)
    page.text(
        "Token-weighted, on the answers only; worst tenth: the 90 % quantile over clients. Local only: its own clients in "
        "the first column; each unseen client is judged by one client's model. Editorials: plain modern sentences that no "
        f"client has; a rise there is forgetting. Note: {provenance['data']['note']}. Means over "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}.",
        note=True,
    )
    page.heading("Federated LoRA against the rest")
    page.points(f"{name}: {text} (positive favours federated)" for name, text in result["comparisons"].items())
    if "zero_shot" in first.numbers:
        page.heading("Three prompts, greedily answered")
        before, after = first.numbers["zero_shot"]["answers"], first.numbers["federated"]["answers"]
        prompts = first.numbers["federated"]["prompts"]
        rows = [(prompt, b, a, answer) for (prompt, answer), b, a in zip(prompts, before, after, strict=True)]
        page.table(("what was asked", "before", "after", "what the text has"), rows, prose=True)
    page.heading("What it cost")
    page.points(
        (
            f"{_mean(mine['trained_tokens_per_second'])} trained tokens a second ({100 * provenance['data']['padding']:.0f} % of "
            f"them padding), "
            f"{_mean(mine['seconds_a_round'])} s a round, {_mean(mine['generated_tokens_per_second'])} generated tokens a second",
            f"frozen weights {provenance['frozen_bytes'] / 1e6:.1f} MB in memory ({config['frozen']}, {config['dtype']}); "
            f"peak of the whole process {np.mean(mine['peak_memory_bytes']) / 1e9:.2f} GB",
            f"weights: {provenance['weights']['name']}, a small pretrained model ({provenance['weights']['source']}), "
            f"SHA-256 {provenance['weights']['sha256'][:16]}…; data: {provenance['data']['name']} (real), SHA-256 "
            f"{provenance['data']['sha256'][:16]}…",
            f"code: commit {provenance['commit']}; {provenance['devices']}, {provenance['machine']}; seeds {result['seeds']}",
        )
    )
    page.details(
        "Configuration and provenance in full", json.dumps({"config": config, "provenance": provenance}, indent=1)
    )
    return folder.write_text("report.html", page.render())
