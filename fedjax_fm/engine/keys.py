"""Every random number of a run is named by (seed, round, client id, purpose).

They never depend on a slot in a block: a client's randomness does not depend on block width, device
count or cohort order.
"""

from enum import IntEnum

import jax


class Purpose(IntEnum):
    """What a key is for; the numbers are part of a run's identity and must not change.

    The first two are derived from the run's key, as the rounds' keys are by their
    number: they lie where no round does, or a client's first state would be drawn with
    the key that draws some round's cohort.
    """

    INIT = 2**31
    CLIENT_INIT = 2**31 + 7
    COHORT = 1
    CLIENT = 2
    SHUFFLE = 3
    UPLINK = 4
    DOWNLINK = 5
    SERVER = 6
    BEHAVIOUR = 8
    REPEAT = 9
    SELECT = 10


def derive(key: jax.Array, purpose: Purpose, *names: jax.Array | int) -> jax.Array:
    """The key of `purpose` under `key`.

    Args:
      key: of the run, of a round or of a passage.
      purpose: what it is for.
      *names: what tells it apart further: a client id, an exchange, an epoch.
    """
    key = jax.random.fold_in(key, int(purpose))
    for name in names:
        key = jax.random.fold_in(key, name)
    return key
