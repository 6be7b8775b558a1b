"""`hf:NAME`: a hub on this machine answers the real `datasets` package; then its cache alone, without a network."""

import http.server
import io
import json
import os
import subprocess
import sys
import threading

import pytest

COMMIT = "1" * 40
LOAD = """
import json, sys
from fedfisher_jax import data
told = []
for name in sys.argv[1:]:
    try:
        found = data.load("hf:" + name)
        told.append([found.train_x.tolist(), found.test_y.tolist(), found.classes, found.name])
    except ValueError as error:
        told.append(str(error))
print("told", json.dumps(told))
"""


def parquet(count):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"a": [n / 4 for n in range(count)], "b": [n % 3 for n in range(count)]}
    columns["label"] = [("cat", "dog")[n % 2] for n in range(count)]
    written = io.BytesIO()
    parquet.write_table(arrow.table(columns), written)
    return written.getvalue()


@pytest.fixture
def hub():
    """The address of a hub that has one data set, someone/flowers, of two files."""
    pytest.importorskip("datasets", exc_type=ImportError)
    files = {f"data/{name}-00000-of-00001.parquet": parquet(n) for name, n in (("train", 40), ("test", 10))}
    listed = [{"type": "file", "path": name, "size": len(files[name]), "oid": COMMIT} for name in files]
    folder = {"type": "directory", "path": "data", "size": 0, "oid": COMMIT}

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            name = path.partition(COMMIT + "/")[2]
            if "someone/flowers" not in path:
                self.answer(status=401, X_Error_Code="RepoNotFound")
            elif name in files:
                self.answer(files[name], X_Repo_Commit=COMMIT, ETag=f'"{name.replace("/", "-")}"')
            elif "/resolve/" in path:
                self.answer(status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            elif "/tree/" in path:
                self.answer(json.dumps(listed if name else [folder]).encode())
            else:
                self.answer(json.dumps({"id": "someone/flowers", "sha": COMMIT, "siblings": []}).encode())

        do_HEAD = do_GET

        def answer(self, body=b"", status=200, **headers):
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *told):
            del told

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_name_is_downloaded_once_and_then_needs_no_network(hub, tmp_path):
    def load(*names, **variables):
        given = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub, **variables}
        done = subprocess.run([sys.executable, "-c", LOAD, *names], env=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.rpartition("told ")[2])

    first, missing, nowhere = load("someone/flowers", "someone/none", "./none")
    x, y, classes, name = first
    assert (len(x), len(x[0]), y, classes, name) == (40, 2, [0, 1] * 5, ["cat", "dog"], "flowers")
    assert abs(sum(row[0] for row in x)) < 1e-4  # standardised
    assert "the hub has no data set of this name" in missing and "got no folder none, expected" in nowhere
    again, configured, other, unknown = load(
        "someone/flowers", "someone/flowers:default", "someone/flowers:other", "someone/none", HF_HUB_OFFLINE="1"
    )
    assert again == first and configured[:3] == first[:3]
    assert "Available configs in the cache: ['default']" in other
    assert "the hub cannot be reached, and there is no copy in" in unknown
