"""The README's picture: what matters of a demonstration's report, as one PNG. Needs Chromium.

python scripts/demo_picture.py demo/report.html docs/demo.png
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

WIDTH, SHOWN_WIDTH, COLOURS = 1140, 1000, 128
# Headline and numbers, the first figure of the limit, the maps; without tables that the README has itself.
STYLE = """<style>
nav, section:not(#limit):not(#reconstructions), figure ~ figure, table {display: none !important}
section {margin-top: 2rem !important}
</style></head>"""
BROWSER = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")


def main() -> None:
    report, out = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        page, shot = Path(name) / "page.html", Path(name) / "shot.png"
        page.write_text(report.read_text().replace("</head>", STYLE, 1))
        options = ("--force-device-scale-factor=1.5", f"--window-size={WIDTH},4000", f"--screenshot={shot}")
        subprocess.run([*BROWSER, *options, page.as_uri()], check=True, capture_output=True)
        image = Image.open(shot).convert("RGB")
    paper = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    content = ImageChops.difference(image, paper).getbbox()
    if content is None:
        raise SystemExit(f"{report}: expected a page with something on it, found an empty one")
    image = image.crop((0, 0, image.width, min(image.height, content[3] + 40)))
    image = image.resize(
        (SHOWN_WIDTH, round(image.height * SHOWN_WIDTH / image.width)), Image.Resampling.LANCZOS
    )
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main()
