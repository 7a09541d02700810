"""Open executed notebooks as web pages at the width of a laptop and of a phone, and report
problems.

    python scripts/check_pages.py runs/notebooks/*.ipynb

Problems are errors and warnings in the outputs, pictures that cannot be shown, and text, tables and
pictures that are wider than the page. The browser is a headless Chromium or Chrome without internet
access: pictures on other servers are not checked."""

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from nbconvert import HTMLExporter

from unet_utils.platform.files import user_path

WIDTHS = {"laptop": 1280, "phone": 390}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLAYWRIGHT = "ms-playwright/chromium*/chrome-*/*chrom*e*"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no internet access
)

PROBE = """<script>
addEventListener("load", () => {
  const page = document.documentElement, found = [];
  const stderr = '[data-mime-type="application/vnd.jupyter.stderr"]';
  for (const output of document.querySelectorAll(stderr))
    found.push("error or warning: " + output.innerText.trim().split("\\n").pop());
  for (const image of document.images)
    if (!/^https?:/.test(image.src) && !image.naturalWidth)
      found.push("picture does not show: " + image.alt);
  // Outputs cut off what is too wide, and Markdown hides it in a scroll box. Long lines of code are
  // allowed to.
  const places = ".jp-OutputArea-output *, .jp-MarkdownOutput *";
  const over = box => Math.round(box.getBoundingClientRect().right - page.clientWidth);
  const shown = [...document.querySelectorAll(places)];
  const widest = shown.reduce((a, b) => (over(b) > over(a) ? b : a), document.body);
  const excess = Math.max(over(widest), page.scrollWidth - page.clientWidth);
  const text = widest.innerText.slice(0, 40);
  if (excess > 1) found.push(`${excess} pixels too wide: <${widest.localName}> ${text}`);
  parent.postMessage([window.name, document.querySelectorAll(".jp-Cell").length, found], "*");
});
</script>"""

# A browser window cannot be as narrow as a phone, but a frame in it can.
HOST = """<!DOCTYPE html><pre></pre><script>
const seen = {};
addEventListener("message", ({data: [name, cells, found]}) => {
  seen[name] = {cells, found};
  document.querySelector("pre").textContent = JSON.stringify(seen);
});
</script>"""


def find_browser() -> str | None:
    """Return a Chromium or Chrome, from the path or installed by Playwright."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    files = [str(file) for file in sorted(cache.glob(PLAYWRIGHT)) if os.access(file, os.X_OK)]
    return files[0] if files else None


def check_page(notebook: Path, browser: str, timeout: float = 120) -> list[str]:
    """Convert an executed notebook to HTML, open it at both widths, and return the problems.

    Raises:
        RuntimeError: the browser did not report on both widths.
    """
    page = HTMLExporter().from_filename(str(notebook))[0]
    host = HOST
    for name, width in WIDTHS.items():
        style = f"width: {width}px; height: 800px; border: 0"
        host += f'<iframe name="{name}" src="page.html" style="{style}"></iframe>'
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "page.html").write_text(page.replace("</body>", PROBE + "</body>"), "utf-8")
        (Path(folder) / "host.html").write_text(host, "utf-8")
        command = [browser, *FLAGS]
        command += [f"--user-data-dir={folder}/profile", "--window-size=1400,900"]
        command += ["--virtual-time-budget=20000", "--dump-dom"]
        command.append((Path(folder) / "host.html").as_uri())
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout
        )
    text = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    seen = json.loads(html.unescape(text[1])) if text and text[1] else {}
    if set(seen) != set(WIDTHS) or not all(report["cells"] for report in seen.values()):
        raise RuntimeError(f"{browser} did not show {notebook}: {done.stderr[-1000:]}")
    problems = []
    for name, width in WIDTHS.items():
        problems += [f"{name} ({width} pixels): {problem}" for problem in seen[name]["found"]]
    return problems


def main() -> None:
    """Check the notebooks named on the command line; exit with status 1 if there are problems."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="+", type=user_path, help="executed notebooks")
    notebooks = parser.parse_args().notebooks
    browser = find_browser()
    if not browser:
        sys.exit(
            f"No browser found: install Chromium, so that one of {', '.join(NAMES)} is on the path"
        )
    problems = {notebook: check_page(notebook, browser) for notebook in notebooks}
    for notebook, found in problems.items():
        print("\n  ".join([f"{notebook}: {'good' if not found else ''}", *found]))
    sys.exit(any(problems.values()))


if __name__ == "__main__":
    main()
