"""Images: data sources, decoding, augmentation, and the input pipeline.

May import `models` and everything it imports.
"""
