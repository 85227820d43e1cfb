"""The server's page in a real browser: what it shows and asks, and the screenshots in docs/.

python experiments/serve_page.py EXPORT --chromium /usr/bin/chromium

Of a calibrated export of the embedded data with a first look, for which digits on photographs are
made. At 375 and 1440 px, light and dark: every card has the export's own answer, the budget's
slider classifies anew, keys are enough, nothing is asked elsewhere, nothing is wider than the
window. Writes `docs/serve_375.png` and `docs/serve_1440.png`; ends with 1 if something is not as
expected. Needs playwright.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from PIL import Image

from drnet_jax.data.digits_on_photos import compose
from drnet_jax.runtime.command_line import CommandLine, a_path
from drnet_runtime import AdaptiveModel
from tests.pictures import png
from tests.serving import Running, serving

ROOT = Path(__file__).parents[1]
NUM_PICTURES = 12
# Width, height, colours; and the picture in docs/ that is taken there.
VIEWS = (
    (1440, 1090, "light", "serve_1440.png"),
    (1440, 1000, "dark", None),
    (375, 812, "light", None),
    (375, 1100, "dark", "serve_375.png"),
)
_BROKEN = "broken.png"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=a_path, help="directory that --mode=export wrote")
    parser.add_argument("--chromium", type=a_path, help="the browser; default: playwright's own")
    return parser.parse_args(arguments)


def main() -> int:
    given = parse(sys.argv[1:])
    from playwright.sync_api import sync_playwright

    model = AdaptiveModel.load(given.export)
    files = {f"digit_{i}.png": png(x) for i, x in enumerate(compose("test", NUM_PICTURES)["image"])}
    problems: list[str] = []
    with serving(given.export) as server, sync_playwright() as playwright:
        options = {"executable_path": str(given.chromium)} if given.chromium else {}
        browser = playwright.chromium.launch(args=["--no-sandbox"], **options)
        for width, height, colours, name in VIEWS:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=colours,
                has_touch=width < 500,
                is_mobile=width < 500,
            )
            found = check(context.new_page(), server, model, files, name)
            problems += [f"{width} px, {colours}: {problem}" for problem in found]
            context.close()
        browser.close()
    print(f"{len(VIEWS)} views, {len(problems)} problems: {problems}")
    return int(bool(problems))


def check(
    page: Any, server: Running, model: AdaptiveModel, files: dict[str, bytes], name: str | None
) -> list[str]:
    """Problems of one view, whose screenshot becomes `docs/name`."""
    problems: list[str] = []
    home = f"http://127.0.0.1:{server.port}/"
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda asked: outside(asked.url, home, problems))
    page.goto(home)
    page.locator("#budget").wait_for()
    points = server.ask("/model").json["points"]
    default = points[int(page.locator("#slider").input_value())]["lam"]
    choose(page, files)
    problems += wrong_cards(page, model, files, default)
    if page.evaluate("() => document.documentElement.scrollWidth > innerWidth"):
        problems.append("something is wider than the window")
    if name is not None:
        page.mouse.move(0, 0)
        write(page.screenshot(), ROOT / "docs" / name)
    saved = page.locator("#saved").inner_text()
    # By keys alone, to the cheapest budget.
    page.locator("#slider").focus()
    page.keyboard.press("Home")
    settled(page)
    problems += wrong_cards(page, model, files, points[0]["lam"])
    if page.locator("#saved").inner_text() == saved:
        problems.append("the cheapest budget saves as much as the first")
    choose(page, {_BROKEN: b"no picture"})
    if "no picture of a known format" not in page.locator(".card").first.inner_text():
        problems.append("a broken picture is not said to be one")
    if page.locator("#status").inner_text() != f"{len(files)} pictures done, 1 not classified":
        problems.append("a broken picture is not said where screen readers listen")
    page.locator("#clear").focus()
    page.keyboard.press("Enter")
    if page.locator(".card").count() or page.evaluate("() => document.activeElement.id") != "files":
        problems.append("clearing by key does not lead back to the pictures")
    return problems


def outside(address: str, home: str, problems: list[str]) -> None:
    if not address.startswith((home, f"blob:{home}")):
        problems.append(f"asks {address}")


def choose(page: Any, files: dict[str, bytes]) -> None:
    before = page.locator(".card").count()
    page.set_input_files(
        "#files",
        [{"name": n, "mimeType": "image/png", "buffer": content} for n, content in files.items()],
    )
    page.locator(".card").nth(before + len(files) - 1).wait_for()
    settled(page)


def settled(page: Any) -> None:
    """Waits until no card is asked for, and what moves has moved."""
    page.wait_for_timeout(50)
    while page.locator(".card.busy").count():
        page.wait_for_timeout(20)
    page.wait_for_timeout(450)


def wrong_cards(page: Any, model: AdaptiveModel, files: dict[str, bytes], lam: float) -> list[str]:
    """Cards that do not say what the export does."""
    problems = []
    for (name, content), card in zip(
        files.items(), reversed(page.locator(".card").all()), strict=True
    ):
        result = model.classify(model.decode(content)[None], lam)
        text = " ".join(card.inner_text().split())
        label = model.classes[int(result.labels[0])]
        share = f"{100 * int(result.macs[0]) / model.largest_macs:.0f} % of the largest"
        looks = "was needed" if result.looks[0] == 2 else "was enough"
        if not (text.startswith(f"{label} ") and name in text and share in text and looks in text):
            problems.append(f"{name} at lambda {lam:.4g} should be {label}, {share}: {text}")
    return problems


def write(screenshot: bytes, path: Path) -> None:
    """As a PNG of 256 colours, which is a third of the size."""
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"wrote {path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
