"""Triton as nvidia-pytriton ships it, with a model repository of one model in its Python backend."""
import os
import shutil
import sys
from pathlib import Path

import pytriton

here = Path(__file__).parent
triton = Path(pytriton.__file__).parent / "tritonserver"
model = Path(os.environ["MODEL"]).parent / "triton-repository" / "scored"
(model / "1").mkdir(parents=True, exist_ok=True)
shutil.copy(here / "config.pbtxt", model)
shutil.copy(here / "model.py", model / "1")
version = f"{sys.version_info.major}.{sys.version_info.minor}"
stub = triton / "backends" / "python" / "triton_python_backend_stub"
stub.unlink(missing_ok=True)
stub.symlink_to(triton / "python_backend_stubs" / version / "triton_python_backend_stub")
# The stub takes no PYTHONPATH; `model.py` puts this in front.
os.environ["SITE_PACKAGES"] = str(Path(pytriton.__file__).parents[1])
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
