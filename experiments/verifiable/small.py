"""A small decoder that knows the questions' words and nothing else."""

from collections.abc import Iterable

from flax import nnx
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as of_tokens

from fedjax_fm import models
from fedjax_fm.models.chat import Chat

NAME = "small"  # in the place of a pretrained model's
SPECIAL = ("<pad>", "<user>", "<assistant>", "</s>")
# What the user says, then what the assistant says and the end of its turn.
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}<user> {{ m.content }} "
    "{% if not loop.last or add_generation_prompt %}<assistant> {% endif %}"
    "{% else %}{{ m.content }} </s>{% endif %}"
    "{% endfor %}"
)


def chat_of(texts: Iterable[str]) -> Chat:
    """A tokenizer that has each word, number and sign of some texts as a token.

    Args:
      texts: all that is ever read or written.
    """
    splits = pre_tokenizers.Whitespace()
    found = {word for text in texts for word, _ in splits.pre_tokenize_str(text)}
    words = [*SPECIAL, *sorted(found)]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(of_tokens.WordLevel(numbers, SPECIAL[0]))
    tokenizer.pre_tokenizer = splits
    tokenizer.add_special_tokens(list(SPECIAL))
    return Chat(
        tokenizer=tokenizer,
        template=TEMPLATE,
        variables={"eos_token": SPECIAL[-1]},
        eos_token_id=SPECIAL.index("</s>"),
        pad_token_id=SPECIAL.index("<pad>"),
    )


def decoder(chat: Chat, width: int, layers: int, room: int, seed: int) -> nnx.Module:
    """A Llama with random weights.

    Args:
      chat: whose tokens it reads.
      width: of its hidden states.
      layers: of them.
      room: the longest text in tokens.
      seed: of the weights.
    """
    config = models.LlamaConfig(
        vocab_size=chat.tokenizer.get_vocab_size(),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=room,
        tie_word_embeddings=True,
    )
    return models.LlamaForCausalLM(config, rngs=nnx.Rngs(seed))
