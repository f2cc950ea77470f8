"""NVIDIA's perf_analyzer in its modes: closed and open loop, JSON and binary, HTTP and gRPC."""
import os
import re
import subprocess

FOLDER = os.environ["LOOPGATE_PERF_ANALYZER"]
CLOSED = ["--concurrency-range", "4"]
OPEN = ["--request-rate-range", "200", "--request-distribution", "poisson"]


def measure(gateway, *arguments):
    """The throughput that it tells of; it exits with an error where a request failed."""
    protocol = "grpc" if "grpc" in arguments else "http"
    command = [
        f"{FOLDER}/perf_analyzer", "-m", "affine", "--service-kind", "triton", "-b", "2",
        "-u", gateway.grpc if protocol == "grpc" else gateway.http,
        "--measurement-mode", "count_windows", "--measurement-request-count", "50",
        # One window: what is tested is that it works, not how fast.
        "--stability-percentage", "999", "--max-trials", "3", *arguments,
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": FOLDER}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    told = ran.stdout + ran.stderr
    assert ran.returncode == 0, told
    throughput = re.search(r"Throughput: ([\d.]+) infer/sec", told)
    assert throughput and float(throughput[1]) > 0, told
    # Read from the statistics extension before and after.
    assert "Inference count" in told, told
    return f"{throughput[1]} infer/s"


def test_http_closed_loop_binary(gateway):
    return measure(gateway, "-i", "http", *CLOSED)


def test_http_closed_loop_json(gateway):
    return measure(
        gateway, "-i", "http", "--input-tensor-format", "json", "--output-tensor-format", "json", *CLOSED
    )


def test_http_open_loop_binary(gateway):
    return measure(gateway, "-i", "http", *OPEN)


def test_http_open_loop_json(gateway):
    return measure(
        gateway, "-i", "http", "--input-tensor-format", "json", "--output-tensor-format", "json", *OPEN
    )


def test_grpc_closed_loop(gateway):
    return measure(gateway, "-i", "grpc", *CLOSED)


def test_grpc_open_loop(gateway):
    return measure(gateway, "-i", "grpc", *OPEN)


def test_grpc_stream(gateway):
    return measure(gateway, "-i", "grpc", "--streaming", "--async", *CLOSED)
