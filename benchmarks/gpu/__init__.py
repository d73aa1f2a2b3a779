"""What only a GPU can say, in parts that run one after the other: `scripts/gpu.sh` runs them, `report` lays them out.

Each part is a program, `python -m benchmarks.gpu.<part>`, whose measurements go to `<part>.json` as they are made.
"""

PARTS = ("edit", "recipes", "generate", "steps", "quality", "checks")
