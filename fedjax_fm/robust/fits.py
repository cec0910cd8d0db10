"""Which methods a robust rule can stand in, and why not in others."""

from fedjax_fm import checks
from fedjax_fm.algorithms.lora_rules.cohort import products_of_cohort
from fedjax_fm.algorithms.lora_rules.rule import sums_by_weight
from fedjax_fm.algorithms.reduce import weighted_mean
from fedjax_fm.robust.rule import Rule
from fedjax_fm.types import Algorithm, Exchange


def check_fits(
    algorithm: Algorithm, rule: Rule, most_weight: float | None, factors: bool
) -> None:
    """Refuses what `robust.robust` cannot do.

    Args:
      algorithm: a method.
      rule: in the place of its mean.
      most_weight: what a client counts at most.
      factors: whether both factors of pairs are taken as they are.

    Raises:
      TypeError, ValueError: says what does not fit, and why.
    """
    checks.instance("algorithm", algorithm, Algorithm, "such as ffm.fedavg(...)")
    checks.instance("rule", rule, Rule, "such as robust.coordinate_median()")
    checks.flag("factors", factors)
    if most_weight is not None:
        checks.real("most_weight", most_weight, above=0)
        if not rule.takes_weights:
            raise ValueError(
                "in this rule every client counts the same: expected most_weight=None, "
                f"got most_weight={most_weight}"
            )
    if algorithm.privacy is not None:
        raise ValueError(
            "the method adds noise that is made for a mean of clipped uploads: with a "
            "robust rule in its place its guarantee would not hold"
        )
    for exchange in algorithm.exchanges:
        _check_exchange(exchange, rule)


def is_of_products(exchange: Exchange) -> bool:
    """Whether the exchange's server takes sum_k shares_k B_k A_k of a cohort.

    Args:
      exchange: of a method.
    """
    reduce = getattr(exchange, "reduce", None)
    return reduce is not None and reduce.finish == products_of_cohort().finish


def _check_exchange(exchange: Exchange, rule: Rule) -> None:
    """Refuses an exchange whose server does not average, or not in a way for this rule."""
    if not isinstance(exchange, Exchange):
        raise ValueError(
            "a robust rule reduces the uploads of a round, but this method repeats its "
            "exchanges within one (`Repeat`), as in split learning"
        )
    if is_of_products(exchange):
        if rule.coefficients is None:
            raise ValueError(
                "this rule needs coordinates, and the method aggregates products B A, "
                "which are never formed: take a rule of distances (krum, multi_krum, "
                "geometric_median), or a method with a common factor such as ffa_lora"
            )
    elif not _is_mean(exchange):
        raise ValueError(
            "a robust rule replaces a weighted mean of uploads, and this method's "
            "server does something else with them (sums, masks, means over the whole "
            "population): there is no mean to replace"
        )
    if rule.root is not None and exchange.address is not None:
        raise ValueError(
            "the server trains on its root data as a client would, but this method "
            "sends every client its own part, and none is the server's"
        )


def _is_mean(exchange: Exchange) -> bool:
    """Whether the server takes the weighted mean of messages, or of factors."""
    is_mean = exchange.reduce == weighted_mean()
    return is_mean or exchange.reduce.finish == sums_by_weight().finish
