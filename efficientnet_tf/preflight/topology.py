"""TPU slices that the compiler knows, and the published figures of their chips."""

import math
from dataclasses import dataclass

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import escape, shorten


@dataclass(frozen=True)
class Chip:
    """The published figures of a chip.

    Source: docs.cloud.google.com/tpu/docs has a page for each generation from v3 on, with the peak in
    bfloat16 and the bandwidth of HBM. v2: Jouppi et al., "A Domain-Specific Supercomputer for Training Deep Neural
    Networks", CACM 63(7), 2020.

    Attributes:
        flops: Peak floating-point operations per second in bfloat16.
        bytes_per_second: Bandwidth of HBM.
        replicas: Replicas per chip. Two if each of the chip's two cores runs its own program.
        chips_per_host: Chips that share a host if the whole slice fits on one host.
        layouts: Layouts of slices that the compiler knows.
        has_tensorflow: Whether TensorFlow runs on it.
    """

    flops: float
    bytes_per_second: float
    replicas: int
    chips_per_host: int
    layouts: tuple[str, ...]
    has_tensorflow: bool = True


_SQUARES = ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16")
_LITE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8")
CHIPS = {
    "v2": Chip(46e12, 700e9, 2, 4, _SQUARES),
    "v3": Chip(123e12, 900e9, 2, 4, _SQUARES),
    "v4": Chip(275e12, 1228e9, 2, 4, _CUBES),
    "v5e": Chip(197e12, 819e9, 1, 8, _LITE),
    "v5p": Chip(459e12, 2765e9, 1, 4, _CUBES),
    "v6e": Chip(918e12, 1638e9, 1, 8, _LITE),
    "tpu7x": Chip(2307e12, 7380e9, 2, 4, _CUBES, has_tensorflow=False),
}


@dataclass(frozen=True)
class Topology:
    """A slice of a TPU pod.

    Attributes:
        name: Generation and layout, for example "v5e:2x4".
        chip: The chip of the generation.
        chips: Number of chips.
    """

    name: str
    chip: Chip
    chips: int

    @property
    def replicas(self) -> int:
        """Number of replicas."""
        return self.chips * self.chip.replicas

    @property
    def hosts(self) -> int:
        """Number of hosts. Slices that do not fit on one host have four chips per host."""
        if self.chips <= self.chip.chips_per_host:
            return 1
        return self.chips // 4

    @property
    def flops(self) -> float:
        """Peak floating-point operations per second of one replica."""
        return self.chip.flops / self.chip.replicas

    @property
    def bytes_per_second(self) -> float:
        """Share of one replica in the bandwidth of its chip's HBM."""
        return self.chip.bytes_per_second / self.chip.replicas


def parse_topology(name: str) -> Topology:
    """Return the slice with a name like "v5e:2x4".

    Raises:
        UserError: If the compiler does not know the slice.
    """
    shown = escape(shorten(name))
    generation, _, layout = name.partition(":")
    known = [f"{chip}:{layout}" for chip, facts in CHIPS.items() for layout in facts.layouts]
    if name not in known:
        allowed = [n for n in known if n.startswith(f"{generation}:")] or known
        raise UserError(
            f"topology={shown} is not a known slice. Use one of {', '.join(allowed)}.{suggest(shown, known)}"
        )
    return Topology(name, CHIPS[generation], math.prod(map(int, layout.split("x"))))
