"""What does split pre-training lose against one model on all texts, and gain over none?

The eight roles of Shakespeare that speak most (Hamlet, Iago, Henry V, ...), a client each; a
fifth of each role's speeches is held out, other ones for every seed. A WordPiece vocabulary of
1000 from the roles that are no clients. BERT of 2 layers, d = 64, from random weights; rows of 32
tokens; Adam with warm-up and cosine decay. Every arm reads as many rows, 600 steps of 8 clients
with 4 rows each; FedBERT in turn reads them as 120 turns of 10 steps with 16 rows. Rates are
chosen on the eight roles that speak most after those.

Score: perplexity of masked tokens on held-out speeches of all roles; local models are judged on
their role's own, and beside it on those of all roles. Word frequencies of all training texts and
a local model with a quarter of the steps say whether models are undertrained or overfitted.

Controls: FedBERT on words that are shuffled inside each role, for which contexts say nothing; and
the random weights.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import WordPiece

import fedjax_fm as ffm
from fedjax_fm import study
from fedjax_fm.algorithms.fedbert import fedbert
from fedjax_fm.algorithms.local_only import local_only
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.models import BertConfig
from fedjax_fm.models.masked_lm import bert_split
from fedjax_fm.population import samplers
from fedjax_fm.split import Split, unsplit

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
Rows = dict[str, np.ndarray]  # {"input_ids", "attention_mask"}: i32[n, T]


@dataclass(frozen=True)
class Config:
    """Settings."""

    roles: int = 8  # clients
    length: int = 32
    vocabulary: int = 1000
    width: int = 64
    held_out: float = 0.2  # of a role's speeches
    draws: int = 3  # of what is masked in the test
    steps: int = 600  # of the body, where the roles are side by side
    tuning_steps: int = 300
    batch_size: int = 4  # rows of a client and step
    round_steps: int = 10  # of a round side by side, and of a turn
    turn_batch_size: int = 16
    grid: tuple[float, ...] = (1e-3, 2e-3, 4e-3)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works."""
        small = {"roles": 3, "length": 16, "width": 16, "draws": 1, "grid": (2e-3,)}
        short = {"steps": 12, "tuning_steps": 6, "round_steps": 1, "seeds": (0, 1)}
        return dataclasses.replace(self, **small, **short)


class Data(NamedTuple):
    """Training and held-out rows of every role, and the model before training."""

    train: list[Rows]
    test: list[Rows]
    split: Split
    task: ffm.Task  # of the model in one piece
    delta: Any


@functools.cache
def speeches(roles: int, vocabulary: int) -> tuple[list[list[str]], Tokenizer]:
    """The speeches of the roles that speak most, and a tokenizer from all other roles.

    Args:
      roles: of a split; twice as many are returned, the longest first.
      vocabulary: size of the tokenizer's.
    """
    table = ffm.datasets.load_shakespeare()
    found = collections.defaultdict(list)
    for client, speech in zip(table["client"], table["speech"], strict=True):
        found[client].append(str(speech))

    def n_words(speeches: list[str]) -> int:
        return sum(len(speech.split()) for speech in speeches)

    by_size = sorted(found.values(), key=n_words, reverse=True)
    others = [one for some in by_size[2 * roles :] for one in some]
    return by_size[: 2 * roles], word_pieces(others, vocabulary)


def word_pieces(texts: list[str], vocabulary: int) -> Tokenizer:
    """A WordPiece tokenizer of these texts, the same in every process.

    The trainer numbers the letters within words in the order of a hash map, which every
    process seeds anew, and breaks ties between merges by these numbers. As its first
    tokens they have numbers of their own.

    Args:
      texts: what it is trained on.
      vocabulary: its size.
    """
    letters = sorted({c for text in texts for c in text.lower() if c.isalnum()})
    within = [f"##{letter}" for letter in letters]
    how = {"vocab_size": vocabulary, "show_progress": False}
    trainer = trainers.WordPieceTrainer(special_tokens=[*SPECIAL, *within], **how)
    trained = _of_words({})
    trained.train_from_iterator(texts, trainer)
    return _of_words(trained.get_vocab())


def _of_words(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def rows(tokenizer: Tokenizer, texts: list[str], length: int) -> Rows:
    """Rows of [CLS] and at most length - 1 tokens, each of one speech.

    Args:
      tokenizer: from `speeches`.
      texts: speeches.
      length: of a row.
    """
    step, pieces = length - 1, []
    for encoded in tokenizer.encode_batch(texts):
        some = encoded.ids
        pieces += [some[i : i + step] for i in range(0, len(some), step)]
    ids = np.zeros((len(pieces), length), np.int32)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece) + 1] = [SPECIAL.index("[CLS]"), *piece]
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int32)}


def data(config: Config, seed: int, split: str) -> Data:
    """Holds out whole speeches; tuning has roles of its own."""
    texts, tokenizer = speeches(config.roles, config.vocabulary)
    mine = texts[config.roles :] if split == "tuning" else texts[: config.roles]
    train, test = [], []
    for number, some in enumerate(mine):
        random = np.random.default_rng([seed, number])
        order = random.permutation(len(some))
        n = round(config.held_out * len(order))
        for part, which in ((test, order[:n]), (train, order[n:])):
            part.append(rows(tokenizer, [some[i] for i in which], config.length))
    bert = BertConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * config.width,
        max_position_embeddings=config.length,
        hidden_act="gelu_new",
    )
    words = (len(SPECIAL), config.vocabulary)
    how = {"mask_id": SPECIAL.index("[MASK]"), "words": words, "seed": seed}
    cut, delta = bert_split(bert, config.length, **how)
    return Data(train=train, test=test, split=cut, task=unsplit(cut), delta=delta)


def together(parts: list[Rows]) -> Rows:
    """The rows of all parts."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def without_context(part: Rows, seed: int) -> Rows:
    """The same words, permuted over the places of all rows.

    Args:
      part: rows of a role.
      seed: of the permutation.
    """
    ids = part["input_ids"].copy()
    words = ids >= len(SPECIAL)
    ids[words] = np.random.default_rng(seed).permutation(ids[words])
    return {**part, "input_ids": ids}


def perplexity(run: study.Run, pairs: Iterable[tuple[Any, Rows]]) -> float:
    """Perplexity of masked tokens, each token counting once.

    Args:
      run: of the arm.
      pairs: a delta, and rows that it is judged on.
    """
    keys = [jax.random.key(draw) for draw in range(run.config.draws)]
    score = functools.partial(ffm.evaluate, run.data.task)
    found = [score(delta, (), part, key=key) for delta, part in pairs for key in keys]
    return math.exp(means(together(found))["loss"])


def of_server(run: study.Run, found: study.Simulated) -> dict[str, float]:
    """Perplexity of the server's model on the held-out speeches of all roles."""
    delta, _ = found.model()
    return {"perplexity": perplexity(run, [(delta, together(run.data.test))])}


def steps_of(run: study.Run) -> int:
    """Steps of the body where roles are side by side."""
    return run.config.tuning_steps if run.is_tuning else run.config.steps


def adam(run: study.Run, steps: int) -> optax.GradientTransformation:
    """A tenth of the steps of warm-up, then a cosine to zero."""
    rate, warm_up = run["learning_rate"], steps // 10
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm_up, steps)
    return optax.adam(schedule)


def simulate(
    run: study.Run, algorithm: ffm.Algorithm, train: list[Rows], rounds: int, **how: Any
) -> study.Simulated:
    """A run on one device: the clients' steps are too small for several."""
    population = ffm.Population.from_clients(train)
    how = {"cohort_size": len(train), "devices": 1, **how}
    return run.simulate(algorithm, population, run.data.delta, rounds, **how)


def centralised(run: study.Run) -> dict[str, float]:
    """One model on all texts, as many rows a step as the clients have together."""
    config, steps = run.config, steps_of(run)
    size = config.batch_size * config.roles
    algorithm = ffm.fedavg(
        run.data.task, adam(run, steps), local_steps=steps, batch_size=size
    )
    found = simulate(run, algorithm, [together(run.data.train)], 1)
    return of_server(run, found)


def local(share: float = 1.0) -> Callable:
    """An arm: a model of its own for each role, with a share of the steps."""

    def arm(run: study.Run) -> dict[str, float]:
        own, steps = run.data, round(share * steps_of(run))
        how = {"local_steps": steps, "batch_size": run.config.batch_size}
        algorithm = local_only(own.task, adam(run, steps), **how)
        found = simulate(run, algorithm, own.train, 1)
        models = [found.model(k)[0] for k in range(run.config.roles)]
        all_roles = together(own.test)
        return {
            "perplexity": perplexity(run, zip(models, own.test, strict=True)),
            "on_all_roles": perplexity(run, [(model, all_roles) for model in models]),
        }

    return arm


def parallel(shuffle: bool = False) -> Callable:
    """An arm: FedBERT, all roles side by side."""

    def arm(run: study.Run) -> dict[str, float]:
        config, steps, train = run.config, steps_of(run), run.data.train
        if shuffle:
            train = [without_context(part, run.seed) for part in train]
        how = {"local_steps": config.round_steps, "batch_size": config.batch_size}
        algorithm = fedbert(run.data.split, adam(run, steps), adam(run, steps), **how)
        found = simulate(run, algorithm, train, steps // config.round_steps)
        return of_server(run, found)

    return arm


def in_turn(run: study.Run) -> dict[str, float]:
    """FedBERT, one role after the other, over as many rows in all."""
    config, n, size = run.config, run.config.round_steps, run.config.turn_batch_size
    turns = steps_of(run) * config.batch_size * config.roles // (n * size)
    optimizers = adam(run, turns * n // config.roles), adam(run, turns * n)
    algorithm = fedbert(run.data.split, *optimizers, local_steps=n, batch_size=size)
    sampler = samplers.cyclic(config.roles, 1, shuffle=True)
    found = simulate(
        run, algorithm, run.data.train, turns, cohort_size=1, sampler=sampler
    )
    return of_server(run, found)


def untrained(run: study.Run) -> dict[str, float]:
    """The random weights."""
    return {"perplexity": perplexity(run, [(run.data.delta, together(run.data.test))])}


def frequencies(run: study.Run) -> dict[str, float]:
    """Word frequencies of all training texts, one added to each count."""
    first = len(SPECIAL)
    train = together(run.data.train)["input_ids"]
    test = together(run.data.test)["input_ids"]
    counts = np.bincount(train[train >= first], minlength=run.config.vocabulary) + 1.0
    nats = -np.log(counts / counts[first:].sum())
    return {"perplexity": math.exp(nats[test[test >= first]].mean())}


GRID = {"learning_rate": "grid"}
STUDY = study.Study(
    question="What does split pre-training lose against one model on all texts, and gain "
    "over none?",
    expected="centralised a little better than FedBERT, side by side and in turn; local far worse",
    config=Config,
    data=data,
    primary=study.PERPLEXITY,
    scores=(
        study.Score("on_all_roles", "on everybody's speeches", highest=False, digits=2),
    ),
    arms=(
        study.Arm("frequencies", frequencies, "word frequencies of all roles"),
        study.Arm("centralised", centralised, grid=GRID),
        study.Arm("parallel", parallel(), "FedBERT, side by side", GRID),
        study.Arm("in_turn", in_turn, "FedBERT, in turn", GRID),
        study.Arm("local", local(), "local only", GRID),
        study.Arm(
            "local_quarter",
            local(0.25),
            "local only, a quarter of the steps",
            like="local",
        ),
        study.Arm(
            "shuffled",
            parallel(shuffle=True),
            "side by side, words shuffled",
            like="parallel",
        ),
        study.Arm("untrained", untrained, "random weights"),
    ),
    comparisons=[
        *((name, "local") for name in ("parallel", "in_turn")),
        *((name, "centralised") for name in ("parallel", "in_turn")),
        *((name, "frequencies") for name in ("parallel", "in_turn")),
        ("in_turn", "parallel"),
    ],
    controls=(
        study.Control("shuffled", "parallel", "No word was learned in its context."),
        study.Control("untrained", "parallel"),
    ),
)
