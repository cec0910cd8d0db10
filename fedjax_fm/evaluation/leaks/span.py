"""Inputs of a linear layer, by the span of its kernel's gradient.

    dW = sum_t x_t d_t^T:  every column of dW is a sum of the inputs x_t,

of LoRA's W + s A B, dA = s sum_t x_t (B d_t)^T likewise, once B has moved; at B = 0 it
is zero. While a batch has no more tokens than dW has independent columns, every input
lies in their span, and nothing else of a vocabulary does.

Petrov et al. 2024, "DAGER: Exact Gradient Inversion for Large Language Models", arXiv
2405.15586.
"""

from typing import Any

import numpy as np

from fedjax_fm import checks


def span_residuals(gradient: Any, candidates: Any, *, tolerance: float = 1e-5) -> Any:
    """How far each candidate lies from the span of a kernel's gradient.

        residual = |x - Q Q^T x| / |x|,   Q an orthonormal basis of the columns

    Args:
      gradient: f32[in, out], of a kernel, or of LoRA's A [in, r].
      candidates: f32[n, in], inputs that may have occurred.
      tolerance: singular values below this share of the largest count as zero.

    Returns:
      f64[n], from 0, in the span, to 1, orthogonal to it. All are 0 where the span is
      everything, which says nothing, and 1 where the gradient is zero.

    Raises:
      TypeError, ValueError: shapes that do not fit.

    References:
      Petrov et al. 2024, arXiv 2405.15586, section 3.1.

    Example:
      >>> x = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
      >>> d = np.array([[1.0, 0.5], [0.0, 1.0]])
      >>> gradient = x[:2].T @ d  # of the first two
      >>> span_residuals(gradient, x).round(2).tolist()
      [0.0, 0.0, 0.82]
    """
    checks.real("tolerance", tolerance, least=0, below=1)
    found, inputs = (np.asarray(x, np.float64) for x in (gradient, candidates))
    if found.ndim != 2 or inputs.ndim != 2 or inputs.shape[1] != found.shape[0]:
        raise ValueError(
            "expected a gradient [in, out] and candidates [n, in], got shapes "
            f"{list(found.shape)} and {list(inputs.shape)}"
        )
    basis, values, _ = np.linalg.svd(found, full_matrices=False)
    kept = basis[:, values > tolerance * values.max(initial=0.0)]
    outside = inputs - (inputs @ kept) @ kept.T
    sizes = np.linalg.norm(inputs, axis=1)
    return np.linalg.norm(outside, axis=1) / np.where(sizes > 0, sizes, 1.0)


def label_of_gradient(of_bias: Any) -> int:
    """The class of a single example, from the gradient of a classifier's last bias.

        d loss / d bias = softmax(logits) - onehot(label),

    so that the label's entry alone is negative.

    Args:
      of_bias: f32[classes].

    Returns:
      The class.

    Raises:
      ValueError: no row of numbers, or more than one negative entry: several examples.

    References:
      Zhao, Mopuri, Bilen 2020, "iDLG", arXiv 2001.02610, section 3.

    Example:
      >>> label_of_gradient([0.2, -0.7, 0.5])
      1
    """
    found = np.asarray(of_bias, np.float64)
    if found.ndim != 1 or (found < 0).sum() != 1:
        raise ValueError(
            "expected the gradient of one example's bias, one of whose entries is "
            f"negative, got {found.round(4).tolist()}"
        )
    return int(found.argmin())
