"""Training a teacher of our own: a text tower learns what captions mean from the features of their pictures alone."""

import math
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import BertConfig, EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer, TrainingArguments

from kdmcse_hf.configuration_kdmcse import KDMCSEConfig
from kdmcse_hf.data import ContrastiveCollator, TrainingData
from kdmcse_hf.dropout import speed_up_dropout
from kdmcse_hf.losses import cosine_matrix, info_nce
from kdmcse_hf.modeling_kdmcse import KDMCSEModel
from kdmcse_hf.packing import pack_rows
from kdmcse_hf.retrieval import retrieve
from kdmcse_hf.schedule import Schedule, ScheduledBatchSampler, SetEpoch
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.teacher.towers import Towers

_FIRST_TEMPERATURE, _LEAST_TEMPERATURE = 0.07, 0.01  # CLIP's


@dataclass
class TowerTrainingArguments(TrainingArguments):
    """[`TrainingArguments`] with defaults for a small text tower that is trained from scratch."""

    per_device_train_batch_size: int = field(default=256, metadata={"help": "Captions of a batch."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.1, metadata={"help": "Of all weights but biases and norms."})
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over all captions, at most."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "See `TrainingArguments`."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps, or below 1 the share of all."})
    patience: int = field(default=3, metadata={"help": "Stop after that many evaluations without a better one."})
    image_dropout: float = field(default=0.5, metadata={"help": "Share of each picture's features that is dropped."})
    word_dropout: float = field(default=0.2, metadata={"help": "Share of the words that become the unknown word."})
    eval_strategy: str = field(default="epoch", metadata={"help": "See `TrainingArguments`."})
    save_strategy: str = field(default="epoch", metadata={"help": "See `TrainingArguments`."})
    save_total_limit: int | None = field(default=1, metadata={"help": "See `TrainingArguments`."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "See `TrainingArguments`."})
    metric_for_best_model: str | None = field(default="recall", metadata={"help": "Mean of the six recalls."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "See `TrainingArguments`."})
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Resumed, a run remembers its patience. See `TrainingArguments`."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "See `TrainingArguments`."})


def build_towers(
    tokenizer: PreTrainedTokenizerBase,
    *,
    image_embed_dim: int,
    text_model: str | None = None,
    hidden_size: int = 256,
    num_hidden_layers: int = 0,
    dropout: float = 0.3,
    projection_dim: int = 256,
    normalize_image_features: bool = False,
) -> KDMCSEModel:
    """Towers to train, with mean pooling.

    Args:
        tokenizer: its vocabulary, and its `model_max_length` as the longest text.
        image_embed_dim: width of the frozen teacher's image features.
        text_model: a pretrained encoder to start from; `None`: a BERT of the given size with random weights.
        hidden_size, num_hidden_layers: of that BERT; a head is 64 wide. Without layers it knows words, not their order:
            cheap, and enough to begin with on some ten thousand captions.
        dropout: of all its layers; a pretrained encoder keeps its own.
        projection_dim: width of the shared space.
        normalize_image_features: whether image features are L2-normalised first.
    """
    heads: dict[str, Any] = {
        "image_embed_dim": image_embed_dim,
        "projection_dim": projection_dim,
        "normalize_teacher_embeds": normalize_image_features,
        "pooling": "mean",
    }
    if text_model is not None:
        return KDMCSEModel.from_encoder(text_model, **heads)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=max(1, hidden_size // 64),
        intermediate_size=4 * hidden_size,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
    )
    return KDMCSEModel(KDMCSEConfig(text_config=config, **heads))


class Contrast(nn.Module):
    """Towers, and what only their training needs: the learned temperature, and what is dropped from the inputs.

    Args:
        towers: from [`build_towers`].
        tokenizer: has an unknown word if words are dropped.
        image_dropout, word_dropout: see [`TowerTrainingArguments`].

    Raises:
        ValueError: words are to be dropped, and there is no unknown word.
    """

    def __init__(
        self, towers: KDMCSEModel, tokenizer: PreTrainedTokenizerBase, image_dropout: float, word_dropout: float
    ) -> None:
        super().__init__()
        self.towers = towers
        self.log_scale = nn.Parameter(torch.tensor(-math.log(_FIRST_TEMPERATURE)))
        self.image_dropout, self.word_dropout = image_dropout, word_dropout
        self._special, self._unknown = tokenizer.all_special_ids, tokenizer.unk_token_id
        if word_dropout and self._unknown is None:
            raise ValueError("The tokenizer has no unknown word to drop others to: set `word_dropout` to 0.")

    @property
    def temperature(self) -> Tensor:
        """A scalar."""
        return self.log_scale.neg().exp()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, teacher_image_embeds: Tensor, image_ids: Tensor
    ) -> dict[str, Tensor]:
        """Symmetric InfoNCE of B captions and their pictures; captions of one picture are no negatives.

        Args:
            input_ids, attention_mask: (B, L).
            teacher_image_embeds: (B, D).
            image_ids: (B,).
        """
        if self.training and self.word_dropout:
            dropped = torch.rand(input_ids.shape, device=input_ids.device) < self.word_dropout
            dropped &= ~torch.isin(input_ids, torch.tensor(self._special, device=input_ids.device))
            input_ids = input_ids.masked_fill(dropped, self._unknown)
        with torch.no_grad():  # of the value, not of what is computed from it: from there it still learns
            self.log_scale.clamp_(max=-math.log(_LEAST_TEMPERATURE))
        features = F.dropout(teacher_image_embeds.float(), self.image_dropout, self.training)
        output = self.towers(
            input_ids=input_ids, attention_mask=attention_mask, teacher_image_embeds=features, num_views=1
        )
        cosine = cosine_matrix(output.grounded_embeds.squeeze(1), output.image_embeds)
        own = torch.arange(len(cosine), device=cosine.device)
        same = image_ids.unsqueeze(1) == image_ids
        forth = info_nce(cosine, own, self.temperature, same)
        return {"loss": (forth + info_nce(cosine.T, own, self.temperature, same)) / 2}


class TowerTrainer(Trainer):
    """Trains the towers of a [`Contrast`]; retrieval among held-out pictures says when to stop and which epoch wins.

    Args:
        model: the towers and their temperature.
        args: training arguments.
        train_dataset: captions with image features.
        eval_dataset: a cache of other pictures, with features of the same teacher.
        processing_class: the tokenizer.

    Raises:
        ValueError: several processes or devices.
    """

    args: TowerTrainingArguments

    def __init__(
        self,
        model: Contrast,
        args: TowerTrainingArguments,
        train_dataset: TrainingData,
        eval_dataset: TeacherCache,
        processing_class: PreTrainedTokenizerBase,
    ) -> None:
        if args.device.type == "cpu":
            pack_rows(model.towers.encoder)
            speed_up_dropout(model)
        model.towers.pooler.requires_grad_(False)  # the head of a term that is not here
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=ContrastiveCollator(processing_class),
            callbacks=[EarlyStoppingCallback(args.patience)],
        )
        if args.world_size * max(1, self.args.n_gpu) > 1:
            raise ValueError(
                f"{args.world_size} processes with {args.n_gpu} GPUs: the towers are small, and train in one process "
                "on one device. Start one process, and set CUDA_VISIBLE_DEVICES where it sees several GPUs."
            )
        self.model_accepts_loss_kwargs = False
        seed = args.seed if args.data_seed is None else args.data_seed
        schedule = Schedule(0, len(train_dataset), args.per_device_train_batch_size, None, seed)
        self.sampler = ScheduledBatchSampler(schedule)
        self.add_callback(SetEpoch(self.sampler, args.gradient_accumulation_steps))

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(
            cast(TrainingData, self.train_dataset), batch_sampler=self.sampler, collate_fn=self.data_collator
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All but the temperature's, among others."""
        return [name for name in super().get_decay_parameter_names(model) if name != "log_scale"]

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: TeacherCache | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """What [`score_towers`] says of the held-out pictures, and the mean `recall` of both directions."""
        # Schedule-free optimizers keep two sets of weights, and have this method.
        getattr(self.optimizer, "eval", lambda: None)()
        contrast = cast(Contrast, self.accelerator.unwrap_model(self.model))
        tokenizer = cast(PreTrainedTokenizerBase, self.processing_class)
        cache = cast(TeacherCache, self.eval_dataset) if eval_dataset is None else eval_dataset
        scores = score_towers(Towers(contrast.towers, tokenizer), cache)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the temperature."""
        if "loss" in logs:
            contrast = cast(Contrast, self.accelerator.unwrap_model(self.model))
            logs = {**logs, "temperature": contrast.temperature.item()}
        super().log(logs, start_time)


def score_towers(towers: Towers, cache: TeacherCache) -> dict[str, float]:
    """What [`score_vectors`] says of towers on a cache with the image features that they take."""
    pairs = TeacherPairs(cache)
    images, own = np.unique(pairs.image_rows, return_inverse=True)
    captions = towers.embed_sentences(cache.captions.select(pairs.caption_rows)["caption"][:])
    return score_vectors(captions, towers.embed_features(cache.image_features.rows(images)), own)


def score_cache(cache: TeacherCache) -> dict[str, float]:
    """The same of a cache of towers, by the vectors in it.

    Raises:
        ValueError: it has image features only.
    """
    if cache.caption_features is None:
        raise ValueError(f"{cache.folder} has image features only: there is nothing to compare them with.")
    pairs = TeacherPairs(cache)
    images, own = np.unique(pairs.image_rows, return_inverse=True)
    return score_vectors(cache.caption_features.rows(pairs.caption_rows), cache.image_features.rows(images), own)


def score_vectors(
    captions: NDArray[np.float32], pictures: NDArray[np.float32], own: NDArray[np.int64]
) -> dict[str, float]:
    """How well captions and pictures find each other, and how sure the teacher is of them.

    Args:
        captions, pictures: (N, P) and (M, P) unit vectors of one space; every picture has a caption.
        own: (N,) the picture of each caption.

    Returns:
        `caption_to_image_r@1` and so on for 5, 10 and the other direction, `recall`, their mean, and the mean cosines
        `matched` and `mismatched` of captions with their own and with other pictures. Where `matched` is far higher on
        training pairs than on others, the towers know the training captions by heart.
    """
    places = np.arange(len(pictures))
    found = {
        "caption_to_image": retrieve(captions, pictures, own, places),
        "image_to_caption": retrieve(pictures, captions, places, own),
    }
    recalls = {
        f"{direction}_{name}": value
        for direction, scores in found.items()
        for name, value in scores.items()
        if name.startswith("r@")
    }
    matched = float(np.einsum("nd,nd->n", captions, pictures[own]).mean())
    total = float(captions.mean(axis=0) @ pictures.mean(axis=0)) * len(pictures)
    mismatched = (total - matched) / max(1, len(pictures) - 1)
    return {**recalls, "recall": float(np.mean(list(recalls.values()))), "matched": matched, "mismatched": mismatched}


@torch.no_grad()
def forget_unseen_words(model: KDMCSEModel, data: TrainingData, unknown: int) -> int:
    """Gives every word that no training caption has the vector of the unknown word; returns how many there are.

    For towers trained from scratch: those words' vectors are still random, and plain sentences are full of them. The
    unknown word was learned from the words that were dropped.
    """
    assert data.pairs is not None
    rows = data.pairs.input_ids.with_format("arrow")["input_ids"]
    seen = np.unique(np.concatenate([chunk.flatten().to_numpy() for chunk in rows.chunks]))
    weight = cast(nn.Embedding, model.get_input_embeddings()).weight
    unseen = torch.ones(len(weight), dtype=torch.bool)
    unseen[torch.from_numpy(seen)] = False
    weight[unseen.to(weight.device)] = weight[unknown].clone()
    return int(unseen.sum())
