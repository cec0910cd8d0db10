"""Questions with several options, by likelihood and by what the model writes.

The two can differ by tens of points: a model that knows the answer may not write it in
the form that is read. So the share of answers that could not be read stands beside
every accuracy of written ones.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks
from fedjax_fm.evaluation.generation import cut, generate_until
from fedjax_fm.evaluation.language import loglikelihood
from fedjax_fm.models.tokens import backend, without_padding

LETTERS = string.ascii_uppercase
_DROPPED = str.maketrans("", "", string.punctuation)
Scores = dict[str, np.ndarray]


class Question(NamedTuple):
    """A question, its options, and which of them is right.

    Attributes:
      prompt: what the model reads before an option.
      options: at least two texts.
      answer: the number of the right option, from 0.
      category: a subject, over which means are taken besides.
    """

    prompt: str
    options: tuple[str, ...]
    answer: int
    category: str = ""


def lettered(question: Question) -> Question:
    """The question with its options written out, and their letters as options.

    It is the form of MMLU: the question, a line `A. …` for each option, and `Answer:`.
    With one letter an option, `acc` and `acc_norm` coincide.

    Args:
      question: with at most 26 options.

    Returns:
      The question whose options are "A", "B" and so on.

    Raises:
      ValueError: fewer than 2 options, more than 26, or an answer outside of them.

    References:
      Hendrycks et al., 2021, arXiv 2009.03300, and its evaluation code.

    Example:
      >>> sum_ = Question(prompt="2 + 2 =", options=("3", "4"), answer=1)
      >>> print(lettered(sum_).prompt)
      2 + 2 =
      A. 3
      B. 4
      Answer:
      >>> lettered(sum_).options
      ('A', 'B')
    """
    check_questions([question])
    letters = tuple(LETTERS[: len(question.options)])
    if len(letters) < len(question.options):
        raise ValueError(f"{len(question.options)} options, more than {len(LETTERS)}")
    lines = [f"{a}. {b}" for a, b in zip(letters, question.options, strict=True)]
    prompt = "\n".join([question.prompt.strip(), *lines, "Answer:"])
    return question._replace(prompt=prompt, options=letters)


def few_shot(
    question: Question, shots: Sequence[Question], delimiter: str = " "
) -> Question:
    r"""The question behind answered ones.

    Args:
      question: whose prompt is lengthened.
      shots: answered questions, in order; MMLU takes the first five of its split `dev`.
      delimiter: between a prompt and its answer.

    Returns:
      The question; answered ones end with an empty line each.

    Example:
      >>> one = Question(prompt="Sky:", options=("blue", "red"), answer=0)
      >>> few_shot(one._replace(prompt="Sea:"), [one]).prompt
      'Sky: blue\n\nSea:'
    """
    check_questions([question, *shots])
    answered = [f"{s.prompt}{delimiter}{s.options[s.answer]}\n\n" for s in shots]
    return question._replace(prompt="".join([*answered, question.prompt]))


def by_likelihood(
    model: Any,
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    delimiter: str = " ",
    batch_size: int = 16,
    max_length: int | None = None,
) -> Scores:
    """Whether the right option is the likeliest, by four measures.

    Args:
      model: a causal language model of `models`, such as `adapted.model(state.delta)`.
      questions: n questions.
      tokenizer: of the model, of `tokenizers` or a fast one of transformers.
      delimiter: between prompt and option; it belongs to the option's tokens.
      batch_size: options that are computed at once.
      max_length: tokens that the model reads at once; None: its whole context.

    Returns:
      As `score_options`.

    Raises:
      TypeError, ValueError: as `loglikelihood`; a question whose answer is none of its
        options.

    Example:
      >>> by_likelihood(model, questions, tokenizer)["acc"].mean()  # doctest: +SKIP
      0.27
    """
    check_questions(questions)
    requests = []
    with without_padding(backend(tokenizer)) as ready:

        def encode(text: str) -> list[int]:
            return ready.encode(text).ids

        for question in questions:
            for option in question.options:
                pair = encode_pair(encode, question.prompt, delimiter + option)
                requests.append(pair)
    how: Any = {"batch_size": batch_size, "max_length": max_length}
    found = loglikelihood(model, requests, **how)
    return score_options(found.sums, found.tokens, questions)


def encode_pair(
    encode: Callable[[str], Sequence[int]], context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """The token ids of a context and of its continuation, as lm-eval cuts them.

    Blanks at the context's end move to the continuation, because tokens begin with
    them. The whole is encoded, and what lies behind the context's own tokens is the
    continuation.

    Args:
      encode: text to ids.
      context: not empty.
      continuation: what is scored.

    Returns:
      (ids of the context, ids of the continuation).

    Raises:
      ValueError: the context is empty or blank.

    Example:
      >>> encode_pair(lambda text: [ord(letter) for letter in text], "a ", "b")
      ([97], [32, 98])
    """
    kept = context.rstrip()
    if not kept:
        raise ValueError(
            f"expected a context with text before {continuation!r:.40}, got {context!r}"
        )
    continuation = context[len(kept) :] + continuation
    whole, before = list(encode(kept + continuation)), list(encode(kept))
    return before, whole[len(before) :]


def score_options(
    sums: np.ndarray, tokens: np.ndarray, questions: Sequence[Question]
) -> Scores:
    """Whether the right option is the likeliest, of log-likelihoods.

    With s_j the sum of log p over option j, the choice is the first maximum of

        acc: s_j    acc_norm: s_j / characters    acc_bytes: s_j / UTF-8 bytes
        acc_tokens: s_j / tokens

    where characters and bytes are those of the option's text, without the delimiter, as
    in lm-eval (which has no `acc_tokens`).

    Args:
      sums: f64[options of all questions], in order, in nats.
      tokens: i64[options of all questions], tokens that were scored.
      questions: n questions.

    Returns:
      {"acc", "acc_norm", "acc_bytes", "acc_tokens"}: f64[n], each 0 or 1.

    Raises:
      ValueError: not one sum and one number of tokens an option.

    Example:
      >>> two = Question(prompt="Sky:", options=("blue", "of no colour"), answer=1)
      >>> found = score_options(np.array([-4.0, -6.0]), np.array([1, 3]), [two])
      >>> {name: values.tolist() for name, values in found.items()}
      {'acc': [0.0], 'acc_norm': [1.0], 'acc_bytes': [1.0], 'acc_tokens': [1.0]}
    """
    check_questions(questions)
    options = [option for question in questions for option in question.options]
    if not len(sums) == len(tokens) == len(options):
        raise ValueError(
            f"expected a sum and a number of tokens for each of {len(options)} options,"
            f" got {len(sums)} and {len(tokens)}"
        )
    lengths = {
        "acc": np.ones(len(options)),
        "acc_norm": np.array([len(option) for option in options]),
        "acc_bytes": np.array([len(option.encode()) for option in options]),
        "acc_tokens": np.asarray(tokens),
    }
    sizes = np.array([len(question.options) for question in questions], np.int64)
    places = np.cumsum(sizes)[:-1]
    found: Scores = {}
    for name, length in lengths.items():
        each = np.split(np.asarray(sums) / length, places)
        chosen = [int(np.argmax(values)) for values in each[: len(questions)]]
        found[name] = np.array(
            [float(c == q.answer) for c, q in zip(chosen, questions, strict=True)]
        )
    return found


def by_generation(
    model: Any,
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    until: str | Sequence[str] = "\n",
    max_gen_toks: int = 8,
    eos_token_id: int | Sequence[int] | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
) -> Scores:
    """Whether the model writes the right option.

    Args:
      model: a causal language model of `models`.
      questions: n questions, whose options are what is written: see `lettered`.
      tokenizer: of the model, of `tokenizers` or a fast one of transformers.
      until: stop strings.
      max_gen_toks: tokens of an answer, at most.
      eos_token_id: ends an answer.
      batch_size: questions that are computed at once.
      max_length: tokens of prompt and answer; None: the model's whole context.

    Returns:
      As `score_answers`.

    Raises:
      TypeError, ValueError: as `generate_until` and `score_answers`.

    Example:
      >>> found = by_generation(model, questions, tokenizer)  # doctest: +SKIP
      >>> found["generated"].mean(), found["parsable"].mean()  # doctest: +SKIP
      (0.21, 0.83)
    """
    check_questions(questions)
    with without_padding(backend(tokenizer)) as ready:
        prompts = [ready.encode(question.prompt).ids for question in questions]
    answers = generate_until(
        model,
        prompts,
        backend(tokenizer),
        until=until,
        max_gen_toks=max_gen_toks,
        eos_token_id=eos_token_id,
        batch_size=batch_size,
        max_length=max_length,
    )
    return score_answers(answers, questions)


def score_answers(answers: Sequence[str], questions: Sequence[Question]) -> Scores:
    """Whether written answers are the right option, and whether they can be read.

    Args:
      answers: n texts that were written.
      questions: n questions.

    Returns:
      {"generated": f64[n], 1 for the right option; "parsable": f64[n], 1 where the text
      is one of the options}. What cannot be read is wrong.

    Raises:
      ValueError: not one answer a question, or two options that read alike.

    Example:
      >>> two = Question(prompt="Sky:", options=("A", "B"), answer=0)
      >>> found = score_answers([" a.", "B", "It is A"], [two] * 3)
      >>> found["generated"].tolist(), found["parsable"].tolist()
      ([1.0, 0.0, 0.0], [1.0, 1.0, 0.0])
    """
    check_questions(questions)
    if len(answers) != len(questions):
        raise ValueError(f"{len(answers)} answers to {len(questions)} questions")
    pairs = list(zip(answers, questions, strict=True))
    read = [read_option(answer, question.options) for answer, question in pairs]
    right = [float(o == q.answer) for o, q in zip(read, questions, strict=True)]
    return {
        "generated": np.array(right),
        "parsable": np.array([float(option is not None) for option in read]),
    }


def read_option(text: str, options: Sequence[str]) -> int | None:
    r"""Which option a text is: equal to it but for case, punctuation and blanks.

    Args:
      text: that was written; what follows its first line does not count.
      options: of the question.

    Returns:
      The number of the option; None where it is none of them.

    Raises:
      ValueError: two options read alike.

    Example:
      >>> read_option(" (b).\nNext question", ["A", "B"])
      1
    """
    known = [_plain(option) for option in options]
    if len(set(known)) < len(known):
        raise ValueError(
            f"the options {list(options)} read alike without case and punctuation; "
            "give them letters with `lettered`"
        )
    written = _plain(cut(text.strip(), ["\n"]))
    return known.index(written) if written in known else None


def _plain(text: str) -> str:
    return text.translate(_DROPPED).strip().lower()


def choice_summary(
    scores: Mapping[str, np.ndarray], questions: Sequence[Question]
) -> dict[str, float]:
    """Means of scores of questions: over rows, over categories, and what was unreadable.

    Args:
      scores: {name: f64[n]} of `by_likelihood`, `by_generation`, or both merged.
      questions: n questions.

    Returns:
      For each score its mean over rows (`acc`, micro) and over the means of the
      categories (`acc_macro`, each category counts once). Of written answers also
      `unparsable`, the share that is no option, and `generated_of_parsable`, the
      accuracy among the others (NaN where there are none). Always
      `generated <= 1 - unparsable`.

    Raises:
      ValueError: not one score a question, or no questions.

    Example:
      >>> two = Question(prompt="Sky:", options=("A", "B"), answer=0)
      >>> three = [two._replace(category=name) for name in ("x", "x", "y")]
      >>> found = choice_summary({"acc": np.array([1.0, 1.0, 0.0])}, three)
      >>> {name: round(value, 3) for name, value in found.items()}
      {'acc': 0.667, 'acc_macro': 0.5}
    """
    if not questions:
        raise ValueError("nothing to average: there are no questions")
    names = np.array([question.category for question in questions])
    found: dict[str, float] = {}
    for name, values in scores.items():
        if len(values) != len(questions):
            raise ValueError(f"{name}: {len(values)} of {len(questions)} questions")
        if name == "parsable":
            continue
        each = [values[names == category].mean() for category in np.unique(names)]
        found[name] = float(values.mean())
        found[f"{name}_macro"] = float(np.mean(each))
    if "parsable" in scores:
        read = scores["parsable"]
        found["unparsable"] = float(1 - read.mean())
        right = float(scores["generated"] @ read)
        found["generated_of_parsable"] = (
            right / float(read.sum()) if read.any() else float("nan")
        )
    return found


def check_questions(questions: Sequence[Question]) -> None:
    """Raises unless every question has options, and an answer among them.

    Args:
      questions: to look at.

    Raises:
      TypeError: one is no `Question`.
      ValueError: names the question.
    """
    for number, question in enumerate(questions):
        where = f"question {number}"
        checks.instance(where, question, Question, "make one with Question(prompt=...)")
        options = question.options
        if isinstance(options, str) or len(options) < 2:
            raise ValueError(f"{where} needs at least two options, got {options!r:.60}")
        if empty := [i for i, option in enumerate(options) if not option]:
            raise ValueError(f"option {empty[0]} of {where} is empty")
        if not 0 <= question.answer < len(options):
            raise ValueError(
                f"{where} has answer={question.answer}; expected 0 to "
                f"{len(options) - 1}, the number of an option"
            )
