"""Take the picture of the page to listen to: `docs/listen.png`, by a headless Chromium.

    make demo
    .venv/bin/python -m docs.screenshot results/demo/1234 --out=docs/listen.png

The browser is that of the tests: apt-get install chromium-headless-shell, or
python -m playwright install chromium. `--dark` takes it in dark colours.
"""

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1100, "height": 1200}
COLOURS = 128


def find_browser(playwright: Any) -> Path | None:
    """Return the Chromium that is installed, None if there is none."""
    programs = [*map(shutil.which, PROGRAMS), playwright.chromium.executable_path]
    found = (Path(program) for program in programs if program)
    return next((path for path in found if path.is_file()), None)


def launch(playwright: Any) -> Any:
    """Start the Chromium that is installed; sound needs a gesture, as for a user."""
    options = ["--no-sandbox"]  # root has none
    options += ["--autoplay-policy=document-user-activation-required"]
    program = find_browser(playwright)
    return playwright.chromium.launch(executable_path=program, args=options)


def take(run: Path, out: Path, dark: bool) -> None:
    """Picture the page of a run with its worst example open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        scheme = "dark" if dark else "light"
        tab = launch(playwright).new_page(viewport=SIZE, color_scheme=scheme)
        tab.goto((run / "listen.html").absolute().as_uri())
        tab.wait_for_function("[...document.images].every((i) => i.naturalWidth)")
        tab.evaluate("choose(1), seek(duration() / 3)")
        picture = tab.screenshot()
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run, after its test")
    parser.add_argument("--out", type=Path, default=Path("docs/listen.png"))
    parser.add_argument("--dark", action="store_true")
    take(**vars(parser.parse_args()))
