"""Checks of the arguments that samplers share."""

import numbers

# Positions are i32, and the sum of two of them must be one as well.
MOST_CLIENTS = 2**30


def check_integer(
    name: str, value: object, most: int, what: str, least: int = 1
) -> int:
    """`value` as an int, if it is one between the bounds.

    Args:
      name: of the parameter, for the message.
      value: what should be a whole number.
      most: the largest that is allowed.
      what: what that bound is, or what to do, for the message.
      least: the least that is allowed.

    Raises:
      ValueError: no whole number, or out of the bounds.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if least <= number <= most:
            return number
    raise ValueError(
        f"expected an integer {least} <= {name} <= {most}, {what}, got {name}={value!r}"
    )


def check_n_clients(n_clients: object) -> int:
    """`n_clients` as an int, or ValueError.

    Args:
      n_clients: clients in the population.
    """
    return check_integer(
        "n_clients", n_clients, MOST_CLIENTS, "the most that ids of 32 bits allow"
    )


def check_cohort_size(cohort_size: object, n_clients: int) -> int:
    """`cohort_size` as an int, or ValueError.

    Args:
      cohort_size: clients in a cohort.
      n_clients: clients in the population.
    """
    return check_integer(
        "cohort_size", cohort_size, n_clients, "the number of clients in the population"
    )
