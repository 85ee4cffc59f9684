"""The model card of a release, written from what is recorded beside the weights and from nothing else."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from kdmcse_hf.checkpoint import RECORDED, read_recorded
from kdmcse_hf.configuration_kdmcse import KDMCSEConfig
from kdmcse_hf.presets import PRESETS
from kdmcse_hf.release import CARD, CHECKPOINT, EVAL_RESULTS

VECTORS = {"cls": "the last hidden state of its first token", "mean": "the mean of its tokens' last hidden states"}
_POOLED = {"cls": "hidden[:, 0]", "mean": "(hidden * mask).sum(dim=1) / mask.sum(dim=1)"}
POOLER_TRAP = (
    "The plain encoder's `pooler_output` is the trained text head, which serves training only:\n"
    "the embedding of a sentence is {vector}."
)
# Test pairs of SentEval's files. Another number of pairs is another set.
_PAIRS = {"STS12": 3108, "STS13": 1500, "STS14": 3750, "STS15": 3000, "STS16": 1186, "STSB": 1379, "SICKR": 4927}


def write_card(
    folder: Path, config: KDMCSEConfig, *, name: str, base_model: str | None, max_length: int, pooler_trap: bool
) -> None:
    """Writes README.md, and `.eval_results/sts.yaml` if mteb's scores are recorded.

    Args:
        folder: a release, whole but for these files.
        config: of the model.
        name: by which the examples load it.
        base_model: Hub name of what training began with, if it is known.
        max_length: tokens after which clients cut a sentence.
        pooler_trap: whether the plain encoder has a pooler, which then is the text head.

    Raises:
        ValueError: what is recorded is not what this package records.
    """
    description, record, sts, mteb = (read_recorded(folder / CHECKPOINT, file) for file in RECORDED)
    vector = VECTORS[config.pooling]
    try:
        text = render_card(
            name=name,
            base_model=base_model,
            kind=config.text_config.model_type,
            description=description,
            record=record,
            sts=sts,
            mteb=mteb,
            width=config.hidden_size,
            vector=vector,
            max_length=max_length,
            pooled=_POOLED[config.pooling],
            pooler_trap=POOLER_TRAP.format(vector=vector) if pooler_trap else "",
        )
    except (KeyError, TypeError, AttributeError, UndefinedError) as error:
        files = ", ".join(file for file in RECORDED if (folder / CHECKPOINT / file).is_file())
        raise ValueError(
            f"{files}: these are not as a KDMCSETrainer and the evaluations' `--record` write them ({error}). Take "
            "them from another copy of the checkpoint, or remove them: the card then says less."
        ) from error
    (folder / CARD).write_text(text, encoding="utf-8")
    entries = eval_results(mteb)
    if entries:
        (folder / EVAL_RESULTS).parent.mkdir()
        (folder / EVAL_RESULTS).write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")


def render_card(
    *,
    name: str,
    base_model: str | None,
    kind: str,
    description: dict[str, Any],
    record: dict[str, Any],
    sts: dict[str, Any],
    mteb: dict[str, Any],
    command: str = "",
    **shown: Any,
) -> str:
    """The text of a model card; what is not recorded is said to be unknown, or left out.

    With a `command` it is the card of a run that has not been made, which that command would make.
    """
    objective = description.get("objective", {})
    preset, changes = nearest_preset(objective)
    strange = [
        task for task in sts.get("scores", {}) if task != "avg" and sts["pairs"].get(task) != _PAIRS.get(task, -1)
    ]
    environment = Environment(
        loader=PackageLoader("kdmcse_hf"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # Markdown
    )
    return environment.get_template("model_card.md").render(
        metadata=_metadata(base_model, f"{preset}-{kind}" if objective else kind, sts, mteb, strange),
        name=name,
        kind=kind,
        objective=objective,
        preset=preset,
        changes=changes,
        filters=description.get("filters", []),
        record=record,
        facts=_facts(record, description.get("schedule", {})) if record else [],
        rates=[(name.replace("_", " "), value) for name, value in record.get("rates", {}).items()],
        dev=record.get("dev"),
        teacher=record.get("teacher"),
        sts=sts,
        mteb=mteb,
        command=command,
        words=_words,
        strange=strange,
        **shown,
    )


def nearest_preset(objective: dict[str, Any]) -> tuple[str, list[tuple[str, Any, Any]]]:
    """The preset that the fewest switches differ from, and those: name, value, the preset's value.

    Of equals it is the one with the same terms.
    """
    changes = {
        name: [
            (switch, value, getattr(preset, switch, None))
            for switch, value in objective.items()
            if value != getattr(preset, switch, None)
        ]
        for name, preset in PRESETS.items()
    }

    def distance(name: str) -> tuple[int, int]:
        return len(changes[name]), sum(switch.endswith("_term") for switch, *_ in changes[name])

    nearest = min(changes, key=distance)
    return nearest, changes[nearest]


def eval_results(mteb: dict[str, Any]) -> list[dict[str, Any]]:
    """mteb's scores, as the Hub reads them from `.eval_results/`: its datasets are there, and SentEval's are not."""
    return [
        {
            "dataset": {"id": dataset["path"], "task_id": task, "revision": dataset["revision"]},
            "value": mteb["scores"][task],
            "notes": _words(mteb),
        }
        for task, dataset in mteb.get("datasets", {}).items()
    ]


def _metadata(
    base_model: str | None, model_name: str, sts: dict[str, Any], mteb: dict[str, Any], strange: list[str]
) -> str:
    """The card's header; SentEval's text is other, so its sets never go by the names of mteb's datasets on the Hub."""
    common: dict[str, Any] = {
        "task_type": "sentence-similarity",
        "dataset_split": "test",
        "metric_type": "cosine_spearman",
        "metric_name": "Spearman x 100 of the cosine",
    }
    results = [
        EvalResult(
            dataset_type=f"senteval-{task.lower()}", dataset_name=f"{task} (SentEval)", metric_value=score, **common
        )
        for task, score in sts.get("scores", {}).items()
        if task not in ("avg", *strange)
    ]
    results += [
        EvalResult(
            dataset_type=dataset["path"],
            dataset_revision=dataset["revision"],
            dataset_name=f"{task} (mteb)",
            metric_value=mteb["scores"][task],
            **common,
        )
        for task, dataset in mteb.get("datasets", {}).items()
    ]
    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "kdmcse"],
        base_model=base_model,
        model_name=model_name if results else None,
        eval_results=results or None,
    ).to_yaml()


def _facts(record: dict[str, Any], schedule: dict[str, Any]) -> list[tuple[str, str]]:
    data, teacher, settings = record["data"], record["teacher"], record["settings"]
    facts = [("base model", f"`{record['base_model']}`" if record["base_model"] else "a local folder; not named here")]
    for kind in data["sha256"]:
        count = f"{data[f'num_{kind}']:,} {'sentences' if kind == 'text' else 'pairs of caption and image'}"
        facts.append((kind, f"{count}; SHA-256 of the tokens {data['sha256'][kind]}"))
    if teacher:
        revision = f", revision {teacher['revision']}" if teacher["revision"] else ""
        facts.append(("teacher", f"`{teacher['name']}`{revision}; digest {teacher['digest']}"))
        size = f"{teacher['images']:,} images, {teacher['captions']:,} captions"
        facts.append(("teacher cache", f"{size}; manifest {teacher['manifest']}"))
        if teacher["image_assignment"] != "paired":
            facts.append(("images", f"{teacher['image_assignment']}, as a control: not those of the captions"))
    if schedule.get("pair_every_n_steps") and data["num_text"] and data["num_pairs"]:
        facts.append(("paired batches", f"every {schedule['pair_every_n_steps']} steps"))
    facts += [(name.replace("_", " "), str(value)) for name, value in settings.items() if value is not None]
    facts.append(("hardware", record["hardware"]))
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())))
    return facts + ([("commit of kdmcse_hf", record["commit"])] if record["commit"] else [])


def _words(results: dict[str, Any]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in results.get("protocol", {}).items()) + "."
