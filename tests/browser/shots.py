"""Pictures of the page for the docs: `python -m tests.browser.shots RESULTS OUT` draws it on a desk, in the dark, on a phone and in print, each
under 300 kB.
"""

import base64
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

from tests.browser.chrome import browser, look

LIMIT = 300_000
"""Bytes of one picture."""
NAMES = ("page-desktop.png", "page-dark.png", "page-phone.png", "page-print.png")


def picture(driver, width: int, height: int, dark: bool = False, top: int = 0, scale: float = 1, media: str = "") -> bytes:
    """A PNG of `height` CSS pixels from `top`, of few colours, so it stays small. Raises ValueError where it is above LIMIT."""
    look(driver, width, height, dark, scale)
    if media:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
    clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip, "captureBeyondViewport": True})
    image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    if media:
        image = ImageOps.expand(image, 60, "white")  # the margins of the sheet
    image = image.quantize(96, dither=Image.Dither.NONE)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    if out.tell() > LIMIT:
        raise ValueError(f"{out.tell()} bytes, more than {LIMIT}: take a lower picture")
    return out.getvalue()


def main(results: Path, out: Path) -> None:
    """Draw the page of `results` into `out`."""
    from bench.report import page, table

    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "index.html"
        file.write_text(page.html(table.build(results)))
        out.mkdir(parents=True, exist_ok=True)
        with browser(Path(temporary) / "profile") as driver:
            driver.get(file.as_uri())
            desk, phone = {"width": 1440, "height": 1750}, {"width": 390, "height": 1500, "scale": 1.5}
            sheet = {"width": 674, "height": 1003, "media": "print"}  # A4 at 96 dpi
            for name, view in zip(NAMES, (desk, {**desk, "dark": True}, phone, sheet), strict=True):
                (out / name).write_bytes(picture(driver, **view))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
