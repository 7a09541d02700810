"""What tests of pages in a browser have in common."""

from pathlib import Path

from helpers import require
from selenium.webdriver.support.ui import WebDriverWait

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"


def page_of(*figures):
    body = "".join(figure.html for figure in figures)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Page</title>'
        '<meta name="viewport" content="width=device-width"></head>'
        f"<body><main><h1>Page</h1>{body}</main></body></html>"
    )


def one(driver, selector):
    return driver.find_element("css selector", selector)


def told(driver):
    return one(driver, ".told").text


def wait_until(condition):
    WebDriverWait(None, 10, poll_frequency=0.05).until(lambda _: condition())


def serious(driver):
    """What axe-core calls serious or critical in the page."""
    require(AXE.exists(), "axe-core is not installed: npm ci --prefix tests")
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    found = driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert len(found["passes"]) > 10
    problems = [item for item in found["violations"] if item["impact"] in ("serious", "critical")]
    return [(item["id"], [node["html"] for node in item["nodes"]]) for item in problems]


def wait_until_read(driver):
    """Wait until the inspectors of the page have read their pictures."""
    unread = "return document.querySelector('.unet-inspector .frame:not([tabindex])')"
    wait_until(lambda: driver.execute_script(unread) is None)
