"""As the video tests: one thread, fixed seeds."""

from tests.video.conftest import _one_thread, _seed  # noqa: F401
