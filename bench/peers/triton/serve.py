"""Triton as nvidia-pytriton ships it, with a model repository of one model in its Python backend."""
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytriton

here = Path(__file__).parent
triton = Path(pytriton.__file__).parent / "tritonserver"
model = Path(tempfile.mkdtemp(prefix="triton-")) / "scored"
(model / "1").mkdir(parents=True)
shutil.copy(here / "config.pbtxt", model)
shutil.copy(here / "model.py", model / "1")
version = f"{sys.version_info.major}.{sys.version_info.minor}"
shutil.copy(triton / "python_backend_stubs" / version / "triton_python_backend_stub", model)
os.environ["PYTHONPATH"] = str(Path(pytriton.__file__).parents[1])
os.environ["LD_LIBRARY_PATH"] = f"{sys.base_prefix}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}"
os.execv(
    triton / "bin" / "tritonserver",
    [
        "tritonserver",
        f"--model-repository={model.parent}",
        f"--backend-directory={triton / 'backends'}",
        f"--http-port={os.environ['PORT']}",
        "--http-address=127.0.0.1",
        "--http-thread-count=4",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ],
)
