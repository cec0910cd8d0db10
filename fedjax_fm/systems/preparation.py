"""What clients compute once beside their rounds: features of layers that stay frozen."""

from typing import Any, NamedTuple

from fedjax_fm import checks
from fedjax_fm.systems.operations import flop_of


class Preparation(NamedTuple):
    """Forward passes of all clients together that no round repeats.

    Attributes:
      flop: of products.
      passes: batches that went through the frozen layers, each of which reads all weights.
      model_bytes: of these weights.
    """

    flop: float = 0.0
    passes: float = 0.0
    model_bytes: int = 0

    def part(self, rows: int, of: int) -> "Preparation":
        """The share of some of the rows, where others judge or are nobody's.

        Args:
          rows: that clients train on.
          of: all rows that were passed through.
        """
        share = rows / of
        return self._replace(flop=share * self.flop, passes=share * self.passes)


def prepared(
    function: Any, *operands: Any, rows: int, batch_size: int, model_bytes: int
) -> Preparation:
    """Counts what passing rows through a frozen function takes; nothing is computed.

    A last batch that is not full counts by its rows.

    Args:
      function: of a batch, jitted or not.
      *operands: arrays of one batch, or their shapes.
      rows: of all clients together.
      batch_size: rows of the operands' batch.
      model_bytes: of the weights that the function reads.

    Returns:
      FLOP and passes of all rows.

    Raises:
      TypeError, ValueError: no numbers of rows.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jax.ShapeDtypeStruct((4, 3), jnp.float32)
      >>> frozen = jax.ShapeDtypeStruct((3, 5), jnp.float32)
      >>> prepared(jnp.dot, x, frozen, rows=10, batch_size=4, model_bytes=60)
      Preparation(flop=300.0, passes=2.5, model_bytes=60)
    """
    checks.whole("rows", rows, least=0)
    checks.whole("batch_size", batch_size, least=1)
    passes = rows / batch_size
    flop = passes * flop_of(function, *operands)
    return Preparation(flop=flop, passes=passes, model_bytes=model_bytes)
