"""Makes the pictures of docs/report.md: `python docs/draw_report.py` in a clone, after `make train` and `make browser`.

Two short runs of the sample configs at two learning rates, their pages, and those in Chromium.
"""

import base64
import shutil
import subprocess
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

HERE = Path(__file__).parent
ROOT = HERE.parent
CONFIGS = ROOT / "examples" / "mosaic_photon" / "configs"
OUT = ROOT / "outputs" / "report_pictures"
RUNS = {"lr-8e-4": "8e-4", "lr-3e-3": "3e-3"}
FLAGS = (
    "--training.steps=150",
    "--training.seq_len=128",
    "--validation.seq_len=128",
    "--validation.freq=15",
    "--validation.steps=2",
    "--metrics.log_freq=1",
)
PICTURES = {
    # file: page, width, height, scheme
    "report_desktop.png": ("lr-8e-4/report.html", 1280, 900, "light"),
    "report_phone.png": ("lr-8e-4/report.html", 390, 900, "dark"),
    "report_two.png": ("report.html", 1280, 760, "light"),
}


def train(name: str, lr: str) -> None:
    """A run of the sample configs, unless it is there."""
    command = [sys.executable, "-m", "mosaic_photon.cli", "train"]
    command += [str(CONFIGS / "mosaic_job.toml"), str(CONFIGS / "mosaic_dataloader.toml"), "--", *FLAGS]
    command += [f"--optimizer.lr={lr}", f"--job.dump_folder={OUT / name}"]
    if not (OUT / name / "run.json").exists():
        subprocess.run(command, cwd=ROOT, check=True)


def report(*names: str) -> None:
    folders = [str(OUT / name) for name in names]
    subprocess.run([sys.executable, "-m", "mosaic_photon.cli", "report", *folders], cwd=ROOT, check=True)


def open_browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def picture(browser: webdriver.Chrome, page: str, width: int, height: int, scheme: str) -> bytes:
    """The top of a page, as PNG."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get((OUT / page).as_uri())
    ready = "return document.documentElement.dataset.ready === 'true' && Bokeh.documents.every((one) => one.is_idle)"
    WebDriverWait(browser, 120).until(lambda driver: driver.execute_script(ready))
    return base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])


def main() -> None:
    for name, lr in RUNS.items():
        train(name, lr)
        report(name)
    report(*RUNS)
    browser = open_browser()
    for file, (page, width, height, scheme) in PICTURES.items():
        (HERE / file).write_bytes(picture(browser, page, width, height, scheme))
    browser.quit()


if __name__ == "__main__":
    main()
