"""A real browser shows the report: no error, no request, light and dark, on a phone, and as a PDF."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from report_inputs import make_comparison

from uq4ct.report import build_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium on this machine (Debian: apt-get install chromium)"
)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
QUIET += ("--disable-background-networking", "--disable-component-update", "--hide-scrollbars")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    compared = make_comparison(
        folder / "cmp", ("lora", "lora+temperature", "uq4ct"), {"tiny": 0.0, "tiny-far": 0.16}, n=40
    )
    build_report([compared], folder / "report.html")
    return folder / "report.html"


def browse(page: str | Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a fresh browser."""
    address = page if isinstance(page, str) else page.as_uri()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(BROWSER), *QUIET, "--enable-logging=stderr", f"--user-data-dir={profile}", *options, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


class Server:
    """Serve a folder on this machine, and note what is asked for."""

    def __init__(self, folder: Path):
        asked: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args, **options):
                super().__init__(*args, directory=str(folder), **options)

            def log_message(self, format: str, *args) -> None:
                asked.append(self.path)

        self.asked = asked
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> tuple[str, list[str]]:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}", self.asked

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_it_opens_without_an_error_in_light_and_dark(page: Path, tmp_path: Path) -> None:
    grounds = {}
    for theme, code in (("light", 1), ("dark", 0)):
        shot = tmp_path / f"{theme}.png"
        options = (f"--blink-settings=preferredColorScheme={code}", f"--screenshot={shot}", "--window-size=1200,1000")
        done = browse(page, *options)
        assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
        image = pixels(shot)
        assert image.shape[:2] == (1000, 1200)
        assert len(np.unique((image * 255).astype(int) @ [65536, 256, 1])) > 50
        grounds[theme] = image[5, 5].mean()
    assert grounds["light"] > 0.95
    assert grounds["dark"] < 0.15


def test_it_does_not_scroll_sideways_on_a_phone(page: Path, tmp_path: Path) -> None:
    """Headless windows are at least 500 px wide, so the page is put into a frame of 390."""
    probe = tmp_path / "probe.html"
    script = (
        "const d = f.contentDocument.documentElement; document.title = 'wide ' + d.scrollWidth + ' of ' + d.clientWidth"
    )
    frame = (
        f'<iframe id="f" width="390" height="844" style="border:0" src="{page.as_uri()}" onload="{script}"></iframe>'
    )
    probe.write_text(f"<!doctype html><body style='margin:0'>{frame}")
    done = browse(probe, "--allow-file-access-from-files", "--dump-dom")
    assert "<title>wide 390 of 390</title>" in done.stdout


def test_it_asks_for_nothing_but_itself(page: Path) -> None:
    with Server(page.parent) as (address, asked):
        done = browse(f"{address}/report.html", "--dump-dom")
    assert "<svg" in done.stdout
    assert set(asked) <= {"/report.html", "/favicon.ico"}  # the browser's own wish, not the page's


def test_it_prints_to_pages(page: Path, tmp_path: Path) -> None:
    browse(page, f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 4 <= pages <= 60
