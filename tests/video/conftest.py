"""The model that most tests of video draw from, imported where it is asked for: `make gpu` has not all its packages."""

import pytest


@pytest.fixture(scope="module")
def model():
    from tests.video.tiny import tiny_model

    return tiny_model()
