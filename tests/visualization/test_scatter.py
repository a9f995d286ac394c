"""Names of the points of a scatter plot."""

from matplotlib.figure import Figure

from efficientnet_tf.visualization.scatter import name_points


def name(places, others=()):
    """Return the texts that fit next to points, and their boxes."""
    axes = Figure(figsize=(4, 3)).subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    name_points(axes, [(f"point {i}", place, "black") for i, place in enumerate(places)], others)
    return [text.get_text() for text in axes.texts], [text.get_window_extent() for text in axes.texts]


def test_every_point_with_room_has_a_name():
    assert name([(1, 1), (5, 5), (8, 2)])[0] == ["point 0", "point 1", "point 2"]


def test_names_cover_neither_points_nor_other_names():
    crowd = [(5 + x / 10, 5 + y / 10) for x in range(4) for y in range(4)]
    texts, boxes = name(crowd)
    assert 0 < len(texts) < len(crowd)
    assert not any(box.overlaps(other) for index, box in enumerate(boxes) for other in boxes[:index])
    surrounded = [(5 + x, 5 + y) for x in (-0.6, 0.6) for y in (-0.3, 0.3)]
    assert name([(5, 5)], surrounded)[0] == []
