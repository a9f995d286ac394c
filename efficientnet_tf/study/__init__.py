"""Trains many networks and compares them: scaling studies and the coefficient search.

May import `preflight` and everything it imports.
"""
