"""What `examples/run_study.py` is made of: the grid, its material, its runs, their measures and the report."""

from pathlib import Path

EXAMPLES = Path(__file__).parents[1]
