"""Which network fits a budget: the paper's equation 2, solved along the compound direction."""

import bisect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.scaling.complexity import count_cost, list_layers
from efficientnet_tf.scaling.compound import PAPER, implied_phi, multiply
from efficientnet_tf.scaling.memory import training_memory

NEAR = 0.3  # how far, in phi, a neighbour's depth, width and resolution may each be from the compound direction
LEAST_RESOLUTION = 32
MOST_PHI = 20.0
MEASURED_NEIGHBOURS = 5


@dataclass(frozen=True)
class Limit:
    """The most that a network may cost in one respect."""

    name: str
    most: float
    cost: Callable  # from a schema.ModelSpec to a number that grows with the network
    unit: str

    def share(self, spec):
        """Return the share of the limit that a schema.ModelSpec uses."""
        return self.cost(spec) / self.most


def counted_limits(macs=None, params=None, memory=None, batch=32, precision="float32"):
    """Return the limits that are given, as a list of Limit.

    Args:
        macs: float, multiply-adds of an image.
        params: float, trainable parameters.
        memory: float, bytes of a training step with RMSProp and a moving average.
        batch: int >= 1, images a step; for the memory.
        precision: str, "float32" or "mixed_bfloat16"; for the memory.
    """

    def bytes_of(spec):
        return training_memory(list_layers(spec), batch, precision).total

    limits = [
        Limit("macs", macs, _macs, "multiply-adds"),
        Limit("params", params, lambda spec: count_cost(spec)["total"].trainable_params, "parameters"),
        Limit("memory", memory, bytes_of, "bytes"),
    ]
    return [limit for limit in limits if limit.most is not None]


@dataclass(frozen=True)
class Fit:
    """A network that fits: its spec, the phi of the compound direction it lies near, and the shares of each limit."""

    spec: object
    phi: float
    used: dict

    @property
    def binding(self):
        """Name of the limit that keeps the network from being larger."""
        return max(self.used, key=self.used.get)


def scale_spec(baseline, depth_phi, width_phi, resolution_phi, coefficients=PAPER):
    """Scale a baseline, each dimension by a phi of its own; numbers are rounded as a variant's YAML has them.

    Args:
        baseline: schema.ModelSpec.
        depth_phi: float, exponent of alpha.
        width_phi: float, exponent of beta.
        resolution_phi: float, exponent of gamma.
        coefficients: scaling.Coefficients.

    Returns:
        schema.ModelSpec. Dropout grows by .05 for each unit of the mean phi, to at most .5, as it does, in steps, from
        B0 to B7.
    """
    phi = (depth_phi + width_phi + resolution_phi) / 3
    alpha, beta, gamma = coefficients.alpha, coefficients.beta, coefficients.gamma
    spec = multiply(baseline, alpha**depth_phi, beta**width_phi, gamma**resolution_phi)
    dropout = min(max(baseline.dropout + 0.05 * phi, baseline.dropout / 2), 0.5)
    return spec.model_copy(update={"dropout": round(dropout, 2)})


def fit_budget(baseline, limits, coefficients=PAPER, measured=None):
    """Find the largest network within all limits near the compound direction from a baseline.

    First the largest phi whose network fits. Then, for rounding leaves room, its neighbours: depth, width and
    resolution each up to 0.3 in phi away; of those that fit, the one that uses most of the limit that binds.

    Args:
        baseline: schema.ModelSpec.
        limits: sequence of Limit, cheap to ask.
        coefficients: scaling.Coefficients.
        measured: Limit or None; one more, whose cost takes long to find (a latency): about ten networks are asked.

    Returns:
        Fit; no limit is exceeded.

    Raises:
        UserError: without a limit, and where the smallest network of the direction is too large, saying by how much.

    Source: paper, equations 2 and 3.
    """
    if not limits and not measured:
        raise UserError("no limit is given: give --target_macs, --target_params, --target_memory, --target_latency_ms")
    everything = [*limits, measured] if measured else limits

    def along(phi):
        return scale_spec(baseline, phi, phi, phi, coefficients)

    low = implied_phi(LEAST_RESOLUTION / baseline.resolution, coefficients.gamma)
    _check_smallest(baseline, along(low), low, everything)
    phi = _largest_phi(low, MOST_PHI, lambda phi: _fits(along(phi), limits)) if limits else MOST_PHI
    if measured:
        phi = _approach(low, phi, along, measured)
        # What a neighbour takes is measured for the most promising alone: until then, it is as its multiply-adds.
        macs = _macs(along(phi)) / measured.share(along(phi))
        limits = [*limits, Limit("macs", macs, _macs, "multiply-adds")]

    def fit(spec):
        return Fit(spec, phi, {limit.name: limit.share(spec) for limit in everything})

    near = list(_neighbours(baseline, phi, coefficients, limits))
    if measured:
        near = sorted(near, key=_macs)[-MEASURED_NEIGHBOURS:]
    fits = [fit(along(phi)), *(fit(spec) for spec in near)]
    return max((f for f in fits if f.used[f.binding] <= 1), key=lambda f: f.used[f.binding])


def _macs(spec):
    return count_cost(spec)["total"].macs


def _fits(spec, limits):
    return all(limit.share(spec) <= 1 for limit in limits)


def _check_smallest(baseline, spec, phi, limits):
    over = "; ".join(
        f"{limit.most:,.9g} {limit.unit} are allowed, it has {limit.share(spec):.3g} times as many"
        for limit in limits
        if limit.share(spec) > 1
    )
    if over:
        raise UserError(
            f"no network fits: the smallest from {baseline.name}, phi={phi:.2f} at {spec.resolution} pixels, is too "
            f"large: {over}"
        )


def _largest_phi(low, high, fits):
    """Halve the range until its lower end, which fits, is the largest that does: costs grow with phi."""
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _approach(low, high, along, limit):
    """Find the largest phi within a limit whose cost takes long to find: guess by what is known, ask, guess again."""
    guess = min(max(low, 0.0), high)
    for _ in range(10):
        share = limit.share(along(guess))
        low, high = (guess, high) if share <= 1 else (low, guess)
        step = math.log2(0.98 / share)  # costs about double with each unit of phi
        if high - low < 0.05 or 0 <= step < 0.05:
            break
        guess = guess + step if low < guess + step < high else (low + high) / 2
    return low


def _neighbours(baseline, phi, coefficients, limits):
    """Yield, for depths and widths around the direction, the network of the highest resolution that fits."""
    steps = [NEAR * i / 3 for i in range(-3, 4)]
    gamma = coefficients.gamma
    least, most = (multiply(baseline, resolution=gamma ** (phi + sign * NEAR)).resolution for sign in (-1, 1))
    sides = range(max(least, LEAST_RESOLUTION), most + 1, 4)
    for depth, width in itertools.product(steps, steps):
        spec = scale_spec(baseline, phi + depth, phi + width, phi, coefficients)
        candidates = [spec.model_copy(update={"resolution": side}) for side in sides]
        # Costs grow with the side: the highest that fits stands before the first that does not.
        count = bisect.bisect_left(candidates, True, key=lambda candidate: not _fits(candidate, limits))
        if count:
            yield candidates[count - 1]
