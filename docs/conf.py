"""How Sphinx builds these pages: `sphinx-build -W --keep-going docs docs/_build`. Nothing is fetched."""

from importlib.metadata import version as installed_version

project = "django-executors"
author = "The django-executors contributors"
copyright = "the django-executors contributors"  # noqa: A001 - Sphinx asks for this name
release = version = installed_version("django-executors")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"django-executors {release}"
