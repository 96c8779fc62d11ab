"""A page in the browser on which a prompt becomes a clip."""

from __future__ import annotations

import logging

from video.app import build_page, serve
from video.commands.options import ModelOptions

log = logging.getLogger(__name__)
EXAMPLE = "a seven moving up and right, fast"


def app(model: ModelOptions, port: int | None = None, open_browser: bool = False) -> None:
    """Show a page on this machine, at 127.0.0.1, on which a prompt becomes a clip.

    Args:
        model: which one.
        port: of the page; default: the first free one from 7860 on.
        open_browser: open the page in a browser.

    Raises:
        FileNotFoundError, ValueError: there is no such model, or it is damaged.
        ModuleNotFoundError: gradio is not there.
        OSError: the port is taken.
    """
    page = build_page(model.load(), EXAMPLE if model.model is None else "")
    address = serve(page, port, opens_browser=open_browser)
    log.info("The page is at %s; interrupt to end.", address)
    page.block_thread()
