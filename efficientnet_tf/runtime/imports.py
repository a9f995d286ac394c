"""Makes importing TensorFlow and Keras faster."""

import contextlib
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder

# TensorFlow and Keras import these if they are installed, for features that no command uses: wrappers for
# scikit-learn, data frames, galleries, the conversion of JAX functions to LiteRT, and the layers' old image functions.
OPTIONAL = ("jax", "matplotlib", "pandas", "scipy", "sklearn")
OF_JAX = ("jax", "scipy")  # what Keras needs to compute with JAX


@contextlib.contextmanager
def faster_imports() -> Iterator[None]:
    """Hide optional libraries from TensorFlow and Keras if these are first imported within the block.

    TensorFlow and Keras then work as on a machine where these libraries are not installed. All other code can import
    them as usual. Importing TensorFlow takes about two seconds less if all of them are installed. Afterwards,
    `keras.wrappers` does not work in this process.
    """
    finder = _Hide()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Hide(MetaPathFinder):
    """Finds no module, but ends the search for an optional one while TensorFlow or Keras is being imported."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in OPTIONAL or not (_is_being_imported("tensorflow") or _is_being_imported("keras")):
            return None
        if fullname in OF_JAX and "keras.src.backend.jax" in sys.modules:
            return None
        raise ModuleNotFoundError(f"No module named '{fullname}'", name=fullname)


def _is_being_imported(name: str) -> bool:
    # The import system itself uses this attribute to recognize modules that are not complete yet.
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)
