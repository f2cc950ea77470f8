"""The offline store as other engines read it: pyarrow and DuckDB get the rows that the gateway was told.

A project in replay mode is fed events, asked for predictions and told labels over HTTP; then its three
tables are read by their manifests, and held row by row against what was sent and answered.
"""
import datetime
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gateway import BINARY, model
from onnx import TensorProto, helper, numpy_helper

FEATURES = """
[[source]]
name = "rides"
time = "at"
id = ["ride"]
fields = { ride = "int", zone = "string", at = "time", fare = "float?", paid = "bool", note = "string?" }

[[view]]
name = "zone"
source = "rides"
keys = ["zone"]
windows = ["1h", "24h"]
features = [{ count = true }, { mean = "fare" }, { rate = "paid" }]

[[service]]
name = "price"
version = 1
request = { zone = "string", miles = "float" }
features = [{ request = "miles" }, { view = "zone" }]
"""
START_MS = 1_362_096_000_000  # 2013-03-01
MINUTE_MS = 60_000
COLUMNS = 7


def weighted_sum():
    """[-1, 7] → [-1, 1]: what a price would be."""
    weights = np.linspace(0.5, -0.25, COLUMNS, dtype=np.float32).reshape(COLUMNS, 1)
    return model(
        [
            helper.make_node("IsNaN", ["x"], ["missing"]),
            helper.make_node("Where", ["missing", "zero", "x"], ["whole"]),
            helper.make_node("MatMul", ["whole", "w"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["N", COLUMNS])],
        [("y", TensorProto.FLOAT, ["N", 1])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.zeros((1, COLUMNS), dtype=np.float32), "zero"),
        ],
    )


class Replay:
    """A project in a folder, and what was sent to its gateway and answered."""

    # What a gateway and its commands get beside our environment.
    environment = {}

    def __init__(self, settings=""):
        self.folder = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.folder.name)
        (self.path / "models").mkdir()
        (self.path / "loopgate.toml").write_text('[clock]\nmode = "replay"\n' + settings)
        (self.path / "features.toml").write_text(FEATURES)
        (self.path / "models" / "price.toml").write_text('service = "price"\n')
        (self.path / "price.onnx").write_bytes(weighted_sum())
        self.command("model", "register", str(self.path / "price.onnx"), "--name", "price", "--at-ms", "0")
        self.events, self.predictions, self.labels = [], [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.folder.cleanup()

    def command(self, noun, act, *more):
        """What `loopgate NOUN ACT` prints."""
        command = [BINARY, noun, act, "--project", str(self.path), *more]
        environment = os.environ | self.environment
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def post(self, path, body, at_ms):
        """The JSON answer to a request dated `at_ms`."""
        headers = {"content-type": "application/json", "loopgate-time-ms": str(at_ms)}
        request = urllib.request.Request(
            f"http://{self.address}{path}", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def serve(self, work):
        """Runs `work` against a gateway, which seals when it ends."""
        arguments = [BINARY, "serve", "--project", str(self.path), "--serving-threads", "1"]
        for listener in ["http", "grpc", "admin", "metrics"]:
            arguments += [f"--{listener}", "127.0.0.1:0"]
        with open(self.path / "log", "a") as log:
            environment = os.environ | self.environment
            process = subprocess.Popen(
                arguments, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        try:
            line = process.stdout.readline()
            found = re.search(r"http=(127\.0\.0\.1:\d+)", line)
            assert found, (self.path / "log").read_text()
            self.address = found[1]
            self.wait_until_ready()
            work()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            process.stdout.close()

    def wait_until_ready(self):
        """The model of a project is loaded after the listeners are open."""
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://{self.address}/v2/models/price/ready", timeout=60).close()
                return
            except urllib.error.HTTPError as refused:
                assert time.monotonic() < end, refused
                time.sleep(0.05)

    def ride(self, number, at_ms):
        """An event and the arrival that it is given."""
        return {
            "ride": number,
            "zone": "ABC"[number % 3],
            "at": at_ms - number % 7 * MINUTE_MS,
            "fare": None if number % 5 == 0 else number / 3 - 20,
            "paid": number % 2 == 0,
            "note": f"ride ‹{number}›" if number % 4 else None,
        }

    def feed(self, steps):
        """Events, predictions and labels of some steps of 20 minutes."""
        for step in steps:
            at_ms = START_MS + step * 20 * MINUTE_MS
            rides = [self.ride(3 * step + each, at_ms) for each in range(3)]
            taken = self.post("/v1/events/rides", {"events": rides}, at_ms)
            assert taken["accepted"] == 3, taken
            self.events += [(ride, at_ms) for ride in rides]
            asked = {"zone": "ABC"[step % 3], "miles": step / 7}
            tensor = lambda name, kind: {"name": name, "shape": [1], "datatype": kind, "data": [asked[name]]}
            body = {"id": f"trip {step}", "inputs": [tensor("zone", "BYTES"), tensor("miles", "FP64")]}
            answer = self.post("/v2/models/price/infer", body, at_ms + 1)
            answered = answer["parameters"]["prediction_id"]
            score = answer["outputs"][0]["data"][0]
            self.predictions.append((answered, f"trip {step}", at_ms + 1, asked, score))
            if step % 2:
                label = {"prediction_id": answered, "value": step / 2, "label_time": at_ms + 2}
                self.post("/v1/labels", {"labels": [label]}, at_ms + 5 * MINUTE_MS)
                self.labels.append((answered, step / 2, at_ms + 2, at_ms + 5 * MINUTE_MS))

    def read(self, path):
        """The bytes of a file of the offline store."""
        return (self.path / "data" / "offline" / path).read_bytes()

    def files(self, table):
        """The files of a table by its manifest, each checked against it."""
        *lines, end = self.read(f"{table}/manifest.jsonl").splitlines(keepends=True)
        assert json.loads(end)["sha256"] == hashlib.sha256(b"".join(lines)).hexdigest()
        head, *entries = map(json.loads, lines)
        assert (head["format"], head["table"]) == (1, table), head
        named = [entry for entry in entries if "retired" not in entry]
        for entry in named:
            content = self.read(f"{table}/{entry['path']}")
            assert len(content) == entry["bytes"], entry
            assert hashlib.sha256(content).hexdigest() == entry["sha256"], entry
            rows = pq.ParquetFile(pa.BufferReader(content)).metadata.num_rows
            assert rows == entry["rows"], entry
        return [f"{table}/{entry['path']}" for entry in named]

    def parquet(self, path):
        """A sealed file, opened as pyarrow does it."""
        # `ParquetFile`, since a dataset would add columns for the folders.
        return pq.ParquetFile(self.path / "data" / "offline" / path)

    def arrow(self, table):
        """All rows of a table, by pyarrow, as dictionaries."""
        parts = [self.parquet(path).read() for path in self.files(table)]
        return pa.concat_tables(parts, promote_options="default").to_pylist()

    def sql(self, table):
        """A table in DuckDB's words."""
        paths = [str(self.path / "data" / "offline" / path) for path in self.files(table)]
        return f"read_parquet({paths!r}, union_by_name = true)"


def ms(time):
    """A time as whole milliseconds since the Unix epoch."""
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return round((time - epoch) / datetime.timedelta(milliseconds=1))


def check_events(replay):
    rows = sorted(replay.arrow("events"), key=lambda row: row["_seq"])
    assert [row["_seq"] for row in rows] == list(range(1, len(replay.events) + 1))
    for row, (ride, arrived_ms) in zip(rows, replay.events, strict=True):
        assert ms(row["_arrived"]) == arrived_ms, row
        assert ms(row["_event_time"]) == ms(row["at"]) == ride["at"], row
        for name in ["ride", "zone", "fare", "paid", "note"]:
            assert row[name] == ride[name], (name, row, ride)


def check_predictions(replay):
    rows = {row["prediction_id"]: row for row in replay.arrow("predictions")}
    assert len(rows) == len(replay.predictions)
    for answered, request_id, at_ms, asked, score in replay.predictions:
        row = rows[answered]
        assert (row["request_id"], ms(row["at"]), row["row"]) == (request_id, at_ms, 0), row
        assert (row["service"], row["role"], row["version"]) == ("price@1", "champion", 1), row
        assert json.loads(row["request"]) == asked, row
        assert row["score"] == np.float32(score), row
        assert row["as_of_seq"] == replay.events_before(at_ms), row
        x = np.nan_to_num(np.array(row["features"], dtype=np.float32))
        weights = np.linspace(0.5, -0.25, COLUMNS, dtype=np.float32)
        assert np.isclose(x @ weights, score, rtol=1e-4, atol=1e-4), row


def check_labels(replay):
    rows = sorted(replay.arrow("labels"), key=lambda row: row["seq"])
    # Numbers of the label log: it has entries that are no labels too.
    assert len({row["seq"] for row in rows}) == len(rows) == len(replay.labels)
    for row, label in zip(rows, replay.labels, strict=True):
        told = (row["prediction_id"], row["value"], ms(row["label_time"]), ms(row["arrived"]))
        assert told == label, row


def check_duckdb(replay):
    """Counts, sums and a join, by DuckDB, against the same of what was sent."""
    sql = duckdb.connect()
    sql.execute("set timezone = 'UTC'")
    by_zone = sql.execute(
        f"select zone, count(*), count(fare), sum(fare), sum(paid::int), max(epoch_ms(_arrived)) "
        f"from {replay.sql('events')} group by zone order by zone"
    ).fetchall()
    for zone, count, fares, fare, paid, arrived in by_zone:
        sent = [(ride, at) for ride, at in replay.events if ride["zone"] == zone]
        held = [ride["fare"] for ride, _ in sent if ride["fare"] is not None]
        assert (count, fares, arrived) == (len(sent), len(held), max(at for _, at in sent)), zone
        assert np.isclose(fare, sum(held), rtol=1e-12), (fare, sum(held))
        assert paid == sum(ride["paid"] for ride, _ in sent)
    assert len(by_zone) == 3
    joined = sql.execute(
        f"select p.request_id, p.score, l.value from {replay.sql('predictions')} p "
        f"join {replay.sql('labels')} l using (prediction_id, row) order by p.at"
    ).fetchall()
    values = {answered: value for answered, value, _, _ in replay.labels}
    expected = [
        (request_id, float(np.float32(score)), values[answered])
        for answered, request_id, _, _, score in replay.predictions
        if answered in values
    ]
    assert joined == expected
    # The manifest is itself a table.
    manifest = replay.path / "manifest"
    manifest.write_bytes(replay.read("events/manifest.jsonl"))
    rows = sql.execute(
        f"select sum(rows) from read_json({str(manifest)!r}, format = 'newline_delimited', "
        "columns = {path: 'varchar', rows: 'bigint', retired: 'varchar'}) "
        "where path is not null and retired is null"
    ).fetchone()[0]
    assert rows == len(replay.events), rows


def check_files_command(replay):
    """`loopgate feature check --files` counts the same rows."""
    told = replay.command("feature", "check", "--files")
    rows = {line.split(":")[0]: int(re.search(r"(\d+) rows", line)[1]) for line in told.splitlines()}
    sent = {"events": replay.events, "predictions": replay.predictions, "labels": replay.labels}
    assert rows == {name: len(what) for name, what in sent.items()}, told


def check_features(replay):
    """Features as sealed are those that `loopgate feature get` computes again for that moment."""
    rows = {row["request_id"]: row for row in replay.arrow("predictions")}
    for _, request_id, at_ms, asked, _ in replay.predictions[5::40]:
        told = json.loads(
            replay.command(
                "feature", "get", "price", f"zone={asked['zone']}", f"miles={asked['miles']}",
                "--at", str(at_ms), "--known-at", str(at_ms), "--json",
            )
        )
        told = [np.nan if it["value"] is None else it["value"] for it in told["features"]]
        sealed = np.array(rows[request_id]["features"], dtype=np.float32)
        assert np.array_equal(sealed, np.array(told, dtype=np.float32), equal_nan=True), request_id


def check_tables(replay):
    """Two lives of a gateway, three days."""
    replay.events_before = lambda at_ms: sum(at < at_ms for _, at in replay.events)
    replay.serve(lambda: replay.feed(range(130)))
    replay.serve(lambda: replay.feed(range(130, 210)))
    check_events(replay)
    check_predictions(replay)
    check_labels(replay)
    check_duckdb(replay)
    check_files_command(replay)
    check_features(replay)
    sent = len(replay.events), len(replay.predictions), len(replay.labels)
    return "{} events, {} predictions, {} labels".format(*sent)


def test_tables_of_a_folder(_gateway):
    with Replay() as replay:
        return check_tables(replay)


def test_a_damaged_file_is_named(_gateway):
    """One flipped bit of a sealed file, and `check --files` fails with its name."""
    with Replay() as replay:
        replay.serve(lambda: replay.feed(range(4)))
        damaged = replay.path / "data" / "offline" / replay.files("events")[0]
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 16
        damaged.write_bytes(content)
        command = [BINARY, "feature", "check", "--files", "--project", str(replay.path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode != 0 and damaged.name in done.stdout, done
