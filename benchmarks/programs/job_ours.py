"""The ten-example job with reftune, from the start of the process to the saved adapter.

Request: `model`, `data`, `output`, `layer`, `rank`, `epochs`, `learning_rate`, `batch_size`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from reftune.training import RunConfig, train_run


def main(request: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = RunConfig(
        model=request["model"],
        data=request["data"],
        output=request["output"],
        reft={"r": request["rank"], "layers": [request["layer"]], "positions": "l1"},
        training={
            "learning_rate": request["learning_rate"],
            "num_train_epochs": request["epochs"],
            "per_device_train_batch_size": request["batch_size"],
            "save_strategy": "no",
            "logging_steps": 20,
        },
    )
    result = train_run(config)
    return {
        "training_s": result.seconds,
        "parameters": result.trainable_parameters,
        "steps": result.steps,
        "loss": result.final_loss,
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
