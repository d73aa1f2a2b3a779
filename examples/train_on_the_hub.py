# /// script
# requires-python = ">=3.10"
# dependencies = ["reftune[cli]", "torch"]
# ///
"""Train an adapter on a machine of the Hub, and push it: nothing is installed by hand.

    hf jobs uv run --flavor t4-small --secrets HF_TOKEN examples/train_on_the_hub.py \
        --model HuggingFaceTB/SmolLM2-135M-Instruct --data USER/DATASET --push USER/my-adapter

or here: `uv run examples/train_on_the_hub.py --model … --data train.jsonl`.
"""

from __future__ import annotations

import argparse

from reftune.training import RunConfig, train_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name on the Hub, or a folder")
    parser.add_argument("--data", required=True, help="data set of the Hub, or a file of records")
    parser.add_argument("--output", default="my-adapter")
    parser.add_argument("--positions", default="f7+l7")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--push", help="repository on the Hub for the adapter")
    given = parser.parse_args()
    training = {"num_train_epochs": given.epochs, "learning_rate": given.learning_rate, "save_strategy": "no"}
    reft = {"r": given.rank, "layers": "all", "positions": given.positions}
    result = train_run(RunConfig(given.model, given.data, given.output, reft=reft, training=training))
    print(f"loss {result.final_loss:.4f}, {result.trainable_parameters:,} parameters: {result.adapter_path}")
    if given.push:
        result.model.push_to_hub(given.push)


if __name__ == "__main__":
    main()
