"""The user's browser."""

import contextlib
import webbrowser


def open_page(url: str) -> None:
    """Show the page in the user's browser; nothing happens where there is none."""
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open_new_tab(url)
