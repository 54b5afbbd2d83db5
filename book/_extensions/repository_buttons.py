"""A Sphinx extension: the repository's buttons are there if `_config.yml` names a repository, and only then."""

from __future__ import annotations

from typing import Any


def choose_buttons(_app: Any, config: Any) -> None:
    """Set the theme's options for buttons from the repository's address."""
    options = config.html_theme_options
    named = bool(options.get("repository_url"))
    options |= {"use_repository_button": named, "use_edit_page_button": named}
    if not named:
        options["launch_buttons"] = {}


def setup(app: Any) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("config-inited", choose_buttons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
