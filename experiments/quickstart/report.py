"""The quickstart's report, made from the run folder alone."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm.evaluation import Comparison, holm, paired_examples, paired_seeds, plus_minus
from fedjax_fm.runs import RunFolder, RunFolderError, figures
from fedjax_fm.runs.html import Page
from fedjax_fm.runs.seeds import seed_folders

LABELS = {
    "federated": "Federated LoRA, compressed",
    "uncompressed": "Federated LoRA, uncompressed",
    "head_only": "Trained head, frozen backbone",
    "local_only": "Local only (each client alone)",
    "centralised": "Centralised LoRA, equal samples",
}


class Seed(NamedTuple):
    """One seed's results as they lie in its folder."""

    config: dict[str, Any]
    provenance: dict[str, Any]
    rows: dict[str, list[dict]]  # arm: rows of metrics.jsonl
    numbers: dict[str, dict]  # arm: numbers
    outcomes: dict[str, dict[str, np.ndarray]]  # arm: per-example correctness

    def accuracy(self, arm: str, part: str = "test") -> float:
        """Mean over the examples of `part`."""
        return float(self.outcomes[arm][part].mean())


def read_seed(folder: RunFolder) -> Seed:
    """Whatever arms are done."""
    place = RunFolder(folder.path / "arms")
    done = [arm for arm in LABELS if place.has(f"{arm}.json")]
    if "federated" not in done:
        raise RunFolderError(f"{folder.path}: the federated arm is not finished, there is nothing to report yet")
    rows = {arm: (folder if arm == "federated" else RunFolder(place.path / arm)).metrics() for arm in done}
    return Seed(
        folder.config,
        folder.read_json("provenance.json"),
        rows,
        {arm: place.read_json(f"{arm}.json") for arm in done},
        {arm: place.read_arrays(f"{arm}.npz") for arm in done},
    )


def per_client(seed: Seed, arm: str, part: str = "local") -> np.ndarray:
    """Accuracy of every client on its own sentences."""
    sizes = seed.provenance["client_sizes" if part == "local" else "held_out_sizes"]
    return np.array([p.mean() for p in np.split(seed.outcomes[arm][part], np.cumsum(sizes)[:-1])])


def comparisons(seeds: list[Seed]) -> list[tuple[str, Comparison]]:
    """Federated LoRA against every other arm: over seeds if there are several, else over test sentences."""
    found = []
    for arm in LABELS:
        if arm == "federated" or not all(arm in seed.outcomes for seed in seeds):
            continue
        parts = ["test"] + (["local"] if arm == "local_only" else [])
        for part in parts:
            where = "central test" if part == "test" else "clients' own test"
            if len(seeds) > 1:
                pairs = [[seed.accuracy(name, part) for seed in seeds] for name in ("federated", arm)]
                found.append((f"against {LABELS[arm]}, {where}", paired_seeds(*map(np.array, pairs))))
                if arm == "uncompressed":
                    sides = (np.concatenate([s.outcomes[name][part] for s in seeds]) for name in ("federated", arm))
                    found.append((f"against {LABELS[arm]}, sentence by sentence, all seeds", paired_examples(*sides)))
            else:
                mine, other = (seeds[0].outcomes[name][part] for name in ("federated", arm))
                found.append((f"against {LABELS[arm]}, {where}", paired_examples(mine, other)))
    return list(holm(dict(found)).items())


def summary(seeds: list[Seed]) -> dict[str, Any]:
    """results.json: numbers by arm (means over seeds) and the comparisons in words."""
    arms = [arm for arm in LABELS if all(arm in seed.outcomes for seed in seeds)]
    result: dict[str, Any] = {"seeds": [seed.config["seed"] for seed in seeds], "arms": {}, "comparisons": {}}
    for arm in arms:
        entry: dict[str, Any] = {"test_accuracy": [seed.accuracy(arm) for seed in seeds]}
        for part in ("local", "held_out", "shuffled_labels"):
            if part in seeds[0].outcomes[arm]:
                entry[f"{part}_accuracy"] = [seed.accuracy(arm, part) for seed in seeds]
        for name in ("uplink_bytes", "downlink_bytes", "seconds", "samples", "examples", "frozen_identical"):
            if name in seeds[0].numbers[arm]:
                entry[name] = [seed.numbers[arm][name] for seed in seeds]
        result["arms"][arm] = entry
    result["comparisons"] = {name: str(comparison) for name, comparison in comparisons(seeds)}
    return result


def _percent(values: list[float] | np.ndarray) -> str:
    return f"{plus_minus(values, scale=100)} %"


def _megabytes(numbers: list[int]) -> str:
    return f"{np.mean(numbers) / 1e6:.2f}"


def _table(page: Page, seeds: list[Seed], result: dict[str, Any]) -> None:
    rows = []
    for arm, entry in result["arms"].items():
        clients = [per_client(seed, arm) for seed in seeds] if "local" in seeds[0].outcomes[arm] else None
        worst = [float(np.quantile(c, 0.1)) for c in clients] if clients else None
        up, down = entry.get("uplink_bytes"), entry.get("downlink_bytes")
        rows.append(
            (
                LABELS[arm],
                _percent(entry["test_accuracy"]),
                _percent([c.mean() for c in clients]) if clients else "",
                _percent(worst) if worst else "",
                _percent(entry["held_out_accuracy"]) if "held_out_accuracy" in entry else "",
                *((_megabytes(up), _megabytes(down), _megabytes([a + b for a, b in zip(up, down, strict=True)]))
                  if up else ("", "", "")),
                f"{np.mean(entry['seconds']):.0f} s",
            )
        )  # fmt: skip
    majority = np.mean([seed.provenance["majority_class_accuracy"] for seed in seeds])
    rows.append(("Always the more frequent class", f"{100 * majority:.1f} %", *[""] * 7))
    if "head_only" in result["arms"]:
        control = result["arms"]["head_only"]["shuffled_labels_accuracy"]
        rows.append(("Control: trained head, shuffled labels", _percent(control), *[""] * 7))
    page.table(
        (
            "",
            "central test",
            "clients' own test",
            "worst tenth",
            "held-out clients",
            "MB up",
            "MB down",
            "MB both",
            "time",
        ),
        rows,
        main=0,
    )


def _curves(page: Page, seed: Seed, result: dict[str, Any]) -> None:
    by_round, by_megabyte = {}, {}
    for arm in ("federated", "uncompressed"):
        points = [row for row in seed.rows.get(arm, []) if "eval_accuracy" in row]
        if points:
            accuracy = [row["eval_accuracy"] for row in points]
            by_round[LABELS[arm]] = ([row["round"] for row in points], accuracy)
            traffic = [(row["uplink_bytes_total"] + row["downlink_bytes_total"]) / 1e6 for row in points]
            by_megabyte[LABELS[arm]] = (traffic, accuracy)
            upload = [row["uplink_bytes_total"] / 1e6 for row in points]
            by_megabyte[f"{LABELS[arm]}, uplink only"] = (upload, accuracy)
    panels = [("rounds", False, by_round), ("megabytes sent, all clients (log)", True, by_megabyte)]
    levels = {}
    if "centralised" in seed.rows:
        levels[LABELS["centralised"]] = seed.rows["centralised"][-1]["eval_accuracy"]
    page.figure(
        figures.curves(panels, levels, "accuracy"),
        f"Accuracy on a fixed subset of {seed.config['eval_subset']} validation sentences during the run, seed "
        f"{seed.config['seed']}; megabytes are those of all clients together, 1 MB = 10^6 bytes.",
    )


def _domains(page: Page, seeds: list[Seed], result: dict[str, Any]) -> None:
    names = sorted(set(seeds[0].provenance["test_domains"]))
    series = {}
    for arm in result["arms"]:
        per_seed = []
        for seed in seeds:
            domains = np.array(seed.provenance["test_domains"])
            per_seed.append([seed.outcomes[arm]["test"][domains == name].mean() for name in names])
        series[LABELS[arm]] = np.mean(per_seed, axis=0)
    counts = [int((np.array(seeds[0].provenance["test_domains"]) == name).sum()) for name in names]
    labels = [f"{name} ({n})" for name, n in zip(names, counts, strict=True)]
    page.figure(figures.bars(labels, series, "accuracy"), "Central test by domain (number of sentences, first seed).")


def _clients(page: Page, seed: Seed) -> None:
    series = {"Federated LoRA, clients that trained": per_client(seed, "federated")}
    if "local_only" in seed.outcomes:
        series["Local only, the same clients"] = per_client(seed, "local_only")
    series["Federated LoRA, held-out clients"] = per_client(seed, "federated", "held_out")
    page.figure(
        figures.sorted_clients(series, "accuracy"),
        f"Each client on its own held-out sentences, seed {seed.config['seed']}; in brackets the number of clients.",
    )


def _bytes(page: Page, seeds: list[Seed], result: dict[str, Any]) -> None:
    page.heading("What travelled")
    first = seeds[0]
    numbers = first.numbers["federated"]
    page.text(
        f"A client sends {numbers['bytes_per_client_up']:,} bytes and receives {numbers['bytes_per_client_down']:,} bytes a "
        f"round: the lengths of the packed buffers (positions, {first.config['bits']}-bit codes, bucket scales; downwards the "
        "f32 parameters). The frozen backbone, sent once when a client is set up, is not in these numbers: "
        f"{4 * first.provenance['frozen_parameters'] / 1e6:.1f} MB a client."
    )
    if "uncompressed" in result["arms"]:
        mine, other = (result["arms"][arm] for arm in ("federated", "uncompressed"))
        up, down = (np.mean(other[k]) / np.mean(mine[k]) for k in ("uplink_bytes", "downlink_bytes"))
        both = np.mean(np.add(other["uplink_bytes"], other["downlink_bytes"])) / np.mean(
            np.add(mine["uplink_bytes"], mine["downlink_bytes"])
        )
        page.text(
            f"Against the uncompressed run: {up:.1f} times fewer bytes up, {down:.1f} times down, {both:.2f} times both "
            "ways together. The downlink is not compressed here, so it dominates."
        )


def write_report(folder: RunFolder) -> Path:
    """results.json and report.html; returns the page's path."""
    seeds = [read_seed(below) for below in seed_folders(folder)]
    result = summary(seeds)
    folder.write_json("results.json", result)
    first, numbers = seeds[0], result["arms"]["federated"]
    config, provenance = first.config, first.provenance
    page = Page(
        "Federated LoRA on four domains of sentiment",
        f"{config['clients']} clients, {config['cohort']} a round, {config['rounds']} rounds: "
        f"{_percent(numbers['test_accuracy'])} on the central test with {_megabytes(numbers['uplink_bytes'])} MB up and "
        f"{_megabytes(numbers['downlink_bytes'])} MB down. Seeds: {', '.join(str(s) for s in result['seeds'])}.",
    )
    _curves(page, first, result)
    page.heading("Arms")
    _table(page, seeds, result)
    many = len(seeds) > 1
    page.text(
        ("Means over seeds and halves of their 95 % intervals (Student's t). " if many else "One seed. ")
        + "Clients' own test: mean over clients of the accuracy on their own held-out sentences. The local-only central "
        "score is that of a randomly drawn client's model. Learning rates were chosen on validation clients, from one "
        "grid for all arms.",
        note=True,
    )
    page.heading("Federated LoRA, compressed, against the rest")
    page.points(f"{name}: {text}" for name, text in result["comparisons"].items())
    page.text(
        "Intervals over seeds: data split, initial values and cohorts change together."
        if many
        else "Intervals over test sentences say what other sentences would change, not what other seeds would; for those "
        "run `fedjax-fm run quickstart --full`.",
        note=True,
    )
    page.heading("By domain and by client")
    _domains(page, seeds, result)
    _clients(page, first)
    _bytes(page, seeds, result)
    page.heading("Where this comes from")
    weights, data = provenance["weights"], provenance["data"]
    page.points(
        (
            f"Weights: {weights['name']}, a small pretrained model ({weights['source']}), SHA-256 {weights['sha256'][:16]}…; "
            f"{provenance['frozen_parameters']:,} frozen and {provenance['trainable_parameters']:,} trained parameters",
            "Frozen parameters bit-identical after the run: " + ", ".join(str(x) for x in numbers["frozen_identical"]),
            f"Data: {data['name']} ({data['kind']}), SHA-256 {data['sha256'][:16]}…; {data['citation']}",
            "Splits: " + ", ".join(f"{count:,} {name}" for name, count in provenance["splits"].items()),
            f"Code: commit {provenance['commit']}; {provenance['devices']}, {provenance['machine']}; {provenance['started']}",
        )
    )
    page.details("Configuration and provenance in full", json.dumps({"config": config, "provenance": {
        k: v for k, v in provenance.items() if k not in ("test_domains", "client_domains", "client_sizes", "held_out_sizes")
    }}, indent=1))  # fmt: skip
    return folder.write_text("report.html", page.render())
