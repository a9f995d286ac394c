"""A second set of batch norms for adversarial images, which training uses and the saved model does not have.

Adversarial images have other statistics than clean ones. With batch norms of their own, they can teach the convolutions
without disturbing the statistics, scales and offsets that the trained network uses.

Source: Xie et al., "Adversarial Examples Improve Image Recognition", CVPR 2020, section 4 (AdvProp).
"""

from collections.abc import Sequence
from typing import Any

import keras

from efficientnet_tf.models.variables import trained_statistics
from efficientnet_tf.runtime.strategy import on_host

PREFIX = "auxiliary_"  # of the names of the layers, and so of the paths of their variables


def create_auxiliary_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Create a copy of each batch norm of a model. The copies start with the values of the originals.

    Args:
        model: A model of `build_model`.

    Returns:
        Layers in the order of the model, with `PREFIX` before their names. The model does not contain them.
    """
    norms = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            config = layer.get_config() | {"name": f"{PREFIX}{layer.name}"}
            norm = keras.layers.BatchNormalization.from_config(config)
            inputs: Any = layer.input
            norm.build(inputs.shape)
            norm.set_weights(layer.get_weights())
            norms.append(norm)
    return norms


def name_original(path: str) -> str:
    """Return the path of the variable that an auxiliary one is a copy of. Other paths stay as they are."""
    return path.removeprefix(PREFIX)


class AuxiliaryNetwork:
    """A network with two sets of batch norms, as a function of values like a Keras model.

    Args:
        graph: The model whose layers compute.
        model: A model with the same batch norms, each of which is a layer of the model itself.

    Attributes:
        trainable_variables: Those of the graph, and the auxiliary scales and offsets. The auxiliary ones only lend
            their names: a training state owns variables of the same paths.
        non_trainable_variables: Those of the graph, and the auxiliary statistics.
        statistics: What training updates without a gradient: the statistics of both sets.
    """

    def __init__(self, graph: keras.Model, model: keras.Model):
        with on_host():
            norms = create_auxiliary_norms(model)
        self._graph = graph
        self.trainable_variables = [*graph.trainable_variables, *(v for n in norms for v in n.trainable_variables)]
        statistics = [v for norm in norms for v in norm.non_trainable_variables]
        self.non_trainable_variables = [*graph.non_trainable_variables, *statistics]
        self.statistics = [*trained_statistics(graph), *statistics]
        self.output_shape = graph.output_shape
        self._stand_ins = {name_original(v.path): v.path for norm in norms for v in norm.variables}

    def stateless_call(
        self,
        trainable: Sequence[Any],
        others: Sequence[Any],
        images: Any,
        training: bool = False,
        auxiliary: bool = False,
    ) -> tuple[Any, list[Any]]:
        """Compute the logits of images, and new values of `non_trainable_variables`.

        Args:
            trainable: Values of `trainable_variables`, in its order.
            others: Values of `non_trainable_variables`, in its order.
            images: float32 [B, H, W, C].
            training: Whether to normalize by the statistics of these images, update the stored ones, and drop.
            auxiliary: Whether to use the auxiliary batch norms. The values of the other set stay as they are.
        """
        paths = [v.path for v in (*self.trainable_variables, *self.non_trainable_variables)]
        values = dict(zip(paths, [*trainable, *others], strict=True))
        stand_ins = self._stand_ins if auxiliary else {}
        names = [
            [stand_ins.get(v.path, v.path) for v in group]
            for group in (self._graph.trainable_variables, self._graph.non_trainable_variables)
        ]
        groups = ([values[name] for name in group] for group in names)
        result: Any = self._graph.stateless_call(*groups, images, training=training)
        logits, updated = result
        values |= zip(names[1], updated, strict=True)
        return logits, [values[v.path] for v in self.non_trainable_variables]
