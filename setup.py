"""Packages and package data. All other metadata is in `pyproject.toml`.

`configs/` is a folder at the top of the repository and is installed as the package `efficientnet_tf.configs`.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["efficientnet_tf*"]),
        "efficientnet_tf.configs",
        "efficientnet_tf.configs.recipes",
    ],
    package_dir={"efficientnet_tf.configs": "configs"},
    package_data={
        "efficientnet_tf": ["py.typed"],
        "efficientnet_tf.serving": ["page.html", "page.css", "page.js"],
        "efficientnet_tf.study": ["page.html", "page.js"],
        "efficientnet_tf.visualization": ["*.html", "*.css", "*.js"],
        "efficientnet_tf.configs": ["*.yaml"],
        "efficientnet_tf.configs.recipes": ["*.yaml"],
    },
)
