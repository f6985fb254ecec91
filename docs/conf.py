"""How the documentation is built: `uv run --group docs sphinx-build -W docs docs/_build`."""

project = "mwsis"
copyright = "the mwsis authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.apidoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
default_role = "code"
myst_heading_anchors = 3
# README sections are included where they belong; their headings begin one level down
suppress_warnings = ["myst.header", "ref.python"]
napoleon_use_ivar = True

apidoc_modules = [
    {"path": f"../{package}", "destination": f"api/{package}", "separate_modules": True, "max_depth": 2}
    for package in ("mwsis", "lidar", "camera", "fusion")
]
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_mock_imports = ["mmdet", "mmengine", "mmcv", "rerun", "open3d", "transformers"]
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
