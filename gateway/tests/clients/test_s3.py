"""The offline store in S3 (moto's server): the tables of `test_offline`, sealed into a bucket by a real
gateway, are read from it by pyarrow, and by DuckDB after a download: what DuckDB needs for S3 is no part of
its wheel.
"""
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pyarrow.fs
import pyarrow.parquet as pq
from test_offline import START_MS, Replay, check_tables


class Bucket(Replay):
    """A project whose sealed files lie in a bucket of its own server."""

    environment = {"AWS_ACCESS_KEY_ID": "of a test", "AWS_SECRET_ACCESS_KEY": "no secret"}

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        host, port = self.endpoint.split(":")
        command = [sys.executable, "-m", "moto.server", "-H", host, "-p", port]
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.s3 = pyarrow.fs.S3FileSystem(
            access_key=self.environment["AWS_ACCESS_KEY_ID"],
            secret_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=self.endpoint,
            region="us-east-1",
            scheme="http",
            allow_bucket_creation=True,
        )
        try:
            self.wait_for_the_server()
            self.s3.create_dir("rides")
            super().__init__(
                '[offline]\nurl = "s3://rides/of/this-project"\n'
                f'endpoint = "http://{self.endpoint}"\nallow_http = true\n'
            )
        except BaseException:
            self.server.kill()
            raise

    def __exit__(self, *_):
        super().__exit__()
        self.server.kill()
        self.server.wait()

    def wait_for_the_server(self):
        end = time.monotonic() + 60
        while True:
            try:
                return urllib.request.urlopen(f"http://{self.endpoint}/", timeout=60).close()
            except urllib.error.URLError as away:
                assert time.monotonic() < end and self.server.poll() is None, away
                time.sleep(0.05)

    def key(self, path):
        return f"rides/of/this-project/{path}"

    def read(self, path):
        with self.s3.open_input_stream(self.key(path)) as file:
            return file.read()

    def parquet(self, path):
        return pq.ParquetFile(self.key(path), filesystem=self.s3)

    def sql(self, table):
        paths = []
        for path in self.files(table):
            paths.append(self.path / "downloads" / path)
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            paths[-1].write_bytes(self.read(path))
        return f"read_parquet({list(map(str, paths))!r}, union_by_name = true)"


def test_tables_of_a_bucket(_gateway):
    with Bucket() as replay:
        told = check_tables(replay)
        assert not (replay.path / "data" / "offline").exists()
        # Training rows of what lies there, and a copy that needs the bucket no more.
        for features in ["served", "recomputed"]:
            dataset = json.loads(
                replay.command(
                    "feature", "dataset", "--model", "price", "--features", features,
                    "--from", str(START_MS), "--to", str(2 * START_MS), "--out", str(replay.path / features),
                )
            )
            assert pq.ParquetFile(dataset["file"]).metadata.num_rows == len(replay.labels), dataset
        replay.command("backup", str(replay.path / "copy"))
        assert len(list((replay.path / "copy" / "offline").rglob("*.parquet"))) == sum(
            len(replay.files(table)) for table in ["events", "predictions", "labels"]
        )
        return told
