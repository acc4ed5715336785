"""Pictures of the page for the README: `python -m tests.browser.shots RESULTS OUT` draws page-desktop.png and page-phone.png, each under 300 kB."""

import base64
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser.chrome import browser, look

LIMIT = 300_000
"""Bytes of one picture."""


def picture(driver, width: int, height: int, dark: bool = False, top: int = 0, scale: float = 1) -> bytes:
    """A PNG of `height` CSS pixels from `top`, of few colours, so it stays small. Raises ValueError where it is above LIMIT."""
    look(driver, width, height, dark, scale)
    clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip, "captureBeyondViewport": True})
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB").quantize(96, dither=Image.Dither.NONE)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    if out.tell() > LIMIT:
        raise ValueError(f"{out.tell()} bytes, more than {LIMIT}: take a lower picture")
    return out.getvalue()


def main(results: Path, out: Path) -> None:
    """Write the report of `results` and both pictures into `out`."""
    from bench.report import page, table

    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "index.html"
        file.write_text(page.html(table.build(results)))
        out.mkdir(parents=True, exist_ok=True)
        with browser(Path(temporary) / "profile") as driver:
            driver.get(file.as_uri())
            (out / "page-desktop.png").write_bytes(picture(driver, 1400, 1750))
            (out / "page-phone.png").write_bytes(picture(driver, 390, 1500, scale=1.5))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
