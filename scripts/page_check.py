#!/usr/bin/env python3
"""page_check.py CHROMIUM URL FOLDER idle|busy: opens the daemon's page in headless Chromium, light and dark, wide and narrow.

Saves what it looks like to FOLDER, and fails where nothing is drawn that should be (or something that should not),
where the page says an error, or where it does not fit its window. Needs nothing but Python.
"""

from __future__ import annotations

import base64
import collections
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

# A watchdog, not an expectation.
WATCHDOG_S = 120
FLAGS = (
    "--headless=shell --no-sandbox --no-zygote --in-process-gpu --use-gl=angle --use-angle=swiftshader --hide-scrollbars "
    "--enable-unsafe-swiftshader --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--remote-debugging-pipe about:blank"
).split()
# Pixels that the drawing in a chart has at least.
DRAWN = 20
CHARTS = ("hits", "tiers", "bytes", "live")


class Browser:
    """One Chromium, spoken to over two pipes."""

    def __init__(self, program: str, profile: str) -> None:
        read, self._write = os.pipe()
        self._read, write = os.pipe()

        def place() -> None:
            # Chromium takes commands on 3 and answers on 4; by way of higher numbers, so that neither overwrites the other.
            os.dup2(os.dup2(read, 100), 3)
            os.dup2(os.dup2(write, 101), 4)

        self.log = tempfile.TemporaryFile()
        command = [program, *FLAGS[:-1], f"--user-data-dir={profile}", FLAGS[-1]]
        self._process = subprocess.Popen(command, close_fds=False, preexec_fn=place, stderr=self.log)
        os.close(read)
        os.close(write)
        self._number = 0
        self._buffer = b""
        self.session: str | None = None
        self.complaints: list[str] = []

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(answer["params"]))

    def _next(self) -> Any:
        while b"\0" not in self._buffer:
            data = os.read(self._read, 1 << 20)
            if not data:
                self.log.seek(0)
                raise SystemExit(f"Chromium went: {self.log.read().decode(errors='replace')[-2000:]}")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def open_tab(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def value(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise SystemExit(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        began = time.monotonic()
        while not self.value(expression):
            if time.monotonic() - began > WATCHDOG_S:
                raise SystemExit(f"never became true: {expression}; the page says {self.value('document.body.innerText')}")
            time.sleep(0.05)

    def picture(self, **parameters: Any) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", **parameters)["data"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def pixels(png: bytes) -> collections.Counter[tuple[int, ...]]:
    """How often each colour is in a picture of 8 bits a channel."""
    at, packed, width, channels = 8, b"", 0, 0
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        data = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _, depth, colour = struct.unpack(">IIBB", data[:10])
            channels = {2: 3, 6: 4}[colour]
            assert depth == 8
        elif kind == b"IDAT":
            packed += data
        at += length + 12
    raw, stride = zlib.decompress(packed), width * channels
    before, found = bytearray(stride), collections.Counter[tuple[int, ...]]()
    for start in range(0, len(raw), stride + 1):
        how, line = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for i in range(stride) if how else ():
            left, above = (line[i - channels] if i >= channels else 0), before[i]
            corner = before[i - channels] if i >= channels else 0
            paeth = min((left, above, corner), key=lambda value: abs(left + above - corner - value))
            line[i] = line[i] + (0, left, above, (left + above) // 2, paeth)[how] & 255
        found.update(tuple(line[i : i + 3]) for i in range(0, stride, channels))
        before = line
    return found


def near(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return sum(abs(a - b) for a, b in zip(one, other)) < 48


def colour(browser: Browser, name: str) -> tuple[int, ...]:
    text = browser.value(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
    return tuple(bytes.fromhex(text[1:]))


def check(browser: Browser, folder: Path, name: str, busy: bool) -> None:
    browser.until("(document.body?.dataset.drawn ?? 0) >= 4")
    if busy:
        browser.until("['hits', 'bytes', 'live'].every(id => document.querySelectorAll('#' + id + ' path').length >= 2)")
        row = "[...document.querySelectorAll('#holders tr')].find(row => row.innerText.includes('long prompt'))"
        browser.until(f"{row} !== undefined")
        browser.value(f"{row}.querySelector('button').click()")
        browser.until("document.querySelectorAll('#holders .keys div').length >= 2")
    (folder / f"{name}.png").write_bytes(browser.picture(captureBeyondViewport=True))
    paper = colour(browser, "paper")
    assert (sum(paper) < 3 * 128) == ("dark" in name), f"{name}: the paper is {paper}"
    assert browser.value("document.documentElement.scrollWidth <= innerWidth"), f"{name}: wider than its window"
    assert browser.value("document.getElementById('state').textContent") == "serving", name
    assert browser.value("document.querySelectorAll('#counts div').length") > 20, name
    spaces = browser.value("[...document.querySelectorAll('#spaces tr')].map(row => row.innerText).join('/')")
    assert ("llama-70b" in spaces) == busy and ("tokens a chunk" in spaces) == busy, f"{name}: {spaces}"
    misses = browser.value("document.getElementById('misses').textContent")
    assert ("all spaces" in misses and "missed" in misses and "never stored" in misses) == busy, f"{name}: {misses}"
    holders = browser.value("document.getElementById('holders-now').textContent")
    assert holders.endswith("cannot be evicted" if busy else "no session holds anything"), f"{name}: {holders}"
    for chart in CHARTS:
        box = browser.value(
            f"(b => ({{x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height}}))"
            f"(document.getElementById('{chart}').getBoundingClientRect())"
        )
        found = pixels(browser.picture(clip={**box, "scale": 1}, captureBeyondViewport=True))
        card, hues = colour(browser, "card"), [colour(browser, hue) for hue in ("one", "two", "three")]
        drawn = sum(count for pixel, count in found.items() if any(near(pixel, hue) for hue in hues))
        assert found[card] * 2 > found.total(), f"{name}: {chart} has no ground"
        if busy:
            assert drawn >= DRAWN, f"{name}: nothing is drawn in {chart}"
        elif chart in ("hits", "tiers"):
            # The others draw that there is nothing.
            assert drawn == 0, f"{name}: {drawn} pixels are drawn in {chart}"
        assert found.total() - found[card] - drawn > 200, f"{name}: {chart} has no words"


def main() -> None:
    program, url, out, state = sys.argv[1:]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(program, profile)
        try:
            browser.open_tab()
            for scheme in ("light", "dark"):
                for width, size in ((1180, "wide"), (400, "narrow")):
                    features = [{"name": "prefers-color-scheme", "value": scheme}]
                    browser.call("Emulation.setEmulatedMedia", features=features)
                    browser.call(
                        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
                    )
                    browser.call("Page.navigate", url=url)
                    check(browser, folder, f"{state}-{scheme}-{size}", state == "busy")
            assert not browser.complaints, browser.complaints
        finally:
            browser.close()
    print(f"the page is drawn when {state}: {folder}/{state}-*.png")


if __name__ == "__main__":
    main()
