# SPDX-License-Identifier: GPL-2.0
"""A browser without a window: Chromium, driven through a pair of pipes by its DevTools protocol.

What a page complains of, and what it asks anybody for, is kept with it. No name is looked up, so nothing is fetched
from farther away than this machine.
"""

import base64
import json
import os
import subprocess
import tempfile

# Until then, whatever is waited for has come even in a page of megabytes.
PATIENCE = 120


class Browser:
    """A Chromium with a new profile. It ends with the block."""

    def __enter__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs, self.to = os.pipe()
        self.answers, answer = os.pipe()
        # It reads commands from descriptor 3, and answers on 4.
        wired = 'exec 3<&"$0" 4>&"$1"; shift; exec timeout "$@"'
        self.process = subprocess.Popen(
            [
                *("bash", "-c", wired, str(theirs), str(answer), str(10 * PATIENCE), "chromium-headless-shell"),
                # Whoever is root here has no other sandbox than the root they are in.
                *("--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--force-color-profile=srgb"),
                *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={self.profile.name}"),
            ],
            pass_fds=[theirs, answer],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answer)
        self.unread = b""
        self.number = 0
        self.pages = {}
        return self

    def __exit__(self, *_):
        # With that, it ends.
        os.close(self.to)
        self.process.wait()
        os.close(self.answers)
        self.profile.cleanup()

    def say(self, method, session=None, **params):
        """Sends a command, and returns its number."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": params}
        if session:
            command["sessionId"] = session
        text = json.dumps(command).encode() + b"\0"
        while text:
            text = text[os.write(self.to, text) :]
        return self.number

    def hear(self):
        """The next message."""
        while b"\0" not in self.unread:
            more = os.read(self.answers, 1 << 20)
            if not more:
                raise RuntimeError("the browser has ended")
            self.unread += more
        message, _, self.unread = self.unread.partition(b"\0")
        message = json.loads(message)
        page = self.pages.get(message.get("sessionId"))
        if page and "method" in message:
            page.heard(message["method"], message["params"])
        return message

    def ask(self, method, session=None, **params):
        """Sends a command, and returns what it is answered."""
        number = self.say(method, session, **params)
        while True:
            message = self.hear()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def open(self, url, width=1200, height=800):
        """A new page, once all of it is there."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.ask(f"{domain}.enable")
        page.ask("Emulation.setScrollbarsHidden", hidden=True)
        page.size(width, height)
        page.ask("Page.navigate", url=url)
        while not page.loaded:
            self.hear()
        return page


class Page:
    """A page that is open."""

    def __init__(self, browser, session):
        self.browser, self.session = browser, session
        self.loaded = False
        # What it has complained of; and the addresses that it has asked for.
        self.complaints, self.requests = [], []

    def heard(self, event, params):
        if event == "Page.loadEventFired":
            self.loaded = True
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.complaints.append(" ".join(str(arg.get("value", arg["type"])) for arg in params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Page.javascriptDialogOpening":
            self.complaints.append(f"it asks: {params['message']}")
            self.browser.say("Page.handleJavaScriptDialog", self.session, accept=False)

    def ask(self, method, **params):
        return self.browser.ask(method, self.session, **params)

    def value(self, expression):
        """What a JavaScript expression, or the promise that it is, comes to."""
        answer = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, expression):
        """Until this is so, looking before each new picture of the page."""
        come = self.value(
            f"""new Promise(done => {{
                const until = performance.now() + {PATIENCE} * 1000;
                const look = () => {{
                    if ({expression}) return done(true);
                    if (performance.now() > until) return done(false);
                    requestAnimationFrame(look);
                }};
                look();
            }})"""
        )
        if not come:
            raise RuntimeError(f"this has not come: {expression}")

    def size(self, width, height, scheme="light"):
        """Changes the window, and whether its user wants it dark."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path):
        """Takes a picture of what is in the window, of 256 colours at most."""
        data = base64.b64decode(self.ask("Page.captureScreenshot")["data"])
        with open(path, "wb") as file:
            subprocess.run(["pngquant", "--speed", "1", "--strip", "-"], input=data, stdout=file, check=True)
