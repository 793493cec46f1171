"""An S3 server of the tests' own, over HTTP on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any


def stop(process: subprocess.Popen[Any]) -> None:
    """Ask it to end, and make it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class S3Server:
    """A moto S3 server in a process of its own, and a client for it."""

    def __init__(self, log: Path) -> None:
        import boto3

        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with log.open("w") as out:
            command = [sys.executable, "-m", "moto.server", "-p", "0"]
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        self.url = self._wait_for_url(log)
        self.client = boto3.client("s3", endpoint_url=self.url)

    def _wait_for_url(self, log: Path) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            lines = [line for line in log.read_text().splitlines() if "Running on http://" in line]
            if lines:
                url = lines[-1].split("Running on ")[1].strip()
                urllib.request.urlopen(f"{url}/moto-api/", timeout=10)
                return url
            time.sleep(0.05)
        raise RuntimeError(f"the S3 server did not start: {log.read_text()}")

    def upload(self, folder: Path, bucket: str) -> str:
        self.client.create_bucket(Bucket=bucket)
        for path in folder.rglob("*"):
            if path.is_file() and ".locks" not in path.parts:
                self.client.upload_file(str(path), bucket, str(path.relative_to(folder)))
        return f"s3://{bucket}"
