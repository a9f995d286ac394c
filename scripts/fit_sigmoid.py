"""Fit the sigmoid of `efficientnet_tf.fused`: `python scripts/fit_sigmoid.py`.

Lawson's algorithm: least squares again and again, each point's weight times its error the time before, until no point's
error stands out. The denominator of the time before makes a rational function's error linear.
"""

import numpy as np

LIMIT, NUMERATOR, DENOMINATOR = 16.0, 5, 4  # side of the interval, numbers of coefficients
ROUNDS = 400


def fit():
    """Return P and Q of 1/2 + z P(z^2) / Q(z^2), in ascending powers, Q[0] = 1; and the largest error."""
    z = LIMIT * np.cos(np.linspace(0, np.pi / 2, 4001)[:-1])
    wanted = np.tanh(z / 2) / 2
    # In Chebyshev polynomials, for powers of z^2 are all but parallel.
    basis = np.polynomial.chebyshev.chebvander(2 * (z / LIMIT) ** 2 - 1, NUMERATOR - 1)
    columns = np.concatenate([basis * z[:, None], -basis[:, 1:DENOMINATOR] * wanted[:, None]], axis=1)
    weights, below, best = np.ones_like(z), np.ones_like(z), (np.inf, None)
    for _ in range(ROUNDS):
        scale = np.sqrt(weights) / abs(below)
        found = np.linalg.lstsq(columns * scale[:, None], wanted * scale, rcond=None)[0]
        p, q = found[:NUMERATOR], np.append(1, found[NUMERATOR:])
        below = basis[:, :DENOMINATOR] @ q
        error = abs(z * (basis @ p) / below - wanted)
        best = min(best, (error.max(), (p, q)), key=lambda pair: pair[0])
        weights *= error / error.max() + 1e-3
        weights /= weights.max()
    p, q = (_in_powers(part) for part in best[1])
    return p / q[0], q / q[0], best[0]


def _in_powers(part):
    polynomial = np.polynomial.Chebyshev(part, [0, LIMIT**2]).convert(kind=np.polynomial.Polynomial)
    return polynomial.coef


if __name__ == "__main__":
    numerator, denominator, error = fit()
    print(f"P = {[float(f'{c:.9g}') for c in numerator]}\nQ = {[float(f'{c:.9g}') for c in denominator]}")
    print(f"largest error on [-{LIMIT:g}, {LIMIT:g}]: {error:.2g}")
