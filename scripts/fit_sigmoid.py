"""Fit the rational approximation of the sigmoid in `efficientnet_tf.ops.fused_cpu`: `python scripts/fit_sigmoid.py`.

Lawson's algorithm repeats a weighted least-squares fit. In every round the weight of a point is multiplied by its
error, until no error stands out. Multiplying by the denominator of the previous round makes the error of a rational
function linear in its coefficients.
"""

import numpy as np

LIMIT = 16.0  # the interval is [-LIMIT, LIMIT]
NUMERATOR, DENOMINATOR = 5, 4  # numbers of coefficients
ROUNDS = 400


def fit() -> tuple[np.ndarray, np.ndarray, float]:
    """Return the coefficients P and Q, and the largest error, of 1/2 + z * P(z^2) / Q(z^2).

    Returns:
        P and Q in ascending powers, with Q[0] = 1, and the largest absolute error on the interval.
    """
    z = LIMIT * np.cos(np.linspace(0, np.pi / 2, 4001)[:-1])
    target = np.tanh(z / 2) / 2
    # Chebyshev polynomials, because the powers of z^2 are nearly parallel.
    basis = np.polynomial.chebyshev.chebvander(2 * (z / LIMIT) ** 2 - 1, NUMERATOR - 1)
    columns = np.concatenate([basis * z[:, None], -basis[:, 1:DENOMINATOR] * target[:, None]], axis=1)
    weights, denominators = np.ones_like(z), np.ones_like(z)
    smallest_error, best = np.inf, (np.ones(NUMERATOR), np.ones(DENOMINATOR))
    for _ in range(ROUNDS):
        scale = np.sqrt(weights) / abs(denominators)
        solution = np.linalg.lstsq(columns * scale[:, None], target * scale, rcond=None)[0]
        p, q = solution[:NUMERATOR], np.append(1, solution[NUMERATOR:])
        denominators = basis[:, :DENOMINATOR] @ q
        error = abs(z * (basis @ p) / denominators - target)
        if error.max() < smallest_error:
            smallest_error, best = error.max(), (p, q)
        # The constant keeps every point in the fit.
        weights *= error / error.max() + 1e-3
        weights /= weights.max()
    p, q = (_to_powers(part) for part in best)
    return p / q[0], q / q[0], smallest_error


def _to_powers(coefficients: np.ndarray) -> np.ndarray:
    """Return the coefficients in powers of z^2, given those in Chebyshev polynomials."""
    polynomial = np.polynomial.Chebyshev(coefficients, [0, LIMIT**2]).convert(kind=np.polynomial.Polynomial)
    return polynomial.coef


if __name__ == "__main__":
    numerator, denominator, error = fit()
    print(f"P = {[float(f'{c:.9g}') for c in numerator]}\nQ = {[float(f'{c:.9g}') for c in denominator]}")
    print(f"largest error on [-{LIMIT:g}, {LIMIT:g}]: {error:.2g}")
