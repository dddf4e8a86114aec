"""BentoML over HTTP: one worker, adaptive batching."""

import os
import sys
from pathlib import Path

import shared_model

if __name__ == "__main__":
    here = Path(__file__)
    command = ["bentoml", "serve", "service:Service", "--working-dir", str(here.parent)]
    os.environ["BENTOML_CONFIG_OPTIONS"] = "api_server.logging.access.enabled=false api_server.metrics.enabled=false"
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    where = ["--host", shared_model.HOST, "--port", str(shared_model.PORT)]
    os.execv(Path(sys.executable).with_name("bentoml"), [*command, *where])
