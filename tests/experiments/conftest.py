"""What several files of tests here run under."""

import os
import shutil

import jax
import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def quick_keys():
    """Keys of a kind that is quick to compile; what they give depends on how arrays are spread."""
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    yield
    jax.config.update("jax_default_prng_impl", "threefry2x32")


@pytest.fixture(scope="module")
def browser():
    """A browser; without one a test is skipped, but fails under continuous integration."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if executable is None or sync_playwright is None:
        missing = f"no browser ({', '.join(BROWSERS)})" if executable is None else "no playwright"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    with sync_playwright() as driver:
        # A container seldom allows the sandbox, and often has a small /dev/shm.
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        opened = driver.chromium.launch(executable_path=executable, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def open_file(browser):
    """Returns a function that opens a file without a network; fails if it logs or fetches."""
    contexts, noise = [], []

    def show(file, **settings):
        context = browser.new_context(offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))

        def check(request):
            if request.url != file.as_uri() and not request.url.startswith("data:"):
                noise.append(request.url)

        page.on("request", check)
        page.goto(file.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert not noise
