"""The plot of a learning-rate range test."""

from efficientnet_tf.visualization.learning_rates import draw_range_test


def test_the_plot_shows_the_curve_and_the_suggestion():
    result = {
        "suggestion": 0.01,
        "diverged": True,
        "learning_rates": [0.001, 0.01, 0.1, 1.0],
        "losses": [2.0, 1.5, 1.0, 1000.0],
        "smoothed": [2.0, 1.75, 1.5, 300.0],
    }
    (axes,) = draw_range_test(result, "Range test: $tiny$").axes
    assert axes.get_xscale() == "log" and axes.get_title() == "Range test: $tiny$"
    losses, smoothed, suggestion = axes.lines
    assert list(losses.get_ydata()) == result["losses"] and list(smoothed.get_ydata()) == result["smoothed"]
    assert list(suggestion.get_xdata()) == [0.01, 0.01]
    bottom, top = axes.get_ylim()
    assert bottom < 1.0 and 2.0 < top < 4, "a loss that diverges must not flatten the rest"
    assert [text.get_text() for text in axes.get_legend().get_texts()][-1] == "suggested rate: 0.01"
    (axes,) = draw_range_test(result | {"suggestion": None}, "Range test").axes
    assert len(axes.lines) == 2
