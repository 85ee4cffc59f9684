"""Train a sentence encoder with SimCSE, MCSE or KDMCSE.

    python examples/train_kdmcse.py --preset kdmcse --model_name_or_path bert-base-uncased \
        --text_file wiki1m.txt --teacher_cache cache/flickr30k --sts_dir SentEval/data/downstream \
        --output_dir runs/kdmcse
    python examples/train_kdmcse.py examples/recipes/{kdmcse,wiki_flickr30k,bert_base}.yaml --seed 1 ...
    accelerate launch examples/train_kdmcse.py ...          # several GPUs or machines

Without `--teacher_cache` it trains on text alone (`--preset simcse`); without text, on captions alone.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import AutoConfig, set_seed

from kdmcse_hf import KDMCSEModel, KDMCSETrainer, KDMCSETrainingArguments, Objective, TeacherCache
from kdmcse_hf.arguments import parse_arguments
from kdmcse_hf.checkpoint import resume_point
from kdmcse_hf.data import CaptionPairs, TrainingData, read_sentences, stream_sentences, tokenize
from kdmcse_hf.sts import load_sts
from kdmcse_hf.teacher.pairs import ImageAssignment, TeacherPairs
from kdmcse_hf.tokenizer import load_tokenizer

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")  # as BERT and its kin call them


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "An encoder, a KDMCSE checkpoint or a release: folder or name."})
    revision: str | None = field(default=None, metadata={"help": "Of a Hub name: branch, tag or commit."})
    pooling: str = field(default="cls", metadata={"help": "The sentence vector: cls or mean."})
    projection_dim: int = field(default=256, metadata={"help": "Width of the space shared with the teacher."})
    dropout: float | None = field(default=None, metadata={"help": "Of the encoder; by default as its config says."})
    normalize_teacher_embeds: bool = field(default=False, metadata={"help": "Normalise features before the heads."})
    max_seq_length: int = field(default=32, metadata={"help": "Tokens after which training text is cut."})


@dataclass
class DataArguments:
    text_file: str | None = field(default=None, metadata={"help": "Sentences, one a line; a path or hf://datasets/..."})
    text_dataset: str | None = field(default=None, metadata={"help": "Instead of --text_file: a dataset."})
    text_dataset_config: str | None = field(default=None, metadata={"help": "Of --text_dataset, where it has several."})
    text_column: str = field(default="text", metadata={"help": "The column of --text_dataset (split train) to use."})
    max_sentences: int | None = field(
        default=None, metadata={"help": "With --text_dataset: stream that many first rows, and download no more."}
    )
    teacher_cache: str | None = field(default=None, metadata={"help": "Folder made by `kdmcse extract`."})
    sts_dir: str | None = field(
        default=None, metadata={"help": "STS data in SentEval's layout: the best checkpoint on STS-B dev is kept."}
    )
    max_pairs: int | None = field(default=None, metadata={"help": "Use that many random pairs."})
    image_assignment: ImageAssignment = field(
        default="paired", metadata={"help": "paired; or, as controls, shuffled or random."}
    )


def main(argv: Sequence[str], trainer_class: type[KDMCSETrainer] = KDMCSETrainer) -> KDMCSETrainer:
    model_args, data_args, objective, args = parse_arguments(
        (ModelArguments, DataArguments, Objective, KDMCSETrainingArguments), argv
    )
    set_seed(args.seed)
    resume = resume_point(args.resume_from_checkpoint, args.output_dir)

    # 1. Data: sentences, and captions with what the teacher said of them
    hub = {"revision": model_args.revision} if model_args.revision else {}
    tokenizer = load_tokenizer(model_args.model_name_or_path, **hub)
    text = pairs = None
    with args.main_process_first(desc="tokenising"):  # the other processes read what it cached
        if data_args.text_dataset:
            name, column = data_args.text_dataset, data_args.text_column
            if data_args.max_sentences:
                rows = stream_sentences(name, column, data_args.max_sentences, config=data_args.text_dataset_config)
                column = "text"
            else:
                rows = load_dataset(name, data_args.text_dataset_config, split="train")
            text = tokenize(rows, column, tokenizer, model_args.max_seq_length)
        elif data_args.text_file:
            text = tokenize(read_sentences(data_args.text_file), "text", tokenizer, model_args.max_seq_length)
        if data_args.teacher_cache:
            cache = TeacherCache(data_args.teacher_cache)
            if args.local_process_index == 0:
                cache.verify(progress=not args.disable_tqdm)  # seconds now, or a byte that flipped unseen
            chosen = TeacherPairs(
                cache,
                captions_per_image=objective.captions_per_image,
                max_pairs=data_args.max_pairs,
                image_assignment=data_args.image_assignment,
                seed=args.seed if args.data_seed is None else args.data_seed,
            )
            pairs = CaptionPairs(chosen, tokenizer, max_length=model_args.max_seq_length)
    train_dataset = TrainingData(text, pairs, objective.needs)
    dev = load_sts(data_args.sts_dir, "STSB", "dev") if data_args.sts_dir else None

    # 2. Model: the encoder, and heads as wide as the teacher's features
    model = KDMCSEModel.from_encoder(
        model_args.model_name_or_path,
        image_embed_dim=pairs.teacher.cache.image_features.width if pairs and objective.image_term else None,
        caption_embed_dim=pairs.teacher.cache.caption_features.width
        if pairs and objective.caption_term and pairs.teacher.cache.caption_features
        else None,
        projection_dim=model_args.projection_dim,
        normalize_teacher_embeds=model_args.normalize_teacher_embeds,
        pooling=model_args.pooling,
        **dropout(model_args, hub),
        **hub,
    )

    # 3. Train; the best checkpoint on STS-B dev, or the last one, ends up in output_dir
    trainer = trainer_class(
        model, args, objective, train_dataset=train_dataset, eval_dataset=dev, processing_class=tokenizer
    )
    if trainer.is_world_process_zero():
        print(*trainer.filter_reports, sep="\n")
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    return trainer


def dropout(args: ModelArguments, hub: dict[str, str]) -> dict[str, float]:
    """What overrules the dropout of the encoder's config."""
    if args.dropout is None:
        return {}
    config = AutoConfig.from_pretrained(args.model_name_or_path, **hub)
    config = getattr(config, "text_config", config)
    if not all(hasattr(config, name) for name in DROPOUTS):
        raise ValueError(
            f"`dropout` is {args.dropout}, but {args.model_name_or_path} has no {' and '.join(DROPOUTS)}. "
            "Set it in that encoder's config.json, and leave `dropout` out."
        )
    return dict.fromkeys(DROPOUTS, args.dropout)


if __name__ == "__main__":
    main(sys.argv[1:])
