"""A page in the browser on which a prompt becomes a clip."""

from video.app.page import build_page, serve

__all__ = ["build_page", "serve"]
