"""Draws pictures: image grids, heat maps, confusion matrices and scatter plots.

May import `export` and everything it imports.
"""
