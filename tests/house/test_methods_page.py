"""docs/methods.md is what the code says of the methods."""

from pathlib import Path

from bench.measure import method_pages

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == method_pages.markdown() + "\n", "python -m bench methods --markdown > docs/methods.md"
