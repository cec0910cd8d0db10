"""What does federated LoRA bring on speaking roles that no client has?

SmolLM2-135M-Instruct on Shakespeare: a speaking role is a client, as in the FedAvg
paper, its group is the play. The end of the speech before is the prompt, the speech is
the answer and alone has a loss, in the model's own chat template; texts are packed into
rows. Six plays are held out whole; nine more, the same for all seeds, serve only to
choose learning rates. The model has probably seen Shakespeare: read differences, not
absolute values.

Score: perplexity on roles of the held-out plays, all tokens alike; of roles that train,
their last speeches. A rise on modern editorials, which no client has, is forgetting.
Where clients are alone, each unseen role is judged by one client's model.

Controls: the base model, and federated training on each other's answer tokens.
"""

from fedjax_fm import datasets
from fedjax_fm.experiments.shared import language
from fedjax_fm.experiments.shared.conversations import Conversation, Source
from fedjax_fm.experiments.shared.language import Config

CUE_WORDS = (24, 12, 6, 0)  # how much of the end of the previous speech is shown


def speeches(config: Config) -> Source:
    """Speeches as conversations.

    The system says who speaks, the user gives the end of the speech before (of another
    role in the same play), the assistant answers with the speech.

    Args:
      config: of the study.
    """
    table = datasets.load_shakespeare()

    def say(row: int, shorter: int) -> Conversation:
        play, role, words = table["play"][row], table["role"][row], CUE_WORDS[shorter]
        before = row - 1
        same_scene = (
            row > 0 and table["play"][before] == play and table["role"][before] != role
        )
        cue = "(enters)"
        if same_scene and words:
            spoken = str(table["speech"][before]).split()
            cue = " ".join(spoken[-words:])
        title = str(play).replace("_", " ").title()
        return [
            {"role": "system", "content": f"You are {role} in {title}."},
            {"role": "user", "content": cue},
            {"role": "assistant", "content": str(table["speech"][row])},
        ]

    return Source(
        clients=table["client"],
        groups=table["play"],
        say=say,
        shortenings=len(CUE_WORDS),
    )


STUDY = language.make(
    speeches,
    question="What does federated LoRA of a small decoder bring on speaking roles that no "
    "client has?",
    expected="centralised and federated level, clients alone above them, the base model far above",
    config=Config,
)
