"""Random changes to images and record files: each is read, or refused by a UserError."""

import struct

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from robustness import images, models
from robustness.harness import find_strange

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import DataConfig
from efficientnet_tf.data.load_image import load_image
from efficientnet_tf.data.open import open_source

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
# TensorFlow is slow to start, and each format has a decoder of its own.
SOME = hypothesis.settings(max_examples=30, suppress_health_check=[hypothesis.HealthCheck.too_slow])


def changes(data):
    """Return `data` with some bytes replaced, and perhaps cut off."""

    def build(pair):
        replaced, end = pair
        changed = bytearray(data)
        for position, new in replaced:
            position %= len(changed)
            changed[position : position + len(new)] = new
        return bytes(changed[: len(changed) * end // 100])

    one = st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
    return st.tuples(st.lists(one, max_size=5), st.just(100) | st.integers(0, 100)).map(build)


@pytest.mark.parametrize("kind", FORMATS)
def test_images_are_read_or_refused(kind):
    @SOME
    @hypothesis.given(
        data=changes(images.encode(images.pattern(), kind)), crop=st.sampled_from(["center", "squash", "pad"])
    )
    def check(data, crop):
        try:
            pixels = load_image(data, 32, crop=crop)
        except UserError as error:
            assert not find_strange(str(error))
        else:
            assert pixels.shape == (32, 32, 3) and np.isfinite(pixels).all()

    check()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def valid_records():
    encoded = images.encode(images.pattern(), "PNG")
    return b"".join(
        models.make_record(models.make_example({"image/encoded": encoded, "image/class/label": label}))
        for label in (1, 2)
    )


@SOME
@hypothesis.given(
    data=changes(valid_records())
    # Checksums that fit, so that the content is looked at.
    | st.lists(st.binary(max_size=50).map(models.make_record), max_size=3).map(b"".join)
    | st.integers(0, 2**64 - 1).map(lambda length: struct.pack("<Q", length) + b"x" * 40)
)
def test_records_are_read_or_refused(data, folder):
    (folder / "train-00000-of-00001").write_bytes(data)
    try:
        source = open_source(DataConfig(source="records", dir=str(folder)), "train", training=False)
    except UserError as error:
        assert not find_strange(str(error)) and str(folder) in str(error)
    else:
        assert source.size >= 1
