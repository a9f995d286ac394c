"""What one training step computes: the loss of a batch, new batch-norm statistics, metrics, and clipped gradients.

Two models take part in training. The *model* owns every variable. It is the one that is saved, evaluated and exported.
The *graph* is a second model of the same structure that only lends its layers: it is called as a pure function of the
model's values. The graph may differ in everything that training needs and the saved model must not have: the image
size and drop rates of a phase, frozen layers, dropout masks that follow an image's position in the batch, batch norm
over groups of replicas, and fused layers on a CPU. So a new phase copies no weights, and the saved model stays a plain
Keras model. The variables of the two models correspond by their paths.

Calling the graph as a pure function also leaves gradients, statistics and seeds to the caller. Keras 3 under
`tf.distribute` would let the statistics of the replicas drift apart and give every replica the same dropout masks.

Everything here computes with Keras's backend. How a step runs on devices is the engine's part: see `tensorflow_loop`
and `jax_loop`.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from efficientnet_tf.config.schema import Config
from efficientnet_tf.data.mixing import mix_images
from efficientnet_tf.models.auxiliary_norms import name_original
from efficientnet_tf.models.variables import batch_norm_statistics, decayed_variables, trained_statistics
from efficientnet_tf.ops import random
from efficientnet_tf.training.adversarial import attack_images, make_dropout_seed
from efficientnet_tf.training.clipping import clip_gradients, find_unit_axes
from efficientnet_tf.training.losses import (
    compute_losses,
    compute_metric,
    compute_similarity_losses,
    compute_teacher_losses,
    make_targets,
    split_labels,
)
from efficientnet_tf.training.optimizers import weight_penalty
from efficientnet_tf.training.teacher import Teacher

Tensor = Any  # of Keras's backend
Tensors = list[Tensor]
Computed = tuple[Tensor, Tensor | None]  # outputs, [B, outputs], and features, [B, features], if they are needed


class TrainStep:
    """One training step as a function of values, and the variables that it reads and changes.

    Attributes:
        trainable: The model's variables that gradients update, list of keras.Variable.
        statistics: What the step updates without a gradient, list of keras.Variable: the statistics of batch norm,
            auxiliary ones included, or the limits of a `QuantizedNetwork`.
        inputs: {path: keras.Variable}, what the step reads besides the weights: statistics, frozen weights, and the
            variables of a teacher.

    Source: paper, section 5.2, and the official code.
    """

    def __init__(
        self,
        model: keras.Model,
        graph: Any,
        config: Config,
        more: Sequence[keras.Variable] = (),
        teacher: Teacher | None = None,
        class_weights: Sequence[float] | None = None,
    ):
        """Match the variables of two models.

        Args:
            model: The model that owns the variables.
            graph: The model whose layers compute, a `QuantizedNetwork`, or, for `train.adversarial_steps`, an
                `AuxiliaryNetwork`. Whatever is trainable in it is trained. Everything else, including its optimizer
                slots and EMA, stays the same to the last bit.
            config: The config of the run or of its current phase.
            more: Variables of the graph that the model does not own: the limits of the tensors that a
                `QuantizedNetwork` rounds, or the auxiliary batch norms.
            teacher: The network whose outputs are learned as well.
            class_weights: Weight of each class in the loss.
        """
        owned = {v.path: v for v in (*model.trainable_variables, *batch_norm_statistics(model), *more)}
        decayed = {v.path for v in decayed_variables(model, config.optimizer.decay_bias)}
        self.trainable = [owned[v.path] for v in graph.trainable_variables]
        self.statistics = [owned[v.path] for v in trained_statistics(graph)]
        self.inputs = {v.path: owned[v.path] for v in graph.non_trainable_variables if v.path in owned}
        self.inputs |= teacher.variables if teacher else {}
        self._teacher, self._class_weights = teacher, class_weights
        self._is_decayed = [v.path in decayed for v in self.trainable]
        unit_axes = find_unit_axes(model)
        self._unit_axes = [unit_axes.get(name_original(v.path)) for v in self.trainable]
        self._graph, self._outputs = graph, model.output_shape[-1]
        self._config = config

    def compute_loss(
        self, weights: Tensors, inputs: dict[str, Tensor], seed: Tensor, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensors, Tensor]:
        """Compute the loss of some images. This is a pure function of its arguments.

        With `train.adversarial_steps`, it is the sum of the losses of the images and of their adversarial copies.

        Args:
            weights: Values of `trainable`, in its order.
            inputs: {path: value} of `inputs`.
            seed: Seed from `ops.random.make_seed`. It decides dropout masks and mixtures.
            images: uint8 [B, H, W, C].
            labels: Labels as the pipeline reads them, [B, ...].

        Returns:
            The loss, float32 scalar, weight decay included; new values of `statistics`; and float32 [2], the loss and
            the metric of `losses.compute_metric`, both without adversarial copies.
        """
        config = self._config
        labels, importance = split_labels(labels, config)
        targets = make_targets(labels, self._outputs, config.data.task)
        if importance is not None:  # It is mixed like the targets.
            targets = ops.concatenate([targets, importance[:, None]], axis=1)
        images, targets = mix_images(ops.cast(images, "float32"), targets, seed, config.augment)
        computed, new = self._call(weights, inputs, seed, images, training=True)
        decayed = [w for w, is_decayed in zip(weights, self._is_decayed, strict=True) if is_decayed]
        loss = self._compute_mean_loss(targets, computed, inputs, images) + weight_penalty(config, decayed)
        reported = loss
        if config.train.adversarial_steps:
            inputs = {path: new.get(path, value) for path, value in inputs.items()}
            added, new = self._compute_adversarial_loss(weights, inputs, seed, images, targets)
            loss += added
            reported = ops.where(ops.isfinite(added), reported, added)  # so that it ends the run
        metric = compute_metric(labels, computed[0], config)
        return loss, [new[v.path] for v in self.statistics], ops.stack([reported, metric])

    def _compute_mean_loss(
        self, targets: Tensor, computed: Computed, inputs: dict[str, Tensor], images: Tensor
    ) -> Tensor:
        """Return the mean loss of some images, without weight decay.

        With `data.weight_column`, the last column of `targets` is the weight of each image.
        """
        config, importance, (outputs, features) = self._config, None, computed
        if config.data.weight_column is not None:
            targets, importance = targets[:, :-1], targets[:, -1]
        losses = compute_losses(targets, outputs, config)
        if self._teacher:
            taught, their_features = self._teacher.compute(inputs, images)
            weight = config.train.teacher_weight
            losses = (1 - weight) * losses + weight * compute_teacher_losses(taught, outputs, config)
            if their_features is not None:
                losses += config.train.teacher_features * compute_similarity_losses(their_features, features)
        if self._class_weights:
            losses *= ops.matmul(targets, ops.convert_to_tensor(self._class_weights, "float32"))
        if importance is not None:
            losses *= importance
        return ops.mean(losses)

    def _compute_adversarial_loss(
        self, weights: Tensors, inputs: dict[str, Tensor], seed: Tensor, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of adversarial copies of some images, and {path: value} of new statistics.

        Attack and loss use the auxiliary batch norms.

        Source: Xie et al., "Adversarial Examples Improve Image Recognition", CVPR 2020, algorithm 1. The network is in
        evaluation mode during the attack, so nothing is dropped and no statistics change. This follows the PyTorch code
        written with their guidance, `tingxueronghua/pytorch-classification-advprop`.
        Deviates: That code lowers the loss of a random class by default. Here the loss of the image's own target grows.
        """
        fixed = [ops.stop_gradient(w) for w in weights]

        def compute_loss(images):
            computed, _ = self._call(fixed, inputs, seed, images, training=False, auxiliary=True)
            return self._compute_mean_loss(targets, computed, inputs, images)

        images = attack_images(images, compute_loss, seed, self._config.train)
        computed, new = self._call(weights, inputs, make_dropout_seed(seed), images, training=True, auxiliary=True)
        return self._compute_mean_loss(targets, computed, inputs, images), new

    def clip(self, gradients: Sequence[Tensor], weights: Tensors) -> Tensors:
        """Clip the gradients of the whole batch. This is a pure function of its arguments.

        Args:
            gradients: Gradients of the loss of `compute_loss`, summed over parts and replicas, in the order of
                `trainable`.
            weights: Values of `trainable` before the step.

        Returns:
            The gradients that the optimizer takes: see `clip_gradients`.
        """
        return clip_gradients(gradients, weights, self._unit_axes, self._config.optimizer)

    def _call(
        self, weights: Tensors, inputs: dict[str, Tensor], seed: Tensor, images: Tensor, **options: bool
    ) -> tuple[Computed, dict[str, Tensor]]:
        """Return what the graph computes for some images, and {path: value} of its new non-trainable variables."""
        computed, updated = self._graph.stateless_call(weights, self._others(inputs, seed), images, **options)
        new = {v.path: value for value, v in zip(updated, self._graph.non_trainable_variables, strict=True)}
        if not self._config.train.teacher_features:
            return (computed, None), new
        outputs, features = computed
        return (outputs, ops.cast(features, "float32")), new

    def _others(self, inputs: dict[str, Tensor], seed: Tensor) -> Tensors:
        """Return values of the graph's non-trainable variables. Those that are no `inputs` are seeds of layers."""
        return [
            inputs[v.path] if v.path in inputs else random.derive_seed(seed, 1 + i)
            for i, v in enumerate(self._graph.non_trainable_variables)
        ]
