"""What all samplers ask of their arguments."""

import numbers

# Positions are i32, and the sum of two of them must be one as well.
MOST_CLIENTS = 2**30


def check_integer(
    name: str, value: object, most: int, what: str, least: int = 1
) -> int:
    """`value` as an int, or ValueError; `what` says what the bound `most` is, or what to do."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or not least <= int(value) <= most
    ):
        raise ValueError(
            f"expected an integer {least} <= {name} <= {most}, {what}, got {name}={value!r}"
        )
    return int(value)


def check_n_clients(n_clients: object) -> int:
    """`n_clients` as an int, or ValueError."""
    return check_integer(
        "n_clients", n_clients, MOST_CLIENTS, "the most that ids of 32 bits allow"
    )


def check_cohort_size(cohort_size: object, n_clients: int) -> int:
    """`cohort_size` as an int, or ValueError."""
    return check_integer(
        "cohort_size", cohort_size, n_clients, "the number of clients in the population"
    )
