"""Learning from another model: `train.teacher`. The network learns the teacher's outputs besides the labels.

The module imports Keras only where a teacher is used, so that a command can check its config at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape, normalize_name
from efficientnet_tf.data.scan import show
from efficientnet_tf.models.run_directory import read_class_names, read_config
from efficientnet_tf.runtime.hub import fetch

if TYPE_CHECKING:
    import keras

Tensor = Any  # of Keras's backend
_PREFIX = "teacher/"  # of the paths of its variables, which are those of a network like the student's


class Teacher:
    """A trained network whose outputs, and possibly features, another one learns.

    Args:
        model: The trained network.
        config: Its config.
        device: The kind of device that computes, as `runtime.strategy.device_type` returns it.
        has_features: Whether its features are learned as well.

    Attributes:
        variables: {path: keras.Variable}, what its outputs depend on. Training does not change them.
    """

    def __init__(self, model: keras.Model, config: Config, device: str, has_features: bool = False):
        from efficientnet_tf.models.folding import Inference

        self.variables = {f"{_PREFIX}{v.path}": v for v in model.variables}
        self._has_features, self._shape = has_features, config.image_shape
        self._inference = Inference(with_features(model) if has_features else model, device)

    def compute(self, values: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the teacher computes in inference. It has no gradient.

        Args:
            values: {path: value} of `variables`, and possibly others.
            images: float32 [B, H, W, C], as the student sees them, mixed ones included. They are resized to the size
                of the teacher's images.

        Returns:
            The outputs, float32 [B, outputs], and the features, float32 [B, features], or None if they are not learned.
        """
        from keras import ops

        if tuple(images.shape[1:3]) != self._shape:
            images = ops.image.resize(images, self._shape, antialias=True)
        by_id = {id(variable): values[path] for path, variable in self.variables.items()}
        computed: Any = self._inference.compute(images, by_id)
        outputs, features = computed if self._has_features else (computed, None)
        outputs = ops.stop_gradient(ops.cast(outputs, "float32"))
        return outputs, None if features is None else ops.stop_gradient(ops.cast(features, "float32"))


def with_features(model: keras.Model) -> keras.Model:
    """Return a model with the layers of another one that returns its outputs and the features before the classifier."""
    import keras

    return keras.Model(model.input, [model.output, model.get_layer("avg_pool").output], name=model.name)


def check_teacher(config: Config, class_names: Sequence[str] | None = None) -> None:
    """Raise UserError if the teacher of a run is no model directory, or its outputs mean something else.

    Args:
        config: The config of the run.
        class_names: Names of the classes, labels or numbers of the data, if they are known.
    """
    if config.train.teacher is None:
        return
    folder, shown = fetch(config.train.teacher), f"train.teacher={escape(config.train.teacher)}"
    try:
        theirs, names = read_config(folder), read_class_names(folder)
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None
    for key in ("task", "channels"):
        ours, other = getattr(config.data, key), getattr(theirs.data, key)
        if ours != other:
            raise UserError(f"{shown} has data.{key}={other}, but this run has data.{key}={ours}.")
    if class_names is not None and [*map(normalize_name, names)] != [*map(normalize_name, class_names)]:
        theirs, ours = (show([*found], 5) for found in (names, class_names))
        raise UserError(
            f"{shown} predicts {theirs}, but the data has {ours}. Both must be the same, in the same order."
        )


def load_teacher(config: Config, device: str) -> Teacher | None:
    """Load the teacher of a run, or return None if it has none. Call it in the scope of the run's strategy.

    Args:
        config: The config of the run.
        device: The kind of device that computes, as `runtime.strategy.device_type` returns it.

    Raises:
        UserError: If there is no model at `train.teacher`.
    """
    if config.train.teacher is None:
        return None
    from efficientnet_tf.models.model_dir import restore_model

    model, theirs, _ = restore_model(fetch(config.train.teacher))
    return Teacher(model, theirs, device, config.train.teacher_features > 0)
