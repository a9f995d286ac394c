"""Draws grids of images, heat maps, confusion matrices, range tests and scatter plots with matplotlib.

May import `export` and everything below it. Import from its modules: `grids.draw_grids`, `heatmap.draw_comparison`,
`confusion_matrix.draw_confusion`, `learning_rates.draw_range_test`, `scatter.name_points`, and `figures` for what all
figures need.
"""
