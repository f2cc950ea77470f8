"""schemathesis on the protocol's own OpenAPI file: generated requests, good and bad."""
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

from gateway import Skipped

FILE = os.environ.get("LOOPGATE_OIP_OPENAPI", "")


def schema():
    """The file, its `${…}` read as path parameters, which it means, and these filled in."""
    text = pathlib.Path(FILE).read_text().replace("${", "{")
    document = yaml.safe_load(text)
    known = {"MODEL_NAME": ["affine", "text"], "MODEL_VERSION": ["1"]}
    for path in document["paths"].values():
        for parameter in path.get("parameters", []):
            parameter["schema"]["enum"] = known[parameter["name"]]
    return yaml.safe_dump(document)


def test_generated_requests_never_break_it(gateway):
    if not pathlib.Path(FILE).is_file():
        raise Skipped("the protocol's OpenAPI file could not be fetched")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "protocol.yaml")
        path.write_text(schema())
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", str(path), "--url", f"http://{gateway.http}",
            "--checks", "not_a_server_error,content_type_conformance,response_schema_conformance",
            "--max-examples", "100", "--seed", "7", "--no-color",
        ]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
        assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
        generated = re.search(r"(\d+) generated", ran.stdout)
        return generated[0] if generated else None
