"""One run, in a process of its own: trains, measures, leaves `record.json`. Started by [`studies.runs`].

python -m studies.one_run RUN_FOLDER
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from train_variants import main as train
from transformers import AutoModel, set_seed

from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.tokenizer import load_tokenizer
from studies.child import end_with_the_study
from studies.measures import curves, environment, measure, peak_mb
from studies.results import Results, write_json


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    flags, model_folder = job["arguments"], folder / "model"
    trained = folder / "trained.json"
    if job["train"] and not trained.exists():  # killed while it was measured: the weights are there
        start = time.perf_counter()
        train(
            [
                *(text for flag, value in flags.items() for text in (f"--{flag}", value)),
                *("--seed", str(job["seed"]), "--output_dir", str(model_folder)),
                *("--resume_from_checkpoint", "true"),
            ]
        )
        write_json(trained, {"train_seconds": time.perf_counter() - start, "train_peak_mb": peak_mb()})

    start = time.perf_counter()
    set_seed(job["seed"])
    name = str(model_folder) if job["train"] else flags["model_name_or_path"]
    on_gpu = torch.cuda.is_available() and flags.get("use_cpu") != "true"
    model = AutoModel.from_pretrained(name, dtype=torch.float32).to("cuda" if on_gpu else "cpu")
    pooling = getattr(model.config, "pooling", None) or flags.get("pooling", "cls")
    encoder = SentenceEncoder(model, load_tokenizer(name), pooling=pooling, batch_size=128)
    measured, cosines = measure(encoder, flags["sts_dir"], job["tasks"])
    Results(folder.parent.parent).save_cosines(folder.name, cosines)
    record: dict[str, Any] = {
        **{key: job[key] for key in ("row", "seed", "fingerprint", "flags", "train")},
        **measured,
        **(curves(model_folder) if job["train"] else {}),
        **environment(flags),
        "cost": {
            "evaluate_seconds": time.perf_counter() - start,
            "starts": job["starts"],
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **(json.loads(trained.read_text(encoding="utf-8")) if job["train"] else {}),
        },
    }
    write_json(folder / "record.json", record)


if __name__ == "__main__":
    end_with_the_study()
    main(Path(sys.argv[1]))
