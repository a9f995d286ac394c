"""Which network fits a budget: the paper's equation 2, solved along the compound direction."""

import bisect
import dataclasses
import itertools

from efficientnet_tf.complexity import count_cost
from efficientnet_tf.config import UserError
from efficientnet_tf.scaling import PAPER, implied_phi, multiply

NEAR = 0.3  # how far, in phi, a neighbour's depth, width and resolution may each be from the compound direction
LEAST_RESOLUTION = 32
MOST_PHI = 20.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a network may cost at most; None for no limit."""

    macs: float | None = None  # multiply-adds of an image
    params: float | None = None  # trainable parameters

    def used(self, spec):
        """Return {"macs": share of the limit, ...} of a schema.ModelSpec, for the limits that there are."""
        total = count_cost(spec)["total"]
        costs = {"macs": total.macs, "params": total.trainable_params}
        limits = {name: getattr(self, name) for name in costs}
        return {name: costs[name] / limit for name, limit in limits.items() if limit is not None}


@dataclasses.dataclass(frozen=True)
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


def fit_budget(baseline, limits, coefficients=PAPER):
    """Find the largest network within all limits near the compound direction from a baseline.

    First the largest phi whose network fits. Then, for rounding leaves room, its neighbours: depth, width and
    resolution each up to 0.3 in phi away; of those that fit, the one that uses most of the limit that binds.

    Args:
        baseline: schema.ModelSpec.
        limits: Limits, at least one.
        coefficients: scaling.Coefficients.

    Returns:
        Fit; no limit is exceeded.

    Raises:
        UserError: without a limit, and where the smallest network of the direction is too large, saying by how much.

    Source: paper, equations 2 and 3.
    """
    if limits == Limits():
        raise UserError("no limit is given: allowed are --target_macs and --target_params")

    def along(phi):
        return scale_spec(baseline, phi, phi, phi, coefficients)

    def fits(spec):
        return all(share <= 1 for share in limits.used(spec).values())

    low = implied_phi(LEAST_RESOLUTION / baseline.resolution, coefficients.gamma)
    smallest = along(low)
    if not fits(smallest):
        over = "; ".join(
            f"{getattr(limits, name):,.0f} {name} are asked for, it has {share:.3g} times as many"
            for name, share in limits.used(smallest).items()
            if share > 1
        )
        raise UserError(
            f"no network fits: the smallest from {baseline.name}, phi={low:.2f} at {smallest.resolution} pixels, is "
            f"too large: {over}"
        )
    high = MOST_PHI
    while high - low > 1e-3:  # costs grow with phi, so halving finds the edge
        middle = (low + high) / 2
        low, high = (middle, high) if fits(along(middle)) else (low, middle)

    best = Fit(along(low), low, limits.used(along(low)))
    steps = [NEAR * i / 3 for i in range(-3, 4)]
    least, most = (along(low + sign * NEAR).resolution for sign in (-1, 1))
    sides = range(max(least, LEAST_RESOLUTION), most + 1, 4)
    for depth, width in itertools.product(steps, steps):
        spec = scale_spec(baseline, low + depth, low + width, low, coefficients)
        candidates = [spec.model_copy(update={"resolution": side}) for side in sides]
        # Costs grow with the side: the highest that fits stands before the first that does not.
        count = bisect.bisect_left(candidates, True, key=lambda candidate: not fits(candidate))
        if count:
            used = limits.used(candidates[count - 1])
            if max(used.values()) > max(best.used.values()):
                best = Fit(candidates[count - 1], low, used)
    return best
