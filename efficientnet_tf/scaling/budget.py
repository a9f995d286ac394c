"""Find the largest network within a budget: equation 2 of the paper, solved along the compound direction."""

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.config.schema import MOST_PIXELS, ModelSpec
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.scaling.compound import PAPER, Coefficients, round_resolution, scale_by_phi, solve_phi

MAX_DEVIATION = 0.3  # of a neighbor's depth, width and resolution from the compound direction, in units of phi
MIN_RESOLUTION = 32
MIN_MULTIPLIER = 0.01  # of depth and width
MAX_PHI = 20.0
MEASURED_NEIGHBORS = 5


@dataclass(frozen=True)
class Limit:
    """An upper bound on what a network may cost.

    Attributes:
        name: Name of what is limited.
        maximum: The largest cost that is allowed.
        cost: Function from a `ModelSpec` to its cost, which grows with the network.
        unit: Unit of the cost, for error messages.
    """

    name: str
    maximum: float
    cost: Callable[[ModelSpec], float]
    unit: str

    def share(self, spec: ModelSpec) -> float:
        """Return the share of the limit that a network uses. More than 1 exceeds it."""
        return self.cost(spec) / self.maximum


@dataclass(frozen=True)
class Fit:
    """A network that fits a budget.

    Attributes:
        spec: The network.
        phi: Compound coefficient of the point on the compound direction that the network is near.
        used: Share of each limit that the network uses, for example `{"macs": 0.99}`.
    """

    spec: ModelSpec
    phi: float
    used: dict[str, float]

    @property
    def binding(self) -> str:
        """Name of the limit that keeps the network from being larger."""
        return max(self.used, key=lambda name: self.used[name])


def fit_budget(
    baseline: str | ModelSpec = "b0",
    *,
    macs: float | None = None,
    params: float | None = None,
    memory_bytes: float | None = None,
    batch: int = 32,
    precision: str = "float32",
    coefficients: Coefficients = PAPER,
    measured: Limit | None = None,
) -> Fit:
    """Return the largest network within all limits, near the compound direction from a baseline.

    First the largest phi is found whose network fits. Because rounding leaves some of the budget unused, networks close
    to it are tried next, with depth, width and resolution up to 0.3 in phi away. Of those that fit, the one that uses
    most of the binding limit is returned.

    Args:
        baseline: The network to scale: a `ModelSpec`, the name of a variant, or the path of a variant file.
        macs: Maximum number of multiply-adds for one image.
        params: Maximum number of trainable parameters.
        memory_bytes: Maximum memory of a training step with RMSProp and an EMA of the weights.
        batch: Images per training step, at least 1. Only used with `memory_bytes`.
        precision: "float32" or "mixed_bfloat16". Only used with `memory_bytes`.
        coefficients: Growth per unit of phi.
        measured: Another limit whose cost takes long to determine, such as a latency. About ten networks are measured.

    Returns:
        A `Fit`. No limit is exceeded.

    Raises:
        UserError: If no limit is given, or if even the smallest network is too large. The message says by how much.

    Source: paper, equations 2 and 3.

    Example:
        >>> from efficientnet_tf import count_cost, fit_budget
        >>> fit = fit_budget("b0", macs=1.8e9, params=11e6)
        >>> fit.binding
        'params'
        >>> count_cost(fit.spec).params <= 11e6
        True
    """
    baseline = load_variant(baseline)
    limits = _counted_limits(macs, params, memory_bytes, batch, precision)
    all_limits = [*limits, measured] if measured else limits
    for limit in all_limits:
        if not 0 < limit.maximum < math.inf:
            raise UserError(f"the limit {limit.name}={limit.maximum:g} must be a positive, finite number.")
    if not all_limits:
        raise UserError("no limit is given. Give macs, params, memory_bytes or measured.")

    def along(phi: float) -> ModelSpec:
        return scale_by_phi(baseline, phi, coefficients)

    low = _lowest_phi(baseline, coefficients)
    _check_smallest(baseline, along(low), low, all_limits)
    high = MAX_PHI if _exists(along, MAX_PHI) else _largest_phi(low, MAX_PHI, lambda phi: _exists(along, phi))
    phi = _largest_phi(low, high, lambda phi: _fits(along(phi), limits)) if limits else high
    if measured:
        phi = _approach(low, phi, along, measured)
        # Only the most promising neighbors are measured. Until then, assume costs in proportion to multiply-adds.
        limits = [*limits, Limit("macs", _macs(along(phi)) / measured.share(along(phi)), _macs, "multiply-adds")]
    neighbors = list(_neighbors(baseline, phi, coefficients, limits))
    if measured:
        neighbors = sorted(neighbors, key=_macs)[-MEASURED_NEIGHBORS:]
    candidates = [along(phi), *neighbors]
    fits = [Fit(spec, phi, {limit.name: limit.share(spec) for limit in all_limits}) for spec in candidates]
    return max((fit for fit in fits if fit.used[fit.binding] <= 1), key=lambda fit: fit.used[fit.binding])


def _counted_limits(
    macs: float | None, params: float | None, memory_bytes: float | None, batch: int, precision: str
) -> list[Limit]:
    """Return the limits that are given, of those whose cost is counted rather than measured."""

    def count_bytes(spec: ModelSpec) -> int:
        return count_cost(spec).training_bytes(batch, precision)

    limits = []
    if macs is not None:
        limits.append(Limit("macs", macs, _macs, "multiply-adds"))
    if params is not None:
        limits.append(Limit("params", params, lambda spec: count_cost(spec).params, "parameters"))
    if memory_bytes is not None:
        limits.append(Limit("memory", memory_bytes, count_bytes, "bytes"))
    return limits


def _lowest_phi(baseline: ModelSpec, coefficients: Coefficients) -> float:
    """Return the lowest phi that is tried: depth, width and resolution are at their minimum or above."""
    lowest = [(MIN_RESOLUTION / baseline.resolution, coefficients.gamma)]
    lowest += [(MIN_MULTIPLIER, coefficients.alpha), (MIN_MULTIPLIER, coefficients.beta)]
    return max((solve_phi(multiplier, base) for multiplier, base in lowest if base > 1), default=0.0)


def _macs(spec: ModelSpec) -> int:
    return count_cost(spec).macs


def _exists(along: Callable[[float], ModelSpec], phi: float) -> bool:
    """Return whether the schema allows the network at phi. Steep coefficients make it too large before `MAX_PHI`."""
    try:
        along(phi)
    except UserError:
        return False
    return True


def _fits(spec: ModelSpec, limits: Sequence[Limit]) -> bool:
    return all(limit.share(spec) <= 1 for limit in limits)


def _check_smallest(baseline: ModelSpec, spec: ModelSpec, phi: float, limits: Sequence[Limit]) -> None:
    exceeded = [
        f"it takes {limit.share(spec):.3g} times the {limit.maximum:,.9g} {limit.unit} allowed"
        for limit in limits
        if limit.share(spec) > 1
    ]
    if exceeded:
        raise UserError(
            f"no network fits. The smallest one scaled from {baseline.name} (phi {phi:.2f}, {spec.resolution} pixels) "
            f"is too large: {', and '.join(exceeded)}."
        )


def _largest_phi(low: float, high: float, fits: Callable[[float], bool]) -> float:
    """Return the largest phi that fits, found by bisection. `low` must fit. Costs grow with phi."""
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _approach(low: float, high: float, along: Callable[[float], ModelSpec], limit: Limit) -> float:
    """Return the largest phi within a limit that is slow to measure, guessing the next phi from each measurement."""
    guess = min(max(low, 0.0), high)
    for _ in range(10):
        share = limit.share(along(guess))
        low, high = (guess, high) if share <= 1 else (low, guess)
        step = math.log2(0.98 / share)  # costs about double with each unit of phi
        if high - low < 0.05 or 0 <= step < 0.05:
            break
        guess = guess + step if low < guess + step < high else (low + high) / 2
    return low


def _neighbors(
    baseline: ModelSpec, phi: float, coefficients: Coefficients, limits: Sequence[Limit]
) -> Iterator[ModelSpec]:
    """Yield the network of the highest resolution that fits, for depths and widths around the compound direction."""
    steps = [MAX_DEVIATION * i / 3 for i in range(-3, 4)]
    gamma = coefficients.gamma
    least, most = (round_resolution(baseline.resolution * gamma ** (phi + sign * MAX_DEVIATION)) for sign in (-1, 1))
    sides = range(max(least, MIN_RESOLUTION), min(most, MOST_PIXELS) + 1, 4)
    for depth, width in itertools.product(steps, steps):
        try:
            spec = scale_by_phi(baseline, (phi + depth, phi + width, phi), coefficients)
        except UserError:  # larger than the schema allows
            continue
        candidates = [spec.model_copy(update={"resolution": side}) for side in sides]
        # Costs grow with the side, so the largest side that fits is the one before the first that does not.
        count = bisect.bisect_left(candidates, True, key=lambda candidate: not _fits(candidate, limits))
        if count:
            yield candidates[count - 1]
