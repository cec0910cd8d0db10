"""Keys that two clients share, and streams of masks from them, by `cryptography`.

X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869), ChaCha20 (RFC 8439).
"""

from typing import Any, NamedTuple

import numpy as np

from fedjax_fm import checks

KEY = 32  # bytes of a public key, of a private one and of a seed
_CONTEXT = b"fedjax_fm pairwise mask"


class KeyPair(NamedTuple):
    """Keys of X25519.

    Attributes:
      private: 32 bytes.
      public: 32 bytes.
    """

    private: bytes
    public: bytes


def key_pair(private: bytes) -> KeyPair:
    """The pair of a private key.

    Args:
      private: 32 random bytes. A simulation draws them from its seed, so that a run can
        be repeated; people's own machines would ask their system.

    Raises:
      ImportError: `cryptography` is not installed.

    Example:
      >>> len(key_pair(bytes(32)).public)
      32
    """
    raw, x25519 = _primitives("serialization"), _x25519()
    public = x25519.X25519PrivateKey.from_private_bytes(private).public_key()
    as_bytes = public.public_bytes(raw.Encoding.Raw, raw.PublicFormat.Raw)
    return KeyPair(private, as_bytes)


def agreed_seed(private: bytes, public: bytes) -> bytes:
    """The seed that two clients share, from one's private and the other's public key.

    Args:
      private: of one side.
      public: of the other.

    Returns:
      32 bytes, the same on both sides.

    Raises:
      ImportError: `cryptography` is not installed.

    Example:
      >>> one, other = key_pair(bytes(32)), key_pair(bytes(range(32)))
      >>> seed = agreed_seed(one.private, other.public)
      >>> seed == agreed_seed(other.private, one.public)
      True
    """
    x25519, hashes = _x25519(), _primitives("hashes")
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    mine = x25519.X25519PrivateKey.from_private_bytes(private)
    theirs = x25519.X25519PublicKey.from_public_bytes(public)
    derive = HKDF(algorithm=hashes.SHA256(), length=KEY, salt=None, info=_CONTEXT)
    return derive.derive(mine.exchange(theirs))


def mask(seed: bytes, n_words: int) -> np.ndarray:
    """The stream of a seed, as whole numbers below 2^32.

    Args:
      seed: 32 bytes, used once.
      n_words: how many.

    Returns:
      u32[n_words].

    Raises:
      ImportError: `cryptography` is not installed.

    Example:
      >>> mask(bytes(32), 1).tolist()  # RFC 8439, appendix A.1, first vector
      [2917185654]
    """
    checks.whole("n_words", n_words, least=0)
    _primitives("hashes")
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(4 * n_words)), "<u4").astype(np.uint32)


def _primitives(name: str) -> Any:
    """A module of `cryptography`, or an error that says how to install it."""
    import importlib

    try:
        return importlib.import_module(f"cryptography.hazmat.primitives.{name}")
    except ImportError as error:
        raise ImportError(
            "masks of secure aggregation need cryptography: pip install "
            "'fedjax_fm[secure]'"
        ) from error


def _x25519() -> Any:
    return _primitives("asymmetric.x25519")
