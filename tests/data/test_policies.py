"""Compare the policies with the published table and formulas, and mixing with its distributions."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from pillow import OPERATIONS, call_many, check_frequencies, make_images, make_seeds, run_pillow

from efficientnet_tf.config import schema
from efficientnet_tf.data import mixing, policies
from efficientnet_tf.ops import image as image_ops
from efficientnet_tf.ops import random

# The published policy v0 of AutoAugment: pairs of (operation, probability, level).
POLICY_V0 = [
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
]


# ------------------------------------------------------------------------------------------------------ policies


def test_autoaugment_table_is_the_published_one():
    written = re.findall(r"(\w+) ([\d.]+) (\d+)", policies.AUTOAUGMENT_V0)
    published = [operation for pair in POLICY_V0 for operation in pair]
    assert [(name, float(probability), int(level)) for name, probability, level in written] == published


def test_autoaugment_chooses_with_the_published_probabilities():
    count = 40000
    operations, levels = call_many(
        lambda seed: policies.choose_operations(policies.autoaugment_policy(), seed), make_seeds(count)
    )
    probabilities = {}
    for pair in POLICY_V0:
        for applied in itertools.product([True, False], repeat=2):
            chosen = tuple(
                (name if yes else "Identity", level) for yes, (name, _, level) in zip(applied, pair, strict=True)
            )
            weight = np.prod([p if yes else 1 - p for yes, (_, p, _) in zip(applied, pair, strict=True)])
            probabilities[chosen] = probabilities.get(chosen, 0) + weight / len(POLICY_V0)
    counts = dict.fromkeys(probabilities, 0)
    for row in zip(operations, levels, strict=True):
        counts[tuple((policies.OPERATION_NAMES[o], int(level)) for o, level in zip(*row, strict=True))] += 1
    check_frequencies(list(counts.values()), list(probabilities.values()))


def test_randaugment_chooses_uniformly():
    policy = policies.randaugment_policy(2, 12.5)
    operations, levels = call_many(lambda seed: policies.choose_operations(policy, seed), make_seeds(40000))
    assert (levels == 12.5).all()
    # The two operations are also independent.
    check_frequencies(np.bincount(operations @ [16, 1], minlength=256), np.full(256, 1 / 256))
    assert set(policies.OPERATION_NAMES) - {"Identity"} == {*OPERATIONS, "Cutout"}


LEVELS = {
    "Rotate": ("rotate", lambda level, sign: sign * level / 10 * 30),
    "ShearX": ("shear_x", lambda level, sign: sign * level / 10 * 0.3),
    "ShearY": ("shear_y", lambda level, sign: sign * level / 10 * 0.3),
    "TranslateX": ("translate_x", lambda level, sign: sign * level / 10 * 250),
    "TranslateY": ("translate_y", lambda level, sign: sign * level / 10 * 250),
    "Posterize": ("posterize", lambda level, _: min(int(level / 10 * 4), 8)),
    "Solarize": ("solarize", lambda level, _: min(int(level / 10 * 256), 256)),
    "SolarizeAdd": ("solarize_add", lambda level, _: min(int(level / 10 * 110), 127)),
    "Color": ("color", lambda level, _: level / 10 * 1.8 + 0.1),
    "Contrast": ("contrast", lambda level, _: level / 10 * 1.8 + 0.1),
    "Brightness": ("brightness", lambda level, _: level / 10 * 1.8 + 0.1),
    "Sharpness": ("sharpness", lambda level, _: level / 10 * 1.8 + 0.1),
    "Cutout": ("cutout", lambda level, _: int(level / 10 * 100)),
}


INCREASING_LEVELS = {
    "Posterize": ("posterize", lambda level, _: 4 - min(int(level / 10 * 4), 4)),
    "Solarize": ("solarize", lambda level, _: 256 - min(int(level / 10 * 256), 256)),
    "Color": ("color", lambda level, sign: max(1 + sign * level / 10 * 0.9, 0.1)),
    "Contrast": ("contrast", lambda level, sign: max(1 + sign * level / 10 * 0.9, 0.1)),
    "Brightness": ("brightness", lambda level, sign: max(1 + sign * level / 10 * 0.9, 0.1)),
    "Sharpness": ("sharpness", lambda level, sign: max(1 + sign * level / 10 * 0.9, 0.1)),
}
ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")


@pytest.mark.parametrize(
    ("operations", "name", "function", "expected"),
    [
        *((policies.OPERATIONS, name, *level) for name, level in LEVELS.items()),
        *((policies.INCREASING_OPERATIONS, name, *level) for name, level in INCREASING_LEVELS.items()),
    ],
)
def test_levels_have_the_meaning_of_the_official_code_or_of_timm(operations, name, function, expected):
    image = tf.constant(make_images(np.random.default_rng(0), 1, 3, (16, 24))[0])
    seed = tf.constant([1, 2], tf.int64)
    for level, sign in itertools.product([*range(11), 13, 20, 30], [-1, 1]):
        argument = expected(level, sign)
        dtype = tf.int32 if isinstance(argument, int) else tf.float32 if name in ENHANCEMENTS else tf.float64
        level_, sign_ = tf.constant(level, tf.float64), tf.constant(sign, tf.float64)
        actual = operations[name](image, policies.Arguments(level_, sign_, seed, policies.autoaugment_policy()))
        more = [seed] if name == "Cutout" else []
        wanted = getattr(image_ops, function)(image, tf.constant(argument, dtype), *more)
        np.testing.assert_array_equal(actual, wanted, f"{name} {level} {sign}")


TIMM_RANDAUGMENT = """
import json
import timm_reference
timm_reference.import_timm()
from timm.data import auto_augment as aa

hparams = {"translate_const": 250}
names = [name for name in (*aa._RAND_TRANSFORMS, *aa._RAND_INCREASING_TRANSFORMS) if aa.LEVEL_TO_ARG[name]]
arguments = {}
for sign in (-1, 1):
    aa._randomly_negate = lambda value: sign * value
    for name in names:
        arguments[f"{name} {sign}"] = [aa.LEVEL_TO_ARG[name.removesuffix("Rel")](m, hparams)[0] for m in range(11)]

def sample(text):
    operation = aa.rand_augment_transform(text, {}).ops[0]
    operation.prob, operation.level_fn, operation.aug_fn = 1, lambda level, _: [level], lambda _, level, **kwargs: level
    return [operation(None) for _ in range(4000)]

print(json.dumps({
    "names": aa._RAND_INCREASING_TRANSFORMS,
    "arguments": arguments,
    "levels": {text: sample(text) for text in ("rand-m8-mstd1.0-inc1", "rand-m4-mstd6", "rand-m3-mstd101")},
    "probability": aa.rand_augment_transform("rand-m9", {}).ops[0].prob,
}))
"""


@pytest.mark.slow
def test_randaugment_has_the_operations_and_strengths_of_timm():
    for library in ("torch", "timm"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "weights")}
    command = [sys.executable, "-c", TIMM_RANDAUGMENT]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    timm = json.loads(result.stdout)
    names = {name.removesuffix("Increasing").removesuffix("Rel") for name in timm["names"]}
    assert names == set(policies.OPERATION_NAMES) - {"Identity", "Cutout"}
    for key, expected in timm["arguments"].items():
        name, sign = key.split()
        formulas = INCREASING_LEVELS if name.endswith("Increasing") else LEVELS
        _, formula = formulas[name.removesuffix("Increasing").removesuffix("Rel")]
        assert [formula(level, int(sign)) for level in range(11)] == pytest.approx(expected), key
    for text, expected in timm["levels"].items():
        level, std = re.match(r"rand-m(\d+)-mstd(\d+)", text).groups()
        _, levels = choose_many(policies.randaugment_policy(1, float(level), float(std)), 4000)
        assert scipy.stats.ks_2samp(levels[:, 0], expected).pvalue > 1e-4, text
    assert timm["probability"] == 0.5


def choose_many(policy, count):
    return call_many(lambda seed: policies.choose_operations(policy, seed), make_seeds(count))


def test_each_operation_has_a_strength_of_its_own():
    count, normal = 4000, scipy.stats.norm(9, 2)
    operations, levels = choose_many(policies.randaugment_policy(2, 9.0, std=2.0), count)
    below = levels < 10
    check_frequencies([below.sum(), (levels == 10).sum()], [normal.cdf(10), normal.sf(10)])
    assert scipy.stats.kstest(levels[below], lambda level: normal.cdf(level) / normal.cdf(10)).pvalue > 1e-4
    assert abs(np.corrcoef(levels.T)[0, 1]) < 4 / count**0.5
    assert scipy.stats.f_oneway(*(levels[operations == i] for i in range(16))).pvalue > 1e-4
    _, uniform = choose_many(policies.randaugment_policy(2, 3.0, std=101.0), count)
    assert scipy.stats.kstest(uniform.ravel() / 3, "uniform").pvalue > 1e-4
    _, high = choose_many(policies.randaugment_policy(2, 15.0, std=2.0), count)
    assert high.max() == 15
    constant, _ = choose_many(policies.randaugment_policy(2, 9.0), count)
    np.testing.assert_array_equal(operations, constant)


def test_each_operation_is_applied_with_its_probability():
    operations, _ = choose_many(policies.randaugment_policy(2, 9.0, probability=0.3), 4000)
    applied = operations != policies.IDENTITY
    check_frequencies(np.bincount(applied @ [2, 1], minlength=4), [0.49, 0.21, 0.21, 0.09])
    check_frequencies(np.bincount(operations[applied], minlength=16), np.full(16, 1 / 16))


def test_policies_have_their_own_ranges_of_translate_and_cutout():
    assert (policies.autoaugment_policy().translate, policies.autoaugment_policy().cutout) == (250, 100)
    assert (policies.randaugment_policy(2, 10).translate, policies.randaugment_policy(2, 10).cutout) == (100, 40)


def always(*names, level=1.0, translate=10):
    """Return a policy that chooses the same operations for every seed."""
    operations, levels = [policies.OPERATION_NAMES.index(name) for name in names], [level] * len(names)
    return policies.Policy(lambda seed: (tf.constant(operations), tf.constant(levels)), translate, 40)


def test_signs_are_independent_and_equally_likely():
    image = tf.cast(tf.reshape(tf.range(64), [8, 8, 1]), tf.uint8)
    policy = always("TranslateX", "TranslateY")  # by one pixel each
    pixel = call_many(lambda seed: policies.apply_policy(policy, image, seed)[4, 4, 0], make_seeds(4000))
    outcomes, counts = np.unique(pixel, return_counts=True)
    assert outcomes.tolist() == [36 - 9, 36 - 7, 36 + 7, 36 + 9]
    check_frequencies(counts, np.full(4, 1 / 4))


def apply_many(policy, image, count, parallel=2):
    dataset = tf.data.Dataset.from_tensor_slices(make_seeds(count))
    dataset = dataset.map(lambda seed: policies.apply_policy(policy, tf.constant(image), seed), parallel)
    return next(iter(dataset.batch(count))).numpy()


POLICIES = {"autoaugment": policies.autoaugment_policy(), "randaugment": policies.randaugment_policy(3, 9.0)}


@pytest.mark.parametrize("name", POLICIES)
def test_policy_is_a_chain_of_pillow_operations(name):
    policy, count, checked = POLICIES[name], 60, 0
    image = make_images(np.random.default_rng(0), 4, 3, (40, 60))[3]
    for result, seed in zip(apply_many(policy, image, count), make_seeds(count), strict=True):
        operations, levels = (tensor.numpy() for tensor in policies.choose_operations(policy, tf.constant(seed)))
        chain = [(policies.OPERATION_NAMES[o], float(level)) for o, level in zip(operations, levels, strict=True)]
        chain = [(operation, level) for operation, level in chain if operation != "Identity"]
        # Cutout is random, and Pillow cannot posterize to zero bits.
        if any(o == "Cutout" or (o == "Posterize" and level < 2.5) for o, level in chain):
            continue
        candidates = []
        for signs in itertools.product([-1, 1], repeat=len(chain)):
            candidate = image
            for (operation, level), sign in zip(chain, signs, strict=True):
                argument = LEVELS[operation][1](level, sign) if operation in LEVELS else None
                if operation.startswith("Translate"):
                    argument *= policy.translate / 250
                arguments = () if argument is None else (argument,)
                candidate = run_pillow(OPERATIONS[operation][1], candidate, *arguments)
            candidates.append(candidate)
        assert any((candidate == result).all() for candidate in candidates), chain
        checked += 1
    assert checked > count / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_policy_depends_only_on_the_seed(name):
    policy, count = POLICIES[name], 60
    image = make_images(np.random.default_rng(0), 1, 3, (24, 24))[0]
    one, many = (apply_many(policy, image, count, parallel) for parallel in (1, 8))
    np.testing.assert_array_equal(one, many)
    eager = [policies.apply_policy(policy, tf.constant(image), tf.constant(seed)) for seed in make_seeds(count)[:4]]
    np.testing.assert_array_equal(eager, one[:4])
    assert len({result.tobytes() for result in one}) > count / 4


def test_only_chosen_operations_run(monkeypatch):
    def fail(image, *_):
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_max(image) < 0, ["not chosen"])]):
            return tf.identity(image)

    monkeypatch.setitem(policies.OPERATIONS, "Rotate", fail)
    image = make_images(np.random.default_rng(0), 1, 3, (8, 8))[0]
    assert (apply_many(always("Invert", "Identity"), image, 5) == 255 - image).all()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not chosen"):
        apply_many(always("Invert", "Rotate"), image, 5)


def test_public_functions_apply_the_policies():
    image, seed = make_images(np.random.default_rng(0), 1, 3, (24, 24))[0], [3, 5]
    for result, policy in (
        (policies.autoaugment(image, seed), policies.autoaugment_policy()),
        (policies.randaugment(image, seed, count=3, level=9.0), policies.randaugment_policy(3, 9.0)),
    ):
        expected = policies.apply_policy(policy, tf.constant(image), tf.constant(seed, tf.int64))
        np.testing.assert_array_equal(result, expected)


def test_policy_of_a_config():
    assert policies.make_policy(schema.AugmentConfig(policy="none")) is None
    policy = policies.make_policy(schema.AugmentConfig(policy="randaugment", randaugment_count=3, randaugment_level=7))
    operations, levels = policies.choose_operations(policy, tf.constant([0, 0], tf.int64))
    assert (operations.shape, levels.numpy().tolist()) == ((3,), [7, 7, 7])
    assert policies.make_policy(schema.AugmentConfig(policy="autoaugment")).translate == 250
    keys = {"randaugment_std": 2, "randaugment_increasing": True, "randaugment_probability": 0.5}
    policy = policies.make_policy(schema.AugmentConfig(policy="randaugment", randaugment_level=7, **keys))
    wanted = policies.randaugment_policy(2, 7.0, std=2.0, increasing=True, probability=0.5)
    assert policy.increasing
    for actual, expected in zip(choose_many(policy, 20), choose_many(wanted, 20), strict=True):
        np.testing.assert_array_equal(actual, expected)


# ------------------------------------------------------------------------------------------------ pairs of images


def partners(array):
    return array[np.arange(len(array)) ^ 1]


def mix_random_images(batch, seed=0, side=6, **alphas):
    """Mix random images. Neighbors have different classes, so the targets show the weights.

    Returns the images, the mixed images, and the weight of each image.
    """
    images = np.random.default_rng(1).uniform(1, 255, (batch, side, side + 2, 3)).astype(np.float32)
    own = np.arange(batch) % 2
    seed = tf.constant([seed, 5], tf.int64)
    mixed, targets = mixing.mix_images(images, np.eye(2, dtype=np.float32)[own], seed, schema.AugmentConfig(**alphas))
    np.testing.assert_allclose(np.sum(targets, axis=1), 1, rtol=1e-6)
    return images, mixed.numpy(), targets.numpy()[np.arange(batch), own]


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 4.0])
def test_mixup_weights_are_beta(alpha):
    images, mixed, weights = mix_random_images(4000, side=2, mixup=alpha)
    shares = weights[:, None, None, None]
    np.testing.assert_allclose(mixed, shares * images + (1 - shares) * partners(images), rtol=1e-4, atol=1e-3)
    assert scipy.stats.kstest(weights, scipy.stats.beta(alpha, alpha).cdf).statistic < 0.03


def test_cutmix_pastes_a_rectangle_and_weights_targets_by_its_area():
    images, mixed, weights = mix_random_images(600, side=16, cutmix=1.0)
    kept = (mixed == images).all(axis=3)
    np.testing.assert_array_equal(kept | (mixed == partners(images)).all(axis=3), True)
    np.testing.assert_allclose(weights, kept.mean(axis=(1, 2)), atol=1e-6)
    pasted = ~kept
    rectangle = pasted.any(axis=2)[:, :, None] & pasted.any(axis=1)[:, None, :]
    np.testing.assert_array_equal(pasted, rectangle)
    for axis in (1, 2):  # The sides of a rectangle have no gaps.
        edges = np.abs(np.diff(np.pad(pasted.any(axis=axis).astype(int), ((0, 0), (1, 1))), axis=1)).sum(axis=1)
        assert set(edges) <= {0, 2}
    assert 0.5 < weights.mean() < 0.75  # Beta(1, 1) has mean 1/2. Parts outside the image are not pasted.


def test_side_of_cutmix_follows_from_the_weight():
    """With a very large alpha all weights are 1/2, and a side is sqrt(1/2) of the image: 14.1 and 15.6 pixels."""
    images, mixed, _ = mix_random_images(2000, side=20, cutmix=1e6)
    pasted = (mixed != images).any(axis=3)
    rows, columns = pasted.any(axis=2), pasted.any(axis=1)
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
    assert inside.sum() > 50
    assert set(rows[inside].sum(axis=1)) <= {14, 15} and set(columns[inside].sum(axis=1)) <= {15, 16}
    # The center is uniform over the image, so the upper half is covered as often as the lower.
    assert abs(rows[:, :10].mean() - rows[:, 10:].mean()) < 0.05


def test_nothing_is_mixed_by_default():
    images, targets = tf.ones([4, 2, 2, 3]), tf.eye(4)
    mixed = mixing.mix_images(images, targets, tf.constant([0, 0], tf.int64), schema.AugmentConfig())
    assert mixed[0] is images and mixed[1] is targets


def test_with_both_each_is_applied_to_half_of_the_batches():
    images = tf.constant(np.random.default_rng(1).uniform(1, 255, (4, 5, 5, 1)).astype(np.float32))
    settings = schema.AugmentConfig(mixup=1.0, cutmix=1.0)
    mixed, targets = call_many(lambda seed: mixing.mix_images(images, tf.eye(4), seed, settings), make_seeds(1000))
    whole = (mixed == images.numpy()) | (mixed == partners(images.numpy()))
    pasted = whole.all(axis=(1, 2, 3, 4))
    assert 0.45 < pasted.mean() < 0.55
    assert len(np.unique(targets[~pasted][:, 0, 0])) > 0.85 * (~pasted).sum()


@pytest.mark.parametrize("alphas", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_mix_runs_under_xla(alphas):
    images = np.random.default_rng(1).uniform(1, 255, (6, 5, 4, 3)).astype(np.float32)
    settings, weights = schema.AugmentConfig(**alphas), set()
    compiled = tf.function(lambda seed: mixing.mix_images(images, tf.eye(6), seed, settings), jit_compile=True)
    for i in range(4):
        mixed, targets = (tensor.numpy() for tensor in compiled(tf.constant([i, 1], tf.int64)))
        shares = targets.diagonal()
        np.testing.assert_allclose(targets, np.diag(shares) + partners(np.diag(1 - shares).T).T, atol=1e-6)
        weights |= set(shares)
        blended = shares[:, None, None, None] * images + (1 - shares[:, None, None, None]) * partners(images)
        if not np.allclose(mixed, blended, rtol=1e-4, atol=1e-2):
            kept = (mixed == images).all(axis=3)
            assert "cutmix" in alphas and (kept | (mixed == partners(images)).all(axis=3)).all()
            np.testing.assert_allclose(shares, kept.mean(axis=(1, 2)), atol=1e-6)
    assert len(weights) > 6


@pytest.mark.parametrize("alphas", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_mixing_does_not_depend_on_how_the_batch_is_divided(alphas):
    """Four parts of two images are mixed as the batch of eight. The last image of an odd batch is not changed."""
    images = np.random.default_rng(1).uniform(1, 255, (8, 5, 4, 3)).astype(np.float32)
    settings = schema.AugmentConfig(**alphas)

    def mix(start, stop):
        mixed, targets = mixing.mix_images(
            images[start:stop], np.eye(8, dtype=np.float32)[start:stop], random.make_seed(3, 7, start), settings
        )
        return np.array(mixed), np.array(targets)

    whole, parts = mix(0, 8), [mix(i, i + 2) for i in range(0, 8, 2)]
    for i in range(2):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), whole[i])
    assert (whole[0] != images).any(axis=(1, 2, 3)).sum() >= 6
    alone, _ = mix(0, 5)
    np.testing.assert_array_equal(alone[:4], whole[0][:4])
    np.testing.assert_allclose(alone[4], images[4], rtol=1e-6)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_public_functions_mix_as_training_does(name):
    images = np.random.default_rng(1).uniform(1, 255, (5, 6, 4, 3)).astype(np.float32)
    settings, targets = schema.AugmentConfig(**{name: 0.4}), np.eye(5, dtype=np.float32)
    expected = mixing.mix_images(images, targets, random.make_seed(3, 7, 0), settings)
    for actual, wanted in zip(getattr(mixing, name)(images, targets, 0.4, seed=(3, 7)), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
