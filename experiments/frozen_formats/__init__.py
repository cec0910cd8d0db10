"""What does LoRA lose over a frozen model of bf16, int8 or NF4?

MiniLM (22.7 million weights), LoRA of rank 8 on query and value and a head. 64 clients, 16 of
each of four domains of rated sentences, 64 training sentences each; FedAvg, 5 clients a round, 4
Adam steps of 8 sentences, 10 rounds. All but the format of the frozen weights is the same by
seed: head, factors, cohorts, batches, rate. bf16 is weights and activations; the other formats
hold the layers' matrices, while embeddings, norms, biases and pooler are f32 (or bf16 where
said), and activations too.

Score: accuracy on 12 sentences of each client, of documents that no client trains on. Beside it:
test loss; how far the training loss of a round is from that over f32, as a share of it, at most,
in the mean and in the last round; bytes. SmolLM2-135M, whose weights come from a file of 4-bit
blocks, is read only: nats a token on speeches of Shakespeare and on rated sentences.

Controls: f32 on shuffled labels; and f32 with the values of every array in other places: if it is
not worse, the frozen weights do not matter, and nor does their format.
"""

import dataclasses
from dataclasses import dataclass

from fedjax_fm import study
from fedjax_fm.experiments.frozen_formats.training import F32, Data, Format, over
from fedjax_fm.experiments.shared.sentences import deal_split
from fedjax_fm.study import arm_of, percent
from fedjax_fm.study.judged import joined


@dataclass(frozen=True)
class Config:
    """Settings."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    decoder: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    decoder_rows: int = 16  # of each kind of text; 0 leaves the decoder out
    decoder_length: int = 64
    max_length: int = 40
    rank: int = 8
    per_domain: int = 16  # clients
    train: int = 64  # sentences of a client
    test: int = 12
    cohort: int = 5
    rounds: int = 10
    local_steps: int = 4
    batch_size: int = 8
    grid: tuple[float, ...] = (2.5e-3, 5e-3, 1e-2)  # Adam's learning rate
    seeds: tuple[int, ...] = (0, 1, 2)

    def smoke(self) -> "Config":
        """A small version, to see that it works; without the decoder."""
        sizes = {"max_length": 12, "per_domain": 2, "train": 16, "test": 8}
        few = {"decoder_rows": 0, "rounds": 2, "grid": (5e-3,), "seeds": (0, 1)}
        return dataclasses.replace(self, **sizes, **few)


def data(config: Config, seed: int, split: str) -> Data:
    """Deals the split's documents to clients."""
    clients = deal_split(config, seed, split)
    train = [client.train for client in clients]
    return Data(train, joined([client.test for client in clients]))


OTHERS = {
    "bf16": (Format("bfloat16"), ""),
    "int8": (Format(frozen="int8"), ""),
    "nf4": (Format(frozen="nf4"), "NF4"),
    "nf4_double": (Format("bfloat16", "nf4_double"), "NF4 double, rest bf16"),
}
FORMATS = (
    arm_of("f32", over, grid={"learning_rate": "grid"}, form=F32),
    *(
        arm_of(name, over, label, like="f32", form=form)
        for name, (form, label) in OTHERS.items()
    ),
)
CONTROLS = (
    study.shuffled(FORMATS[0]),
    arm_of(
        "permuted", over, "f32, weights permuted", like="f32", form=F32, permute=True
    ),
)
STUDY = study.Study(
    question="What does LoRA lose over a frozen model of bf16, int8 or NF4?",
    expected="nothing that is seen; NF4 furthest from f32 in its losses, then bf16, int8 nearest",
    config=Config,
    data=data,
    primary=study.ACCURACY,
    scores=(
        study.LOSS,
        percent("largest", "loss curve from f32: largest", highest=False),
        percent("mean", "mean", highest=False),
        percent("last", "last round", highest=False),
        study.Score("megabytes", "frozen weights", "MB", highest=False),
        study.Score("decoder_megabytes", "SmolLM2", "MB", highest=False),
        study.Score(
            "shakespeare", "SmolLM2 on Shakespeare", "nats", highest=False, digits=3
        ),
        study.Score("sentences", "on sentences", "nats", highest=False, digits=3),
    ),
    arms=(*FORMATS, *CONTROLS),
    comparisons=study.against("f32", FORMATS),
    controls=(
        study.Control("shuffled", "f32"),
        study.Control(
            "permuted",
            "f32",
            "The frozen weights do not matter, and nor does their format.",
        ),
    ),
)
