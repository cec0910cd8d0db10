"""What training and sending take: operations, seconds, joules, tokens for a joule.

The model of very-edge fine-tuning:

    T_comp = FLOP / (peak MFU)        T_comm = bytes / bandwidth + latency
    G = T_comp / T_comm               eta_e = tokens a second / W = tokens / J

References:
  Woisetschläger, Isenko, Wang, Mayer and Jacobsen, Federated Fine-Tuning of LLMs on the
  Very Edge: The Good, the Bad, the Ugly, 2023, arXiv 2310.03150.
"""

import math
from typing import NamedTuple

from fedjax_fm import checks
from fedjax_fm.systems.hardware import Device, Link

FORWARD, BACKWARD, OF_WEIGHTS = 2, 2, 2  # FLOP a parameter and token
READS_A_STEP = 2  # of every weight, once forward and once backward
BYTES_OF_TRAINED = 16  # weight, gradient and two moments of Adam, in f32


def training_flop(frozen: float, trained: float, tokens: float) -> float:
    """FLOP of training on some tokens, by the usual rule.

        FLOP = (4 frozen + 6 trained) tokens

    A parameter takes 2 FLOP a token forward, 2 for the gradient of its input, and 2 for
    its own gradient, which frozen ones do not have. Attention's own products are not in
    it; `flop_of_client` counts what a client's program really does.

    Args:
      frozen: parameters without gradients.
      trained: parameters with gradients.
      tokens: that are trained on, all passes together.

    Returns:
      FLOP.

    Raises:
      ValueError: a negative number.

    Example:
      >>> training_flop(frozen=0, trained=1e9, tokens=10)
      60000000000.0
    """
    checks.real("frozen", frozen, least=0)
    checks.real("trained", trained, least=0)
    checks.real("tokens", tokens, least=0)
    both = FORWARD + BACKWARD
    return (both * frozen + (both + OF_WEIGHTS) * trained) * tokens


def compute_seconds(
    device: Device, flop: float, *, steps: float = 0.0, model_bytes: float = 0.0
) -> float:
    """Seconds of arithmetic, or of reading the weights where that takes longer.

        T = max(FLOP / (peak MFU), 2 steps model_bytes / memory_bandwidth)

    A step of few examples is bound by the memory, which has to bring all weights twice.

    Args:
      device: that computes.
      flop: of all steps.
      steps: how many there are; 0 leaves the memory out.
      model_bytes: of the weights, as they lie in memory.

    Returns:
      Seconds.

    Raises:
      ValueError: a negative number.

    Example:
      >>> from fedjax_fm import systems
      >>> card = systems.find("device", "a100-80gb")  # 312 TFLOP/s, of which 40 %
      >>> round(systems.compute_seconds(card, 124.8e12), 6)
      1.0
    """
    checks.real("flop", flop, least=0)
    checks.real("steps", steps, least=0)
    checks.real("model_bytes", model_bytes, least=0)
    arithmetic = flop / (device.peak * device.utilisation)
    reading = READS_A_STEP * steps * model_bytes / device.memory_bandwidth
    return max(arithmetic, reading)


def transfer_seconds(
    link: Link, bytes_down: float, bytes_up: float, *, messages: float = 1.0
) -> float:
    """Seconds of downloads and uploads, one after the other.

        T = bytes_down / down + bytes_up / up + 2 messages latency

    Args:
      link: of the client.
      bytes_down: towards it.
      bytes_up: from it.
      messages: ways down and up.

    Returns:
      Seconds.

    Raises:
      ValueError: a negative number.
    """
    checks.real("bytes_down", bytes_down, least=0)
    checks.real("bytes_up", bytes_up, least=0)
    checks.real("messages", messages, least=0)
    waits = 2 * messages * link.latency
    return bytes_down / link.down + bytes_up / link.up + waits


def granularity(compute: float, transfer: float) -> float:
    """G = T_comp / T_comm, seconds of computation for each of communication.

    Args:
      compute: seconds.
      transfer: seconds.

    Returns:
      G; infinity where nothing is sent.

    Raises:
      ValueError: a negative number, or both are 0.

    Example:
      >>> granularity(30.0, 10.0)
      3.0
    """
    checks.real("compute", compute, least=0)
    checks.real("transfer", transfer, least=0)
    if compute == transfer == 0:
        raise ValueError("expected compute > 0 or transfer > 0, got 0 of both")
    return math.inf if transfer == 0 else compute / transfer


def compute_share(g: float) -> float:
    """The share of a client's time in which it computes, G / (G + 1).

    Args:
      g: granularity.

    Returns:
      0 to 1.

    Raises:
      ValueError: a negative number.

    Example:
      >>> compute_share(3.0), compute_share(math.inf)
      (0.75, 1.0)
    """
    checks.real("g", g, least=0, infinite=True)
    return 1.0 if math.isinf(g) else g / (g + 1)


def tokens_per_joule(tokens: float, seconds: float, watts: float) -> float:
    """Energy efficiency eta_e, tokens a second for each watt: tokens for a joule.

    Args:
      tokens: that were trained on.
      seconds: that it took.
      watts: that the machine drew.

    Returns:
      Tokens a joule.

    Raises:
      ValueError: a negative number, no seconds or no watts.

    Example:
      >>> tokens_per_joule(tokens=1000, seconds=10, watts=50)
      2.0
    """
    checks.real("tokens", tokens, least=0)
    checks.real("seconds", seconds, above=0)
    checks.real("watts", watts, above=0)
    return tokens / (seconds * watts)


def memory_needed(model_bytes: float, trained: float) -> float:
    """Bytes that training needs besides activations.

        model_bytes + 16 trained

    for the weights as they lie in memory, and for each trained parameter its value, its
    gradient and Adam's two moments in f32.

    Args:
      model_bytes: of the frozen weights.
      trained: parameters with gradients.

    Returns:
      Bytes.

    Raises:
      ValueError: a negative number.

    Example:
      >>> memory_needed(0, trained=1e9)  # the whole model in f32
      16000000000.0
    """
    checks.real("model_bytes", model_bytes, least=0)
    checks.real("trained", trained, least=0)
    return model_bytes + BYTES_OF_TRAINED * trained


class Frequencies(NamedTuple):
    """A chip whose clock can be slowed down.

        t(phi) = t_compute / phi + t_memory,   P(phi) = P_static + P_dynamic phi^3

    Attributes:
      compute: seconds of arithmetic at full speed.
      memory: seconds of waiting for memory, at any speed.
      static: W at any speed.
      dynamic: W more at full speed.
      least: the smallest phi there is.
    """

    compute: float
    memory: float
    static: float
    dynamic: float
    least: float = 0.1

    def seconds(self, phi: float) -> float:
        """t(phi).

        Args:
          phi: share of the full frequency, least to 1.
        """
        self._check(phi)
        return self.compute / phi + self.memory

    def joules(self, phi: float) -> float:
        """E(phi) = P(phi) t(phi).

        Args:
          phi: share of the full frequency, least to 1.
        """
        seconds = self.seconds(phi)  # checks all numbers
        return (self.static + self.dynamic * phi**3) * seconds

    def _check(self, phi: float) -> None:
        for name in ("compute", "memory", "static", "dynamic"):
            checks.real(name, getattr(self, name), least=0)
        checks.real("least", self.least, above=0, most=1)
        checks.real("phi", phi, least=self.least, most=1)


def best_frequency(chip: Frequencies, deadline: float = math.inf) -> float:
    """The frequency of the least energy among those that meet a deadline.

    E is convex in phi. Without waiting for memory the least is at

        phi = (P_static / (2 P_dynamic))^(1/3)

    and in general where P_dynamic (2 t_compute phi^3 + 3 t_memory phi^4) = P_static
    t_compute, between `least` and 1. If that is too slow, the smallest phi that is not.

    Args:
      chip: its times and powers.
      deadline: seconds; infinity for none.

    Returns:
      phi.

    Raises:
      ValueError: the deadline is not met at full speed.

    Example:
      >>> chip = Frequencies(compute=1.0, memory=0.0, static=2.0, dynamic=8.0)
      >>> best_frequency(chip), best_frequency(chip, deadline=1.25)
      (0.5, 0.8)
    """
    checks.real("deadline", deadline, above=0, infinite=True)
    if chip.seconds(1.0) > deadline:
        raise ValueError(
            f"expected a deadline of at least {chip.seconds(1.0):g} s, what the chip "
            f"takes at full speed, got deadline={deadline}"
        )
    slowest = chip.least
    if not math.isinf(deadline) and deadline > chip.memory:
        slowest = max(chip.least, chip.compute / (deadline - chip.memory))
    return min(max(_stationary(chip), slowest), 1.0)


def _stationary(chip: Frequencies) -> float:
    """Where the slope of E vanishes, within `least` and 1; by halving."""

    def slope(phi: float) -> float:
        pull = 2 * chip.compute * phi**3 + 3 * chip.memory * phi**4
        return chip.dynamic * pull - chip.static * chip.compute

    low, high = chip.least, 1.0
    if slope(low) >= 0:
        return low
    if slope(high) <= 0:
        return high
    if chip.memory == 0:
        return (chip.static / (2 * chip.dynamic)) ** (1 / 3)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high
