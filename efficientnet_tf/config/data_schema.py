"""The schema of the images: where they come from, what their labels mean, and how they are augmented."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from efficientnet_tf.config.fields import (
    MOST_CHANNELS,
    MOST_PIXELS,
    Address,
    Count,
    DataPath,
    Floats,
    Levels,
    Names,
    Pair,
    Path,
    Positives,
    Section,
    Size,
)
from efficientnet_tf.config.paths import is_hub

_SOURCES = r"^(digits|folder|table|records|arrays|parquet|webdataset|synthetic|tfds:[\w./:+-]+)$"
_WITH_COLUMNS = ("table", "parquet", "webdataset")
# Keys that are only read with some values of another key: {key of `data`: (other key, its values, without what follows
# a colon)}.
READ_WITH = {
    "dir": ("source", ("folder", "table", "records", "arrays", "parquet", "webdataset", "tfds")),
    "classes": ("source", ("records",)),
    "class_names": ("source", ("arrays",)),
    "shuffle_buffer": ("source", ("records", "tfds", "parquet", "webdataset")),
    "synthetic_examples": ("source", ("synthetic",)),
    "synthetic_classes": ("source", ("synthetic",)),
    "label_separator": ("task", ("multilabel",)),
    "sampling": ("task", ("classification",)),
    "crop_padding": ("crop", ("center",)),
}


class DataConfig(Section):
    """The images, and how they are read.

    Example:
        >>> from efficientnet_tf import load_config
        >>> load_config("b0", "imagenette").data.source
        'tfds:imagenette/320px-v2'
    """

    source: Annotated[str, Field(pattern=_SOURCES)] = "digits"
    """Where the images come from. `digits`: the handwritten digits of scikit-learn. `folder`: one folder per class.
    `table`: a file `<split>.csv` or `<split>.tsv` that lists paths and labels. `records`: TFRecord files named
    `<split>-00000-of-00128` and so on, in the format of the official tools. `arrays`: `.npz` files of NumPy with images
    and labels, or the idx files of MNIST. `parquet`: Parquet files in the layout of the Hugging Face Hub, named
    `<split>-00000-of-00004.parquet` and so on. `webdataset`: tar files named `<split>-0000.tar` and so on. `synthetic`:
    generated images. `tfds:<name>`: a data set of TensorFlow
    Datasets."""
    task: Literal["classification", "multilabel", "regression"] = "classification"
    """What belongs to an image. `classification`: one class. `multilabel`: any number of labels, or none. `regression`:
    one or more numbers. The last two need `table`, `arrays`, `parquet` or `webdataset`."""
    dir: DataPath | None = None
    """Folder that holds the images, or the data directory of TensorFlow Datasets. For `arrays`, this can also be the
    `.npz` file. For `parquet` and `webdataset`, it can be hf://datasets/user/name on the Hugging Face Hub, whose files
    are downloaded once."""
    train_split: str = "train"
    """Name of the training split. For `folder` this is the name of a subfolder."""
    eval_split: str = "val"
    """Name of the evaluation split. For `folder` this is the name of a subfolder. If the default `val` is missing,
    `valid` or `validation` is used."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """`folder` without split subfolders, or `arrays`: fraction of every class that is held out for evaluation. Of
    `arrays`, the training split is divided, and others are not used."""
    label_columns: Names | None = None
    """`table` and `parquet`: columns with the labels. `webdataset`: keys of the JSON. `classification`: the column with
    the classes. `multilabel`: one column for each label, with 1 or 0, or a single column with the names of all labels
    of an image. `regression`: the columns with the numbers. The default is the column `label`."""
    weight_column: Annotated[str, Field(min_length=1)] | None = None
    """`table`, `parquet` and `webdataset`: column with the weight of each training image, a number from 0. It
    multiplies the loss of the image. Weights with a mean of 1 keep the meaning of the learning rate. Evaluation ignores
    them."""
    label_separator: Annotated[str, Field(min_length=1, max_length=8)] = ";"
    """task=multilabel: what separates the labels in a cell or text."""
    target_mean: Floats | None = None
    """`regression`: mean of each number. The network learns how far the numbers are from it, in units of target_std,
    and still returns the numbers themselves. The default is the mean of the training images."""
    target_std: Positives | None = None
    """`regression`: standard deviation of each number, as target_mean."""
    pseudo_labels: Path | None = None
    """`folder` and `table`: file of `predict --soft`, whose images are added to the training images. The network learns
    the probabilities in it, as Noisy Student does."""
    pseudo_confidence: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Images of `pseudo_labels` whose most likely class has a lower probability are left out."""
    pseudo_per_class: Count | None = None
    """Number of images of `pseudo_labels` to take of each class, those with the highest probability. If there are
    fewer, they are repeated. The default is to take all of them once."""
    image_size: Size | None = None
    """Size of the images in pixels: the side of squares, or `[height, width]`. The default is the resolution of the
    model."""
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] = 3
    """Channels of the decoded images: 1 is grayscale, 3 is RGB. With 4 to 16, the images must have as many: TIFF files,
    or `.npy` files of NumPy, of 8 or 16 bits."""
    crop: Literal["center", "squash", "pad"] = "center"
    """How an image is brought to `image_size` in evaluation, in `predict` and `explain`, and in exported models.
    `center`: its center is cut out, as published. `squash`: the whole image is resized, which distorts it. `pad`: the
    whole image is resized until it fits, and centered on the color `background`. Training always uses random crops."""
    crop_padding: Annotated[int, Field(ge=0, le=MOST_PIXELS)] | None = None
    """crop=center: the crop covers size / (size + crop_padding) of the shorter side. The default is 32 pixels, as
    published for images of 224 pixels and more. For smaller images it is a seventh of their size, which is 7/8 of the
    shorter side, as at 224 pixels. If height and width differ, the image is resized until it covers both of them with
    crop_padding more pixels each, and the center is cut out of that. Other crops use the whole image and ignore the
    value of a recipe."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Interpolation used for resizing, without antialiasing."""
    background: Levels = (255,)
    """Color behind transparent pixels, and around images with crop=pad, from 0 to 255: one gray level, or red, green
    and blue. The default is white."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Training stops if more than this fraction of the training or of the evaluation images cannot be decoded."""
    classes: Annotated[int, Field(ge=2, le=10**6)] | None = None
    """`records` without a `classes.txt` file: number of classes."""
    class_names: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """`arrays` without names of the classes in `classes.txt` or in an array `classes`: the names of the labels 0, 1 and
    so on, or of the columns of the labels. The default is the numbers."""
    cache: Path = "none"
    """Where to keep a copy of the encoded images: `none`, `memory`, or a folder on a local disk."""
    service: Address | None = None
    """Address `grpc://address:port` of a tf.data service whose workers prepare the training batches. For an indexed
    source these are the same batches as in a local run, in the order in which the workers deliver them. A resumed run
    does not continue at the exact position."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """How often training sees the images of a class. `uniform`: each image once per epoch. `balanced`: all classes
    equally often. An epoch has as many images as before. Images of rare classes come several times in it, and not all
    images of frequent classes do. The sources `records`, `tfds:` and `parquet` need `data.cache` for it."""
    shuffle_buffer: Count = 16384
    """Number of records that are shuffled together if the source cannot be indexed."""
    synthetic_examples: Count = 256
    """`synthetic`: number of images in each split."""
    synthetic_classes: Annotated[int, Field(ge=2, le=10**6)] = 10
    """`synthetic`: number of classes."""

    def check(self) -> None:
        """Raise ValueError if keys contradict each other. `Config` calls it, so that the message names the keys."""
        if self.label_columns is not None:
            self._check_columns(self.label_columns)
        if self.weight_column is not None:
            self._check_weights(self.weight_column)
        if self.task != "regression" and (self.target_mean or self.target_std):
            raise ValueError(f"data.target_mean and data.target_std are for data.task=regression, not {self.task!r}")
        if len(self.target_mean or ()) != len(self.target_std or ()):
            raise ValueError("data.target_mean and data.target_std need one value each for every number")
        if self.pseudo_labels is not None and (self.source not in ("folder", "table") or self.task != "classification"):
            raise ValueError(
                "data.pseudo_labels needs data.source=folder or data.source=table with data.task=classification, "
                f"received source {self.source!r} and task {self.task!r}"
            )
        if self.service is not None and self.source in ("parquet", "webdataset"):
            raise ValueError(
                f"data.service cannot be combined with data.source={self.source}, whose images are read by the process "
                "that trains. Leave data.service out"
            )
        if self.dir is not None and is_hub(self.dir) and self.source not in ("parquet", "webdataset"):
            raise ValueError(
                f"data.dir={self.dir!r} is on the Hugging Face Hub, which only data.source=parquet and "
                f"data.source=webdataset read, received source {self.source!r}"
            )
        if len(self.background) == 2:
            raise ValueError(f"data.background has one value or three, received {list(self.background)}")
        self._check_channels()

    def _check_channels(self) -> None:
        if self.channels == 2:
            raise ValueError("data.channels=2 is not supported. Use 1, or from 3 to 16")
        if self.channels > 3 and self.source not in ("folder", "table"):
            raise ValueError(
                f"data.channels={self.channels} needs data.source=folder or data.source=table, received source "
                f"{self.source!r}"
            )
        if self.channels > 3 and (self.service is not None or len(self.background) > 1):
            raise ValueError(f"data.service and a data.background of a color are not for data.channels={self.channels}")

    def _check_weights(self, column: str) -> None:
        if self.source not in _WITH_COLUMNS:
            raise ValueError(
                f"data.weight_column is only for data.source={' and '.join(_WITH_COLUMNS)}, received source "
                f"{self.source!r}"
            )
        if column.strip().lower() in ("path", *(name.strip().lower() for name in self.label_columns or ("label",))):
            raise ValueError(f"data.weight_column={column!r} is the column of the paths or of labels")
        if self.pseudo_labels is not None:
            raise ValueError("data.weight_column cannot be combined with data.pseudo_labels, which have no weights")

    def _check_columns(self, columns: tuple[str, ...]) -> None:
        if self.source not in _WITH_COLUMNS:
            raise ValueError(
                f"data.label_columns is only for data.source={' and '.join(_WITH_COLUMNS)}, received source "
                f"{self.source!r}"
            )
        names = [name.strip().lower() for name in columns]
        if len(set(names)) < len(names) or "path" in names:
            raise ValueError(f"data.label_columns names columns of labels, each once, received {list(columns)}")
        if self.task == "classification" and len(columns) > 1:
            raise ValueError(
                f"data.label_columns has {len(columns)} columns, but with data.task=classification an image has one "
                "label. Set data.task=multilabel or data.task=regression."
            )


class AugmentConfig(Section):
    """The random changes to a training image.

    Example:
        >>> from efficientnet_tf import AugmentConfig
        >>> AugmentConfig(policy="randaugment", mixup=0.2).crop_area
        (0.08, 1.0)
    """

    crop_area: Pair = (0.08, 1.0)
    """Range of the area of the random crop, as a fraction of the image."""
    crop_aspect: Pair = (3 / 4, 4 / 3)
    """Range of the aspect ratio (width / height) of the random crop."""
    flip: bool = True
    """Whether to mirror half of the images horizontally."""
    flip_vertical: bool = False
    """Whether to mirror half of the images vertically."""
    shift: Annotated[int, Field(ge=0, le=10**5)] = 0
    """Move the image by up to this many pixels in each direction after the crop. The border that becomes free is black.
    For small images this is usual instead of crops: with crop_area [1, 1] and crop_aspect [1, 1], square images keep
    their pixels."""
    policy: Literal["none", "autoaugment", "randaugment"] = "none"
    """Augmentation policy that is applied after the crop."""
    randaugment_count: Annotated[int, Field(ge=1, le=16)] = 2
    """RandAugment: number of operations per image."""
    randaugment_level: Annotated[float, Field(ge=0, le=30)] = 10.0
    """RandAugment: strength of the operations."""
    randaugment_std: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """RandAugment: standard deviation of the strength. Each operation then has a strength of its own, from a normal
    distribution around randaugment_level, limited to 0 and to the larger of 10 and randaugment_level. With 100 or more,
    the strength is uniform between 0 and randaugment_level."""
    randaugment_increasing: bool = False
    """RandAugment: whether a higher strength always changes an image more, as with timm's `inc1`. Color, contrast,
    brightness and sharpness are then raised or lowered at random. By default, as in the official code, strength 5 does
    not change these four, and Posterize and Solarize change least at strength 10."""
    randaugment_probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """RandAugment: probability that an operation is applied. In timm it is 0.5."""
    color_jitter: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Change brightness, contrast and saturation after the policy, in random order, each by a factor between
    1 - color_jitter and 1 + color_jitter, but at least 0. 0 disables it."""
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a random rectangle of the image is replaced by noise."""
    mixup: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Blend pairs of images with a weight from Beta(mixup, mixup). 0 disables it."""
    cutmix: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Paste a part of one image into another, with an area from Beta(cutmix, cutmix). 0 disables it."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "AugmentConfig":
        for key, top in (("crop_area", 1.0), ("crop_aspect", 1e3)):
            low, high = getattr(self, key)
            if low > high or high > top:
                raise ValueError(f"{key} must be [low, high] with low <= high <= {top}, received [{low}, {high}]")
        return self
