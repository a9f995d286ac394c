"""The base of the schema: sections, errors of single fields, and the types of values with their bounds."""

from typing import Annotated

import pydantic
from pydantic import AfterValidator, Field

from efficientnet_tf.config.paths import find_problem
from efficientnet_tf.config.text import escape, shorten


class Section(pydantic.BaseModel):
    """A part of a config: immutable, strict about types, and without unknown keys."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


MOST_BLOCKS = 2000  # of a network. EfficientNet-L2 has 87, and the deepest published ResNet 333
LEAST_SIDE = 8  # pixels of an image
MOST_PIXELS = 2**16  # of an image's side
MOST_CHANNELS = 16  # of an image


class FieldError(ValueError):
    """A mistake in one field alone, even if the message names other keys.

    Args:
        message: The message.
        key: The key of the field, unless the error is raised by a check of the field itself.
    """

    def __init__(self, message: str, key: tuple[str, ...] = ()):
        super().__init__(message)
        self.key = key


def _check_smallest(value: float) -> float:
    if 0 < value < 1e-30:  # float32 would make it 0
        raise FieldError(f"Input should be at least 1e-30, received {value!r}")
    return value


def _check_path(value: str, hub: bool = False, datasets: bool = False) -> str:
    problem = find_problem(value, hub, datasets)
    if problem is not None:
        raise FieldError(f"'{shorten(escape(value))}' {problem}")
    return value


def _check_size(value: object) -> object:
    """Check an image size here, because the errors of each type of a union are separate."""
    sides = value if isinstance(value, list | tuple) else [value] * 2
    if len(sides) != 2 or not all(type(side) is int and LEAST_SIDE <= side <= MOST_PIXELS for side in sides):
        raise FieldError(
            f"Input should be an integer from {LEAST_SIDE} to {MOST_PIXELS:,}, or two of them, [height, width], "
            f"received {shorten(repr(value))}"
        )
    return value


def _check_address(value: str) -> str:
    if not 1 <= int(value.rpartition(":")[2]) <= 65535:
        raise FieldError(f"The port of an address must be from 1 to 65535, received {shorten(repr(value))}")
    return value


# The upper bounds are far above what anyone uses. They keep products of several values within what can be computed.
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=1e30), AfterValidator(_check_smallest)]
NonNegative = Annotated[float, Field(ge=0, le=1e30), AfterValidator(_check_smallest)]
Epochs = Annotated[float, Field(gt=0, le=1e7), AfterValidator(_check_smallest)]
Scale = Annotated[float, Field(gt=0, le=1000), AfterValidator(_check_smallest)]
Count = Annotated[int, Field(ge=1, le=10**8)]
Channels = Annotated[int, Field(ge=1, le=10**6)]
Side = Annotated[int, Field(ge=LEAST_SIDE, le=MOST_PIXELS)]
Size = Annotated[Side | Annotated[tuple[Side, Side], Field(strict=False)], pydantic.BeforeValidator(_check_size)]
Path = Annotated[str, AfterValidator(_check_path)]
ModelPath = Annotated[str, AfterValidator(lambda value: _check_path(value, hub=True))]
DataPath = Annotated[str, AfterValidator(lambda value: _check_path(value, datasets=True))]
Address = Annotated[str, Field(pattern=r"^grpc://[^/\s]+:[0-9]{1,5}$"), AfterValidator(_check_address)]
# YAML has lists but no tuples, so tuple fields accept lists.
Pair = Annotated[tuple[Positive, Positive], Field(strict=False)]
Floats = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
Numbers = Annotated[tuple[int | float, ...], Field(strict=False)]
Positives = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    pydantic.BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(strict=False, min_length=1),
]
Levels = Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], Field(strict=False, min_length=1, max_length=3)]
