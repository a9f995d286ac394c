"""The schema of a training run: the optimizer, the learning rate, the phases and the loop."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from efficientnet_tf.config.fields import (
    Count,
    Epochs,
    Fraction,
    ModelPath,
    NonNegative,
    Numbers,
    Positive,
    Positives,
    Section,
)

_Stages = Annotated[str, Field(pattern=r"^stage[1-9][0-9]{0,2}$")]


class OptimizerConfig(Section):
    """The optimizer and its settings.

    Example:
        >>> from efficientnet_tf import OptimizerConfig
        >>> OptimizerConfig(name="sgd", learning_rate=0.1).momentum
        0.9
    """

    name: Literal["rmsprop", "sgd", "adamw", "lamb"] = "rmsprop"
    """The optimizer."""
    learning_rate: Positive = 0.016
    """Peak learning rate for batches of 256 images. `rate_scaling` says how it grows with the batch size."""
    rate_scaling: Literal["linear", "sqrt"] = "linear"
    """Factor of the learning rate for other batch sizes. `linear`: batch size / 256. `sqrt`: its square root."""
    momentum: Fraction = 0.9
    """RMSProp and SGD: momentum. AdamW and LAMB: beta 1."""
    rho: Fraction = 0.9
    """RMSProp: decay of the mean square. AdamW and LAMB: beta 2."""
    epsilon: Positive = 1e-3
    """RMSProp, AdamW and LAMB: constant that avoids a division by zero. RMSProp adds it inside the square root."""
    weight_decay: NonNegative = 1e-5
    """RMSProp and SGD: factor of the penalty `sum(v^2) / 2` in the loss. AdamW and LAMB: decoupled weight decay. The
    variables of batch norm do not decay."""
    decay_bias: bool = True
    """Whether biases decay, those of squeeze-and-excitation and of the classifier. EfficientNetV2 spares them."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fine-tuning: factor between the learning rates of neighboring parts of the network. The classifier has the whole
    rate, and each block before it layer_decay times that of the next one, so that the first layers change least."""
    clip_norm: NonNegative = 0.0
    """Largest L2 norm of the gradient. A longer gradient is scaled down to it. The norm is that of all trained weights
    together and of the mean over the whole batch, weight decay in the loss included. 0 disables it."""
    clip_value: NonNegative = 0.0
    """Largest absolute value of each number of the gradient. 0 disables it."""
    agc: NonNegative = 0.0
    """Adaptive gradient clipping: largest ratio between the norm of a gradient and the norm of its weights, for each
    output channel of a layer. The classifier is not clipped. A common value is 0.01. 0 disables it."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "OptimizerConfig":
        given = {"clip_norm": self.clip_norm, "clip_value": self.clip_value, "agc": self.agc}
        chosen = [f"{key}={value:g}" for key, value in given.items() if value]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} are different ways to clip gradients. Use only one of them.")
        return self


class ScheduleConfig(Section):
    """The learning rate over time.

    Example:
        >>> from efficientnet_tf import ScheduleConfig
        >>> ScheduleConfig(name="cosine").warmup_epochs
        5.0
    """

    name: Literal["exponential", "cosine", "constant"] = "exponential"
    """Shape of the schedule after the warmup."""
    warmup_epochs: Annotated[float, Field(ge=0, le=1e7)] = 5.0
    """Length of the linear warmup from 0, in epochs."""
    decay_epochs: Epochs = 2.4
    """`exponential`: epochs between two decay steps, counted from the first training step."""
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.97
    """`exponential`: factor of each decay step."""


class Phase(Section):
    """A part of a training run in which some keys have other values.

    Phases describe progressive resizing and gradual unfreezing.

    Example:
        >>> from efficientnet_tf import Phase
        >>> Phase(until=0.5, set={"data.image_size": 128}).until
        0.5
    """

    until: Annotated[float, Field(gt=0, le=1)]
    """Fraction of `train.epochs` at which the phase ends."""
    set: dict[str, int | float | bool | str | Numbers]
    """Values for this phase, as `section.key: value`. Allowed are data.image_size, train.batch_size, train.freeze,
    model.dropout, model.drop_connect, optimizer.learning_rate, optimizer.clip_norm, optimizer.clip_value, optimizer.agc
    and every key of the section augment."""


class TrainConfig(Section):
    """The training run.

    Example:
        >>> from efficientnet_tf import TrainConfig
        >>> TrainConfig(epochs=10.0).batch_size
        2048
    """

    batch_size: Count = 2048
    """Images per step, summed over all replicas."""
    epochs: Epochs = 350.0
    """Passes over the training images."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the initial weights, the order of the images, the augmentation and dropout."""
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    """Precision of the activations. Variables are always float32. `auto` is mixed_bfloat16 on a TPU and float32
    elsewhere."""
    jit_compile: Literal["auto", "on", "off"] = "auto"
    """Whether XLA compiles the forward and the backward pass. `auto` is on for a GPU. A TPU always compiles."""
    accumulate: Count = 1
    """Split each replica's batch into this many parts and sum their gradients. This uses the memory of one part. Batch
    norm sees one part at a time. More than 1 requires batch_norm_group=1."""
    remat: bool = False
    """Whether the forward pass keeps only what leaves each block, and the backward pass computes the rest again. This
    takes about half of the memory for activations, and on a CPU about 60 % more time. The result is the same."""
    batch_norm_group: Literal["auto", "all"] | Count = "auto"
    """Number of replicas that share the batch-norm statistics in training: a divisor of the number of replicas, or
    `all`. `auto` is 1 for up to 8 replicas. For more it is an eighth of them, but at least 8. More than 1 cannot be
    combined with jit_compile=on."""
    init_from: ModelPath | None = None
    """Weights to start from: a model directory, an export, any file that the command `weights` reads, or hf://user/name
    on the Hugging Face Hub. The default is a random initialization. The classifier is kept only if the classes are the
    same."""
    freeze: Literal["none", "batch_norm", "body"] | _Stages = "none"
    """Weights that keep their values from init_from. `batch_norm`: scale, offset and statistics, which are also used as
    stored. `stage4`, or another number: the stem and the stages up to this one. `body`: everything except the
    classifier. What is frozen as a whole uses the stored statistics, and drops nothing."""
    quantize: Literal["none", "int8", "int8_frozen"] = "none"
    """Train for exports in int8: as if weights and activations were rounded. `int8`: the limits of each tensor are
    moving averages. `int8_frozen`: they keep their values, for a last phase. Batch norm keeps its statistics, and
    nothing is dropped. Needs init_from, or a phase before."""
    teacher: ModelPath | None = None
    """Model directory of a trained network whose outputs the network learns besides the labels (distillation). It sees
    the same augmented images, resized to its own size, and predicts as in evaluation. It must have the same classes."""
    teacher_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the teacher in the loss. The labels have the rest. At 1, labels are not used."""
    teacher_temperature: Annotated[float, Field(ge=0.1, le=100)] = 2.0
    """Divisor of the logits of both networks before their probabilities are compared. A higher one shows more of how
    similar the teacher finds the other classes."""
    teacher_features: NonNegative = 0.0
    """Weight of the features in the loss, which is added to those of the labels and of the teacher's outputs. The two
    networks should agree on how similar the images of a batch are to each other. They may have different numbers of
    features. With several replicas, each compares the images of its own part of the batch."""
    adversarial_steps: Annotated[int, Field(ge=0, le=100)] = 0
    """Steps of the attack that makes an adversarial copy of each training image (AdvProp). The network learns both. The
    copies have batch norms of their own, which are not part of the saved model. A training step takes about as long as
    `adversarial_steps` + 2 plain ones. The paper has 5 steps for an `adversarial_epsilon` of 4, and 1 step for an
    `adversarial_epsilon` of 1, which suits small networks. 0 disables it."""
    adversarial_epsilon: Annotated[float, Field(ge=0, le=255)] = 4.0
    """Largest change of a pixel by the attack. Pixels range from 0 to 255."""
    adversarial_step_size: Annotated[float, Field(gt=0, le=255)] = 1.0
    """Change of a pixel in each step of the attack."""
    loss: Literal["cross_entropy", "bce", "asymmetric", "mse", "mae", "huber"] | None = None
    """Training loss. For classes: `cross_entropy` of the softmax, the default, or `bce`, the binary cross-entropy of
    the sigmoid of every class, averaged over the classes. Evaluation reports the cross-entropy in either case. With
    data.task=multilabel: `bce`, the default, or `asymmetric`, which counts labels that are absent and easy to recognize
    less. With data.task=regression, for errors in units of data.target_std: `mse`, the mean square, the default, `mae`,
    the mean absolute error, or `huber`, which is a square up to 1 and linear beyond."""
    class_weights: Literal["none", "balanced"] | Positives = "none"
    """Weights of the classes in the training loss. `balanced`: in inverse proportion to their training images, so that
    all classes together count alike. A list has a weight for each class, in the order of classes.txt. A mixed image has
    the mean of its classes. Evaluation does not use them."""
    label_smoothing: Fraction = 0.1
    """Fraction of the target probability that is spread over all classes. With data.task=multilabel, targets move by
    half of it from 0 and 1 toward 1/2. Numbers are not smoothed."""
    ema_decay: Fraction = 0.9999
    """Maximum decay of the exponential moving average (EMA) of the weights. 0 disables it."""
    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = ()
    """Phases of the run, in order. The last one must end at 1. The default is a single phase."""
    steps_per_loop: Count = 50
    """Training steps per host round trip."""
    checkpoint_every_epochs: Epochs = 1.0
    """Epochs between two checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=2, le=10**6)] = 3
    """Number of recent checkpoints to keep."""
