"""Sphinx: the site from the Markdown files of the repository, built by ``bash ci/docs.sh``.

The source directory is the root of the repository, so that a link between two files is the same on
the site, in an editor and where the repository is browsed.
"""

import fused_optim

project = "fused_optim"
release = version = fused_optim.__version__
author = "The fused_optim authors"
project_copyright = f"{author}, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax from a package: the pages need no network to be read
]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "benchmarks/results/*.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "examples/recipes/README.md",
]
exclude_patterns = [".*", "**/__pycache__", "docs/_build", "build", "dist"]

# torch and Python are named without their inventories, which need the network: no nitpicky
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
highlight_language = "text"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has the defaults, the docstring the meaning
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"fused_optim {release}"
html_extra_path = ["index.html"]  # leads from the root of the site to docs/index.html
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
