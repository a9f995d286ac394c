"""What a process of the benchmark is asked to run, and what all implementations of it share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

TRAINING_IMAGES = 100_000  # size of the imaginary training set; the learning rate schedule depends on it
CLASSES = 1000
LABEL_SMOOTHING = 0.1  # as in the recipe `imagenet`


@dataclass(frozen=True)
class Setting:
    """What a worker process runs.

    Attributes:
        implementation: A key of `worker.IMPLEMENTATIONS`.
        mode: "train" or "infer".
        variant: Name of the network, for example "b0".
        size: Image side in pixels.
        batch: Images per step.
        precision: "float32" or "mixed_bfloat16".
        threads: Number of cores to run on, None for all.
    """

    implementation: str
    mode: str = "infer"
    variant: str = "b0"
    size: int = 224
    batch: int = 32
    precision: str = "float32"
    threads: int | None = None


class Job(NamedTuple):
    """An implementation that is ready to run.

    Attributes:
        run: Runs a number of steps and returns when they are finished.
        get_facts: Returns what is known in addition to the time, as a dict that JSON can hold.
    """

    run: Callable[[int], Any]
    get_facts: Callable[[], dict[str, Any]] = dict


def name_in_keras(variant: str) -> str:
    """Return the name of a variant's constructor in `keras.applications`: "EfficientNetV2B0" for v2-b0."""
    return "EfficientNet" + "".join(part.capitalize() for part in variant.split("-"))


def name_in_timm(variant: str) -> str:
    """Return the name of a variant in timm: "tf_efficientnetv2_b0" for v2-b0."""
    if variant.startswith("edgetpu-"):
        return f"efficientnet_e{variant[-1]}"
    if variant == "tiny":
        return "test_efficientnet"
    return f"tf_efficientnet{variant.replace('-', '_')}" if "-" in variant else f"tf_efficientnet_{variant}"


def make_batch(setting: Setting) -> tuple[Any, Any]:
    """Return random images, uint8 [B, S, S, 3], and labels, int32 [B], as NumPy arrays."""
    import numpy as np

    rng, shape = np.random.default_rng(0), (setting.batch, setting.size, setting.size, 3)
    return rng.integers(0, 256, shape, np.uint8), rng.integers(0, CLASSES, setting.batch, np.int32)


def repeat(step: Callable[[], Any]) -> Callable[[int], None]:
    """Return a function that calls `step` a number of times."""

    def run(steps):
        for _ in range(steps):
            step()

    return run
