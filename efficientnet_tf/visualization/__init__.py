"""Draws pictures with matplotlib, and makes interactive pages with plotly.

May import `export` and everything below it. Import from its modules: `grids.draw_grids`, `heatmap.draw_comparison`,
`confusion_matrix.draw_confusion`, `learning_rates.draw_range_test`, `scatter.name_points`, `stages.draw_stages`, and
`figures` for what all figures need. `training_report.make_report` makes the page of training runs, which `runs` reads,
and `page` has what all pages need.
"""
