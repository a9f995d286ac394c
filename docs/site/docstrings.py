"""Extension of griffe: the docstrings call their examples `Example:`, and griffe calls them `Examples:`."""

import griffe


class Examples(griffe.Extension):
    """Let griffe recognize the examples, so that they are shown as code."""

    def on_object(self, *, obj, **_):
        """Rename the section in the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
