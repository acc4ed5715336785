"""Why a run failed is one line that a terminal can show, whatever a method's author put into the message."""

import pytest

from bench.train import reasons


@pytest.mark.parametrize("message", ["a\x1b[2Jb", "two\nlines", "bell\x07", "back\x08space", "‮turned", "x" * 5000])
def test_a_reason_is_one_line_without_control_characters(message):
    for error in (ValueError(message), OSError(28, f"No space {message}", f"/results/{message}")):
        said = reasons.reason(error)
        assert said and said.isprintable() and len(said) < 1000
