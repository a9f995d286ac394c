"""Operations against Pillow, policies against the published table and formulas, mixtures against their laws."""

import itertools
import re

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
import scipy.stats
import tensorflow as tf

from efficientnet_tf import augment, schema

GREY = 128
NEAREST = PIL.Image.Resampling.NEAREST


def add_below_128(image, addition):
    table = [min(v + addition, 255) if v < 128 else v for v in range(256)]
    return image.point(table * len(image.getbands()))


def fill(image):
    return (GREY,) * 3 if image.mode == "RGB" else GREY


def transform(image, *matrix):
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix, NEAREST, fillcolor=fill(image))


# By operation: this package's, Pillow's, and the range of the argument that both take (none for None).
OPERATIONS = {
    "AutoContrast": (augment.autocontrast, PIL.ImageOps.autocontrast, None),
    "Equalize": (augment.equalize, PIL.ImageOps.equalize, None),
    "Invert": (augment.invert, PIL.ImageOps.invert, None),
    "Posterize": (augment.posterize, PIL.ImageOps.posterize, (1, 8)),
    "Solarize": (augment.solarize, PIL.ImageOps.solarize, (0, 256)),
    "SolarizeAdd": (augment.solarize_add, add_below_128, (0, 127)),
    "Color": (augment.color, lambda image, f: PIL.ImageEnhance.Color(image).enhance(f), (0.0, 3.0)),
    "Contrast": (augment.contrast, lambda image, f: PIL.ImageEnhance.Contrast(image).enhance(f), (0.0, 3.0)),
    "Brightness": (augment.brightness, lambda image, f: PIL.ImageEnhance.Brightness(image).enhance(f), (0.0, 3.0)),
    "Sharpness": (augment.sharpness, lambda image, f: PIL.ImageEnhance.Sharpness(image).enhance(f), (0.0, 3.0)),
    "Rotate": (augment.rotate, lambda image, d: image.rotate(d, NEAREST, fillcolor=fill(image)), (-90.0, 90.0)),
    "ShearX": (augment.shear_x, lambda image, a: transform(image, 1, a, 0, 0, 1, 0), (-0.9, 0.9)),
    "ShearY": (augment.shear_y, lambda image, a: transform(image, 1, 0, 0, a, 1, 0), (-0.9, 0.9)),
    "TranslateX": (augment.translate_x, lambda image, p: transform(image, 1, 0, p, 0, 1, 0), (-80.0, 80.0)),
    "TranslateY": (augment.translate_y, lambda image, p: transform(image, 1, 0, 0, 0, 1, p), (-80.0, 80.0)),
}

# Published: AutoAugment's policy v0, (operation, probability, level) twice a row.
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


def make_images(rng, count, channels, size=None):
    """Return random images: noise, low contrast, a channel of one value, a smooth picture, few values; in turns."""
    images = []
    for i in range(count):
        height, width = size or rng.integers(5, 71, 2)
        image = rng.integers(0, 256, (height, width, channels))
        if i % 5 == 1:
            low, high = np.sort(rng.integers(0, 256, 2))
            image = rng.integers(low, high + 1, image.shape)
        elif i % 5 == 2:
            image[..., rng.integers(channels)] = rng.integers(0, 256)
        elif i % 5 == 3:
            slope_y, slope_x, start = rng.uniform(-4, 4, channels), rng.uniform(-4, 4, channels), rng.uniform(0, 255)
            image = np.arange(height)[:, None, None] * slope_y + np.arange(width)[:, None] * slope_x + start
        elif i % 5 == 4:
            image = rng.choice(rng.integers(0, 256, 3), image.shape)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return images


def draw_arguments(rng, bounds, count):
    if bounds is None:
        return [()] * count
    if isinstance(bounds[0], int):
        return [(int(v),) for v in rng.integers(bounds[0], bounds[1] + 1, count)]
    ends_and_neutral = [(bound,) for bound in (*bounds, 0.0, 1.0) if bounds[0] <= bound <= bounds[1]]
    return ends_and_neutral + [(float(v),) for v in rng.uniform(*bounds, count - len(ends_and_neutral)).astype("f")]


def with_pillow(operation, pixels, *arguments):
    image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return np.asarray(operation(image, *arguments)).reshape(pixels.shape)


def as_tensors(arguments):
    return [tf.constant(argument, tf.int32 if isinstance(argument, int) else tf.float32) for argument in arguments]


def call_many(function, *arguments):
    """Return function(*row) for every row of the arguments, from inside tf.data, as arrays."""
    rows = tf.data.Dataset.from_tensor_slices(arguments).map(function, num_parallel_calls=2).batch(len(arguments[0]))
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), next(iter(rows)))


def make_seeds(count):
    return np.stack([np.full(count, 3), np.arange(count)], axis=1).astype(np.int64)


def check_frequencies(observed, probabilities):
    """Hold counts against probabilities; what cannot happen must not."""
    observed, expected = np.asarray(observed), np.asarray(probabilities) * np.sum(observed)
    assert not observed[expected == 0].any()
    assert scipy.stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-4


# ---------------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_pillows(name):
    ours, pillows, bounds = OPERATIONS[name]
    rng = np.random.default_rng(len(name))
    images = make_images(rng, 160, 3) + make_images(rng, 50, 1)
    for image, arguments in zip(images, draw_arguments(rng, bounds, len(images)), strict=True):
        expected = with_pillow(pillows, image, *arguments)
        np.testing.assert_array_equal(ours(tf.constant(image), *as_tensors(arguments)), expected, str(arguments))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_pillows_inside_tf_data(name, channels):
    ours, pillows, bounds = OPERATIONS[name]
    rng = np.random.default_rng(len(name))
    images = np.stack(make_images(rng, 100 * channels, channels, size=(31, 46)))
    arguments = draw_arguments(rng, bounds, len(images))
    columns = [np.array(c, np.int32 if isinstance(c[0], int) else np.float32) for c in zip(*arguments, strict=True)]
    expected = [with_pillow(pillows, image, *row) for image, row in zip(images, arguments, strict=True)]
    np.testing.assert_array_equal(call_many(ours, images, *columns), expected)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Contrast"])
def test_large_images_lose_no_precision(name):
    ours, pillows, bounds = OPERATIONS[name]
    rng = np.random.default_rng(0)
    image = np.concatenate([np.full((300, 601, 3), 254, np.uint8), make_images(rng, 1, 3, (301, 601))[0]])
    arguments = () if bounds is None else (1.7,)
    np.testing.assert_array_equal(ours(tf.constant(image), *arguments), with_pillow(pillows, image, *arguments))


def test_posterize_to_no_bits_is_black():
    image = tf.cast(tf.reshape(tf.range(256), [16, 16, 1]), tf.uint8)
    assert not augment.posterize(image, tf.constant(0)).numpy().any()


@pytest.mark.parametrize("half", [1, 7, 50])
def test_cutout_covers_a_square_with_a_uniform_centre(half):
    height, width, count = 20, 30, 3000
    seeds = make_seeds(count)
    image = np.zeros((height, width, 3), np.uint8)
    covered = call_many(lambda seed: augment.cutout(tf.constant(image), half, seed), seeds)
    assert set(np.unique(covered)) <= {0, GREY}
    # A square of half side 1 tells the centre: its last row and column.
    dots = call_many(lambda seed: augment.cutout(tf.constant(image[..., :1]), 1, seed)[..., 0], seeds) > 0
    y = height - 1 - dots.any(axis=2)[:, ::-1].argmax(axis=1)
    x = width - 1 - dots.any(axis=1)[:, ::-1].argmax(axis=1)
    check_frequencies(np.bincount(y, minlength=height), np.full(height, 1 / height))
    check_frequencies(np.bincount(x, minlength=width), np.full(width, 1 / width))
    rows = np.abs(np.arange(height) + 0.5 - y[:, None]) < half
    columns = np.abs(np.arange(width) + 0.5 - x[:, None]) < half
    np.testing.assert_array_equal(covered > 0, (rows[:, :, None] & columns[:, None, :])[..., None].repeat(3, axis=3))


def test_erase_makes_a_rectangle_noise():
    size, count = 256, 600
    image = np.full((size, size, 1), 7, np.uint8)
    erased = call_many(lambda seed: augment.erase(tf.constant(image), 1.0, seed), make_seeds(count))
    changed = (erased != 7).any(axis=3)
    tall, wide = changed.any(axis=2).sum(axis=1), changed.any(axis=1).sum(axis=1)
    assert (changed.sum(axis=(1, 2)) > 0.98 * tall * wide).all()  # noise may be 7 by chance
    area, aspect = tall * wide / size**2, tall / wide
    assert area.min() > 0.02 - 0.01 and area.max() < 0.33 + 0.01
    uncut = (tall < size) & (wide < size)
    assert aspect[uncut].min() > 0.3 * 0.85 and aspect[uncut].max() < 3.3 / 0.85
    assert scipy.stats.kstest(area, scipy.stats.uniform(0.02, 0.31).cdf).statistic < 0.07
    assert (
        scipy.stats.kstest(np.log(aspect[area < 0.25]), scipy.stats.uniform(np.log(0.3), np.log(11)).cdf).pvalue > 1e-4
    )
    tops = changed.any(axis=2).argmax(axis=1) / np.maximum(size - tall, 1)
    assert abs(tops[uncut].mean() - 0.5) < 0.06
    noise = erased[changed].ravel()
    values = np.delete(np.bincount(noise, minlength=256), 7)
    check_frequencies(values, np.full(255, 1 / 255))


def test_erase_has_its_probability():
    image = tf.zeros([32, 32, 1], tf.uint8)
    for probability, low, high in ((0.0, 0, 0), (0.25, 0.21, 0.29), (1.0, 1, 1)):
        erased = call_many(lambda seed, p=probability: augment.erase(image, p, seed), make_seeds(1500))
        assert low <= (erased != 0).any(axis=(1, 2, 3)).mean() <= high


# ------------------------------------------------------------------------------------------------------ policies


def test_autoaugment_table_is_the_published_one():
    written = re.findall(r"(\w+) ([\d.]+) (\d+)", augment.AUTOAUGMENT_V0)
    published = [operation for pair in POLICY_V0 for operation in pair]
    assert [(name, float(probability), int(level)) for name, probability, level in written] == published


def test_autoaugment_draws_by_the_table():
    count = 40000
    operations, levels = call_many(lambda seed: augment.draw_policy(augment.autoaugment(), seed), make_seeds(count))
    probabilities = {}
    for pair in POLICY_V0:
        for chosen in itertools.product([True, False], repeat=2):
            drawn = tuple((name if yes else "-", level) for yes, (name, _, level) in zip(chosen, pair, strict=True))
            weight = np.prod([p if yes else 1 - p for yes, (_, p, _) in zip(chosen, pair, strict=True)])
            probabilities[drawn] = probabilities.get(drawn, 0) + weight / len(POLICY_V0)
    counts = dict.fromkeys(probabilities, 0)
    for row in zip(operations, levels, strict=True):
        counts[tuple((augment.NAMES[o], int(level)) for o, level in zip(*row, strict=True))] += 1
    check_frequencies(list(counts.values()), list(probabilities.values()))


def test_randaugment_draws_uniformly():
    policy = augment.randaugment(2, 12.5)
    operations, levels = call_many(lambda seed: augment.draw_policy(policy, seed), make_seeds(40000))
    assert (levels == 12.5).all()
    # The two are independent, too.
    check_frequencies(np.bincount(operations @ [16, 1], minlength=256), np.full(256, 1 / 256))
    assert set(augment.NAMES) - {"-"} == {*OPERATIONS, "Cutout"}


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


@pytest.mark.parametrize("name", LEVELS)
def test_levels_mean_what_the_official_code_says(name, monkeypatch):
    function, expected = LEVELS[name]
    monkeypatch.setattr(augment, function, lambda _, argument, *more: argument)
    for level, sign in itertools.product([*range(11), 13, 20, 30], [-1, 1]):
        arguments = tf.constant(level, tf.float64), tf.constant(sign, tf.float64), None, 250, 100
        assert augment.OPERATIONS[name](None, *arguments).numpy() == pytest.approx(expected(level, sign), rel=1e-7)


def test_randaugment_moves_and_covers_less():
    assert (augment.autoaugment().translate, augment.autoaugment().cutout) == (250, 100)
    assert (augment.randaugment(2, 10).translate, augment.randaugment(2, 10).cutout) == (100, 40)


def always(*names, level=1.0, translate=10):
    """Return a policy that draws the same operations at every seed."""
    operations, levels = [augment.NAMES.index(name) for name in names], [level] * len(names)
    return augment.Policy(lambda seed: (tf.constant(operations), tf.constant(levels)), translate, 40)


def test_signs_are_half_and_half_and_independent():
    image = tf.cast(tf.reshape(tf.range(64), [8, 8, 1]), tf.uint8)
    policy = always("TranslateX", "TranslateY")  # by one pixel
    pixel = call_many(lambda seed: augment.apply_policy(policy, image, seed)[4, 4, 0], make_seeds(4000))
    outcomes, counts = np.unique(pixel, return_counts=True)
    assert outcomes.tolist() == [36 - 9, 36 - 7, 36 + 7, 36 + 9]
    check_frequencies(counts, np.full(4, 1 / 4))


def draw_and_apply(policy, image, count, parallel=2):
    dataset = tf.data.Dataset.from_tensor_slices(make_seeds(count))
    dataset = dataset.map(lambda seed: augment.apply_policy(policy, tf.constant(image), seed), parallel)
    return next(iter(dataset.batch(count))).numpy()


POLICIES = {"autoaugment": augment.autoaugment(), "randaugment": augment.randaugment(3, 9.0)}


@pytest.mark.parametrize("name", POLICIES)
def test_policy_is_a_chain_of_pillows_operations(name):
    policy, count, checked = POLICIES[name], 60, 0
    image = make_images(np.random.default_rng(0), 4, 3, (40, 60))[3]
    for result, seed in zip(draw_and_apply(policy, image, count), make_seeds(count), strict=True):
        operations, levels = (tensor.numpy() for tensor in augment.draw_policy(policy, tf.constant(seed)))
        chain = [(augment.NAMES[o], float(level)) for o, level in zip(operations, levels, strict=True)]
        chain = [(operation, level) for operation, level in chain if operation != "-"]
        # Cutout is random, and Pillow cannot posterize to no bits.
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
                candidate = with_pillow(OPERATIONS[operation][1], candidate, *arguments)
            candidates.append(candidate)
        assert any((candidate == result).all() for candidate in candidates), chain
        checked += 1
    assert checked > count / 2


@pytest.mark.parametrize("name", POLICIES)
def test_policy_is_decided_by_the_seed_alone(name):
    policy, count = POLICIES[name], 100
    image = make_images(np.random.default_rng(0), 1, 3, (24, 24))[0]
    one, many = (draw_and_apply(policy, image, count, parallel) for parallel in (1, 8))
    np.testing.assert_array_equal(one, many)
    eager = [augment.apply_policy(policy, tf.constant(image), tf.constant(seed)) for seed in make_seeds(count)[:10]]
    np.testing.assert_array_equal(eager, one[:10])
    assert len({result.tobytes() for result in one}) > count / 4


def test_only_the_drawn_operation_runs(monkeypatch):
    def fail(image, *_):
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_max(image) < 0, ["an operation not drawn ran"])]):
            return tf.identity(image)

    monkeypatch.setitem(augment.OPERATIONS, "Rotate", fail)
    image = make_images(np.random.default_rng(0), 1, 3, (8, 8))[0]
    assert (draw_and_apply(always("Invert", "-"), image, 5) == 255 - image).all()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not drawn ran"):
        draw_and_apply(always("Invert", "Rotate"), image, 5)


def test_policy_of_a_config():
    assert augment.make_policy(schema.AugmentConfig(policy="none")) is None
    policy = augment.make_policy(schema.AugmentConfig(policy="randaugment", randaugment_count=3, randaugment_level=7))
    operations, levels = augment.draw_policy(policy, tf.constant([0, 0], tf.int64))
    assert (operations.shape, levels.numpy().tolist()) == ((3,), [7, 7, 7])
    assert augment.make_policy(schema.AugmentConfig(policy="autoaugment")).translate == 250


# ------------------------------------------------------------------------------------------------ pairs of images


def mix_halves(batch, seed=0, side=6, **alphas):
    """Mix noise; the first half of the batch is of class 0, so that every partner is of the other class.

    Returns the images, the mixed ones, and each image's weight, taken from its targets.
    """
    images = np.random.default_rng(1).uniform(1, 255, (batch, side, side + 2, 3)).astype(np.float32)
    own = (np.arange(batch) >= batch // 2).astype(int)
    seed = tf.constant([seed, 5], tf.int64)
    mixed, targets = augment.mix(images, np.eye(2, dtype=np.float32)[own], seed, schema.AugmentConfig(**alphas))
    np.testing.assert_allclose(np.sum(targets, axis=1), 1, rtol=1e-6)
    return images, mixed.numpy(), targets.numpy()[np.arange(batch), own]


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 4.0])
def test_mixup_weights_are_beta(alpha):
    images, mixed, weights = mix_halves(4000, side=2, mixup=alpha)
    shares = weights[:, None, None, None]
    np.testing.assert_allclose(mixed, shares * images + (1 - shares) * images[::-1], rtol=1e-4, atol=1e-3)
    assert scipy.stats.kstest(weights, scipy.stats.beta(alpha, alpha).cdf).statistic < 0.03


def test_cutmix_pastes_a_rectangle_and_weighs_its_area():
    images, mixed, weights = mix_halves(600, side=16, cutmix=1.0)
    kept = (mixed == images).all(axis=3)
    np.testing.assert_array_equal(kept | (mixed == images[::-1]).all(axis=3), True)
    np.testing.assert_allclose(weights, kept.mean(axis=(1, 2)), atol=1e-6)
    pasted = ~kept
    rectangle = pasted.any(axis=2)[:, :, None] & pasted.any(axis=1)[:, None, :]
    np.testing.assert_array_equal(pasted, rectangle)
    for axis in (1, 2):  # no gaps: a rectangle's sides are intervals
        edges = np.abs(np.diff(np.pad(pasted.any(axis=axis).astype(int), ((0, 0), (1, 1))), axis=1)).sum(axis=1)
        assert set(edges) <= {0, 2}
    assert 0.5 < weights.mean() < 0.75  # Beta(1, 1) has mean 1/2; what lies outside the image is not pasted


def test_cutmix_side_follows_the_weight(monkeypatch):
    monkeypatch.setattr(augment, "_sample_beta", lambda alpha, count, seed: tf.fill([count], 0.75))
    images, mixed, _ = mix_halves(2000, side=20, cutmix=1.0)
    pasted = (mixed != images).any(axis=3)
    rows, columns = pasted.any(axis=2), pasted.any(axis=1)
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
    assert inside.mean() > 0.15
    assert set(rows[inside].sum(axis=1)) <= {10, 11} and set(columns[inside].sum(axis=1)) <= {11}
    # The centre is uniform over the image: each row is as often covered as the one opposite.
    assert abs(rows[:, :10].mean() - rows[:, 10:].mean()) < 0.05


def test_without_alphas_nothing_is_mixed():
    images, targets = tf.ones([4, 2, 2, 3]), tf.eye(4)
    mixed = augment.mix(images, targets, tf.constant([0, 0], tf.int64), schema.AugmentConfig())
    assert mixed[0] is images and mixed[1] is targets


def test_both_take_turns_by_chance_and_seeds_differ():
    images = tf.constant(np.random.default_rng(1).uniform(1, 255, (4, 5, 5, 1)).astype(np.float32))
    settings = schema.AugmentConfig(mixup=1.0, cutmix=1.0)
    mixed, targets = call_many(lambda seed: augment.mix(images, tf.eye(4), seed, settings), make_seeds(1000))
    whole = (mixed == images.numpy()) | (mixed == images.numpy()[::-1])
    pasted = whole.all(axis=(1, 2, 3, 4))
    assert 0.45 < pasted.mean() < 0.55
    assert len(np.unique(targets[~pasted][:, 0, 0])) > 0.85 * (~pasted).sum()


@pytest.mark.parametrize("alphas", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_mix_runs_under_xla(alphas):
    images = np.random.default_rng(1).uniform(1, 255, (6, 5, 4, 3)).astype(np.float32)
    settings, weights = schema.AugmentConfig(**alphas), set()
    compiled = tf.function(lambda seed: augment.mix(images, tf.eye(6), seed, settings), jit_compile=True)
    for i in range(4):  # XLA draws other numbers than the plain kernels do: held to what a mixture is
        mixed, targets = (tensor.numpy() for tensor in compiled(tf.constant([i, 1], tf.int64)))
        shares = targets.diagonal()
        np.testing.assert_allclose(targets, np.diag(shares) + np.diag(1 - shares)[:, ::-1], atol=1e-6)
        weights |= set(shares)
        blended = shares[:, None, None, None] * images + (1 - shares[:, None, None, None]) * images[::-1]
        if not np.allclose(mixed, blended, rtol=1e-4, atol=1e-2):
            kept = (mixed == images).all(axis=3)
            assert "cutmix" in alphas and (kept | (mixed == images[::-1]).all(axis=3)).all()
            np.testing.assert_allclose(shares, kept.mean(axis=(1, 2)), atol=1e-6)
    assert len(weights) > 6
