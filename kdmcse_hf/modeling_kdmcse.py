"""The KDMCSE model: a text encoder and its training heads. Self-contained: this file travels with the weights."""

import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging
from transformers.utils.generic import ModelOutput

# The Hub's client, by way of transformers: this file travels with the weights, and names nothing but torch and that.
from transformers.utils.hub import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    hf_hub_download,
    is_offline_mode,
    try_to_load_from_cache,
)

from .configuration_kdmcse import KDMCSEConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.get_logger(__name__)

RELEASED_CHECKPOINT = "kdmcse"
"""Folder of a release in which the training checkpoint lies, beside the plain encoder."""
RELEASE_MARK = "kdmcse_checkpoint"
"""Name under which a release's own config.json says that folder."""
ATTENTION_NAMES = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_ORIGIN = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "proxies")
# Padded tokens of a forward pass, if the caller does not say how many rows: on a CPU, more leave its caches.
_TOKENS_ON_CPU, _TOKENS = 2048, 65536
_ROWS = 16  # but never fewer
_CHUNK = 16384  # sentences that are tokenised, and sorted by length, together


@dataclass
class KDMCSEOutput(ModelOutput):
    """What [`KDMCSEModel`] returns. B rows, L tokens, V views of each row, H hidden width, P projection width.

    The first four fields are set when the model embeds (`num_views=None`), the others when it trains.
    """

    last_hidden_state: Tensor | None = None
    """(B, L, H)."""
    pooler_output: Tensor | None = None
    """(B, H): the sentence embedding, pooled as `config.pooling` says, before any head."""
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    text_embeds: Tensor | None = None
    """(B, V, H): every view after the text head, for the text term."""
    grounded_embeds: Tensor | None = None
    """(B, V, P): every view after the grounding head; only where teacher features were given."""
    image_embeds: Tensor | None = None
    """(B, P): the teacher's image features after their projection."""
    caption_embeds: Tensor | None = None
    """(B, P): the teacher's caption features after their projection."""


class TextHead(nn.Module):
    """The head of the text term (SimCSE's MLP), under the keys of BERT's own pooler."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(self.dense(features))


class Projection(nn.Linear):
    """`tanh(W x + b)`: a head into the space that captions share with the teacher.

    A subclass of `nn.Linear` rather than a module around one: transformers 5 passes custom modules without parameters
    of their own by when it initialises weights.
    """

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(super().forward(features))


class KDMCSEModel(PreTrainedModel):
    r"""A text encoder that learns sentence embeddings from text and from a frozen teacher's features.

    Called without `num_views` it embeds: `pooler_output` (B, H) is the sentence embedding. With `num_views=V` it
    trains: every row passes V times through the encoder, each time under another dropout mask.

    The text head `pooler` (SimCSE) is initialised as the encoder's own linear layers are; `grounding_head` (MCSE),
    `image_projection` and `caption_projection` as `nn.Linear` is. All four serve training only.
    """

    config_class = KDMCSEConfig
    config: KDMCSEConfig
    base_model_prefix = "kdmcse"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: KDMCSEConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if encoder is None:
            options = {"trust_remote_code": False, **_without_pooler(config.text_config)}
            encoder = AutoModel.from_config(config.text_config, **options)
        self.encoder = encoder
        hidden_size, projection_dim = config.hidden_size, config.projection_dim
        self.pooler = TextHead(hidden_size)
        self.grounding_head: Projection | None = None
        self.image_projection: Projection | None = None
        self.caption_projection: Projection | None = None
        if config.image_embed_dim is not None:
            self.image_projection = Projection(config.image_embed_dim, projection_dim)
        if config.caption_embed_dim is not None:
            self.caption_projection = Projection(config.caption_embed_dim, projection_dim)
        if self.image_projection is not None or self.caption_projection is not None:
            self.grounding_head = Projection(hidden_size, projection_dim)
        self._accepts_token_type_ids = "token_type_ids" in inspect.signature(encoder.forward).parameters
        self._origin: tuple[str | os.PathLike[str], dict[str, Any]] | None = None  # where its tokenizer is found
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in `PreTrainedModel`; [`KDMCSEModel.encode`] then finds the tokenizer there, too.

        Of a release, the training checkpoint in it is taken.

        Raises:
            ValueError: it holds another kind of model, or its config names code to run.
            OSError: the Hub does not say what it holds.
        """
        if pretrained_model_name_or_path is not None and kwargs.get("config") is None:
            kwargs |= _checkpoint_of(cls.config_class, pretrained_model_name_or_path, **kwargs)
        origin = {name: kwargs[name] for name in _ORIGIN if name in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if pretrained_model_name_or_path is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model._origin = pretrained_model_name_or_path, origin
        return loaded

    @classmethod
    def from_encoder(
        cls,
        model_name_or_path: str | os.PathLike[str],
        *,
        image_embed_dim: int | None = None,
        caption_embed_dim: int | None = None,
        projection_dim: int = 256,
        normalize_teacher_embeds: bool = False,
        pooling: str = "cls",
        **kwargs: Any,
    ) -> "KDMCSEModel":
        """A model to train, in float32: new heads on a plain encoder, or a KDMCSE checkpoint with the heads it has.

        Args:
            model_name_or_path: a folder or Hub name. Of a release, the training checkpoint in it is taken.
            image_embed_dim, caption_embed_dim, projection_dim, normalize_teacher_embeds, pooling: as in
                [`KDMCSEConfig`]. For a KDMCSE checkpoint they must agree with the checkpoint's own.
            kwargs: passed to `from_pretrained` (`revision`, `token`, `attn_implementation`, ...).

        Raises:
            ValueError: the checkpoint's architecture differs from what was asked for, its weights cannot be read, or it
                needs code that was not asked for.
            OSError: the Hub does not say whether it is a release.
        """
        wanted: dict[str, Any] = {
            "image_embed_dim": image_embed_dim,
            "caption_embed_dim": caption_embed_dim,
            "projection_dim": projection_dim,
            "normalize_teacher_embeds": normalize_teacher_embeds,
            "pooling": pooling,
        }
        # float32 whatever the file holds: optimizer steps are lost in bfloat16 weights.
        kwargs = {"dtype": torch.float32, **kwargs}
        if "subfolder" not in kwargs and (subfolder := released_checkpoint(model_name_or_path, **kwargs)):
            kwargs["subfolder"] = subfolder
            logger.warning(
                f"{str(model_name_or_path)!r} is a release: training starts from the checkpoint in its folder "
                f"{subfolder!r}, with the heads that it has. For new heads, save its plain encoder elsewhere."
            )
        read_settings(model_name_or_path, **kwargs)
        config_kwargs = {k: v for k, v in kwargs.items() if k not in ("dtype", "attn_implementation")}
        config = load_pretrained(AutoConfig, model_name_or_path, **config_kwargs)
        if config.model_type == cls.config_class.model_type:
            for name, value in wanted.items():
                found = getattr(config, name)
                if found != value and value is not None:
                    raise ValueError(
                        f"The checkpoint {str(model_name_or_path)!r} has {name}={found!r}, but {name}={value!r} was "
                        "asked for. Use the checkpoint's own value, or start again from a plain encoder."
                    )
            # What a plain encoder's config would take, such as its dropout.
            for name in config_kwargs.keys() & config.text_config.to_dict().keys():
                setattr(config.text_config, name, kwargs.pop(name))
            model: KDMCSEModel = load_pretrained(cls, model_name_or_path, config=config, **kwargs)
            return model
        encoder = load_pretrained(AutoModel, model_name_or_path, **kwargs, **_without_pooler(config))
        # The very config object that the encoder's layers hold, so that `set_attn_implementation` reaches them. A new
        # config would reset theirs unless it names one.
        attention = encoder.config._attn_implementation
        model = cls(KDMCSEConfig(text_config=encoder.config, attn_implementation=attention, **wanted), encoder=encoder)
        model._origin = model_name_or_path, {name: kwargs[name] for name in _ORIGIN if name in kwargs}
        return model

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Projection):
            # nn.Linear.reset_parameters, through functions that leave loaded weights alone
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        teacher_image_embeds: Tensor | None = None,
        teacher_text_embeds: Tensor | None = None,
        num_views: int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> KDMCSEOutput | tuple[Tensor, ...]:
        r"""Embeds B rows of L tokens, or, with `num_views`, gives what the training terms need.

        Args:
            input_ids, attention_mask, token_type_ids: (B, L); token types are dropped where the encoder has none.
            teacher_image_embeds: (B, image_embed_dim), the frozen teacher's features of each row's picture.
            teacher_text_embeds: (B, caption_embed_dim), the frozen teacher's features of each row's caption.
            num_views: how many dropout views of each row to make; `None` embeds.
            kwargs: passed to the encoder (`inputs_embeds`, `output_hidden_states`, ...).

        Raises:
            ValueError: teacher features whose width the model has no projection for.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        if token_type_ids is not None and self._accepts_token_type_ids:
            inputs["token_type_ids"] = token_type_ids
        if num_views is not None:
            # Interleaved, not concatenated: the views of a row stay neighbours, (B * V, L) -> (B, V, H).
            for name, value in inputs.items():
                if isinstance(value, Tensor):
                    inputs[name] = value.repeat_interleave(num_views, dim=0)
        hidden = self.encoder(**inputs, return_dict=True)
        pooled = pool(hidden.last_hidden_state, inputs["attention_mask"], self.config.pooling)

        if num_views is None:
            output = KDMCSEOutput(
                last_hidden_state=hidden.last_hidden_state,
                pooler_output=pooled,
                hidden_states=hidden.get("hidden_states"),
                attentions=hidden.get("attentions"),
            )
        else:
            views = pooled.unflatten(0, (-1, num_views))
            image_embeds = self._project(self.image_projection, teacher_image_embeds, "image")
            caption_embeds = self._project(self.caption_projection, teacher_text_embeds, "caption")
            grounded_embeds = None
            if self.grounding_head is not None and (image_embeds is not None or caption_embeds is not None):
                grounded_embeds = self.grounding_head(views)
            # In one piece: a field set later is no key of a ModelOutput in the first releases of transformers 5, and
            # mixed precision copies by key.
            output = KDMCSEOutput(
                text_embeds=self.pooler(views),
                grounded_embeds=grounded_embeds,
                image_embeds=image_embeds,
                caption_embeds=caption_embeds,
            )
        return output.to_tuple() if return_dict is False else output

    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        normalize: bool = False,
        convert_to_tensor: bool = False,
        progress: bool = False,
    ) -> Any:
        """Sentence embeddings, row i for sentence i, in batches of similar length and without dropout.

        Args:
            sentences: N texts, none empty; or one text.
            tokenizer: by default the one that lies where the model was loaded from.
            batch_size: sentences a forward pass; by default as many as suit their length and the device.
            max_length: tokens after which a sentence is cut; by default, and at most, what tokenizer and encoder take.
            normalize: whether to scale each embedding to length 1.
            convert_to_tensor: return a tensor on the model's device instead of a numpy array.
            progress: whether to show a progress bar.

        Returns:
            (N, H) float32, or (H,) for one text.

        Raises:
            ValueError: a sentence that is empty or not text, named by its index; a size too small; no tokenizer.
        """
        if tokenizer is None:
            tokenizer = self._tokenizer = self._tokenizer or self._load_tokenizer()
        texts = [sentences] if isinstance(sentences, str) else sentences
        with logging.tqdm(total=len(texts), desc="Embedding", unit=" sentences", disable=not progress) as bar:
            vectors = embed_sentences(
                self, tokenizer, texts, batch_size=batch_size, max_length=max_length, advance=bar.update
            )
        vectors = F.normalize(vectors, dim=-1) if normalize else vectors
        vectors = vectors[0] if isinstance(sentences, str) else vectors
        return vectors.to(self.device) if convert_to_tensor else vectors.numpy()

    @staticmethod
    def similarity(first: Any, second: Any) -> Any:
        """Cosines (N, M) of embeddings (N, H) and (M, H), arrays or tensors; the result is as `first` is."""
        a, b = torch.as_tensor(first), torch.as_tensor(second)
        b = b.to(a.device, torch.promote_types(a.dtype, b.dtype))
        cosines = F.normalize(torch.atleast_2d(a).to(b.dtype), dim=-1) @ F.normalize(torch.atleast_2d(b), dim=-1).T
        return cosines if isinstance(first, Tensor) else cosines.numpy()

    def _load_tokenizer(self) -> "PreTrainedTokenizerBase":
        if self._origin is None:
            raise ValueError(
                "This model was not loaded from a folder or the Hub, so it has no tokenizer: give `encode` one "
                "(`tokenizer=...`)."
            )
        from transformers import AutoTokenizer  # here, for importing it takes time and not all need it

        name, where = self._origin
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
            if len(tokenizer) <= len(tokenizer.all_special_tokens):
                # transformers 5 makes an empty tokenizer of the encoder's type where the folder has no files
                raise ValueError("it has no vocabulary")
        except Exception as error:  # whatever a damaged file makes of it
            raise ValueError(
                f"No tokenizer could be loaded from {str(name)!r}, where the model comes from ({type(error).__name__}: "
                f"{' '.join(str(error).split())}). Save one there, or give it to `encode` (`tokenizer=...`)."
            ) from error
        return tokenizer

    def _project(self, projection: Projection | None, features: Tensor | None, kind: str) -> Tensor | None:
        if features is None:
            return None
        expected = None if projection is None else projection.in_features
        if projection is None or features.shape[-1] != expected:
            raise ValueError(
                f"The teacher's {kind} features are {features.shape[-1]} wide, but this model's "
                f"`config.{kind}_embed_dim` is {expected}. Build the model with `{kind}_embed_dim="
                f"{features.shape[-1]}`, or use the features it was trained with."
            )
        features = features.to(projection.weight.dtype)
        if self.config.normalize_teacher_embeds:
            features = F.normalize(features, dim=-1)
        projected: Tensor = projection(features)
        return projected


def embed_sentences(
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    sentences: Sequence[str],
    *,
    pooling: str | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    advance: Callable[[int], Any] = lambda rows: None,
) -> Tensor:
    """(N, H) float32 on the CPU: what [`KDMCSEModel.encode`] gives, of any encoder.

    Args:
        model, tokenizer, sentences, batch_size, max_length: as there. Where memory runs out on an accelerator, batches
            are halved.
        pooling: of the last hidden states; `None` for a model whose `pooler_output` is the embedding.
        advance: told how many rows are done after each forward pass.

    Raises:
        ValueError: a sentence that is empty or not text, named by its index; a size that is too small.
    """
    for name, value, fewest in (("batch_size", batch_size, 1), ("max_length", max_length, 3)):
        if value is not None and value < fewest:
            raise ValueError(f"`{name}` is {value}: expected at least {fewest}.")
    for index, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(
                f"Sentence {index} is empty or not text ({sentence!r}): there is no meaning in it to embed."
            )
    limit = token_limit(model, tokenizer)
    limit = min(limit, max_length) if max_length is not None else limit
    tokens, least = _TOKENS_ON_CPU if model.device.type == "cpu" else _TOKENS, _ROWS
    vectors = torch.zeros(len(sentences), model.config.hidden_size)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for first in range(0, len(sentences), _CHUNK):
            texts = list(sentences[first : first + _CHUNK])
            encodings = tokenizer(texts, truncation=True, max_length=limit, padding=False)
            lengths = [len(ids) for ids in encodings["input_ids"]]
            # Longest first: if memory runs out, it does so at once.
            rows = sorted(range(len(texts)), key=lambda row: -lengths[row])
            while rows:
                chunk = rows[: batch_size or max(least, tokens // lengths[rows[0]])]
                batch = tokenizer.pad(
                    {name: [values[row] for row in chunk] for name, values in encodings.items()},
                    padding_side="right",  # whatever the tokenizer prefers: the first token stays the first
                    return_tensors="pt",
                )
                try:
                    found = _embed(model, batch.to(model.device), pooling)
                except torch.OutOfMemoryError:
                    if len(chunk) == 1:
                        raise
                    batch_size = None if batch_size is None else len(chunk) // 2
                    tokens, least = len(chunk) // 2 * lengths[chunk[0]], 1
                    if model.device.type != "cpu":
                        torch.get_device_module(model.device).empty_cache()
                    continue
                vectors[[first + row for row in chunk]] = found
                rows = rows[len(chunk) :]
                advance(len(chunk))
    finally:
        for module, training in modes:
            module.training = training
    return vectors


@torch.no_grad()  # not inference mode, whose tensors FSDP2 would keep for the training steps that follow
def _embed(model: PreTrainedModel, batch: Any, pooling: str | None) -> Tensor:
    output = model(**batch)
    if pooling is None:
        vectors: Tensor = output.pooler_output
    else:
        vectors = pool(output.last_hidden_state, batch["attention_mask"], pooling)
    return vectors.float().cpu()


def pool(last_hidden_state: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """(B, L, H) -> (B, H): the first token's vector (`"cls"`), or the mean over the mask."""
    if pooling == "cls":
        return last_hidden_state[:, 0]
    if attention_mask is None:
        return last_hidden_state.mean(dim=1)
    mask = attention_mask.unsqueeze(-1).to(last_hidden_state.dtype)
    return (last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)


def token_limit(model: PreTrainedModel, tokenizer: "PreTrainedTokenizerBase") -> int:
    """The most tokens of a sentence that tokenizer and encoder take."""
    limits = [tokenizer.model_max_length]
    config = getattr(model.config, "text_config", model.config)
    positions = getattr(config, "max_position_embeddings", None) or -1
    if positions > 0:  # XLNet says -1
        limits.append(positions)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)  # RoBERTa counts from there
    return min(limits)


def _checkpoint_of(config_class: Any, model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any]:
    """The `subfolder` in which a checkpoint lies, as keyword arguments."""
    where = {}
    if "subfolder" not in kwargs and (subfolder := released_checkpoint(model_name_or_path, **kwargs)):
        where["subfolder"] = subfolder
    found = read_settings(model_name_or_path, **kwargs, **where).get("model_type")
    if found != config_class.model_type:
        raise ValueError(
            f"{str(model_name_or_path)!r} holds a model of type {found!r}, not a KDMCSE checkpoint: to embed with it, "
            "use `SentenceEncoder.from_pretrained` or `AutoModel`; to train it, `KDMCSEModel.from_encoder`."
        )
    return where


def released_checkpoint(model_name_or_path: str | os.PathLike[str], **where: Any) -> str | None:
    """The subfolder with the training checkpoint, if this is a release; arguments are of [`optional_file`].

    Raises:
        OSError: it is not known. Offline, what does not say that it is a release is taken for none.
    """
    try:
        found = optional_file(model_name_or_path, f"{RELEASED_CHECKPOINT}/config.json", **where)
    except FileNotFoundError as error:
        if read_settings(model_name_or_path, **where).get(RELEASE_MARK) == RELEASED_CHECKPOINT:
            raise OSError(
                f"{str(model_name_or_path)!r} is a release, of which the cache holds the plain encoder alone: "
                f"`hf download {model_name_or_path}` gets its checkpoint, too."
            ) from error
        found = None
    return None if found is None else RELEASED_CHECKPOINT


def optional_file(model_name_or_path: str | os.PathLike[str], file: str, **where: Any) -> str | None:
    """The path of a file of a folder or Hub name (`revision`, `token`, ...), or `None` if it has no such file.

    Raises:
        FileNotFoundError: offline, or where no Hub can be reached, the cache does not say whether it has one.
        OSError: the Hub was reached, and does not say it.
    """
    name, options = str(model_name_or_path), {key: where[key] for key in ("revision", "cache_dir") if key in where}
    if os.path.isdir(name):
        path = os.path.join(name, file)
        return path if os.path.isfile(path) else None
    offline = is_offline_mode() or bool(where.get("local_files_only"))
    try:
        return str(hf_hub_download(name, file, token=where.get("token"), local_files_only=offline, **options))
    except Exception as error:  # a client raises many kinds
        known = isinstance(error, EntryNotFoundError)
        if isinstance(error, LocalEntryNotFoundError):  # the Hub was not reached
            # A path, `None` where nothing is known, or something else where it is known that there is none.
            known = not isinstance(try_to_load_from_cache(name, file, **options), str | None)
        if known:
            return None
        cause = error.__cause__ or error
        reached = not isinstance(error, LocalEntryNotFoundError) or isinstance(cause, HfHubHTTPError)
        raise (OSError if reached and not offline else FileNotFoundError)(
            f"{name!r} is no folder here, and it is not known whether it has a file {file} on the Hub "
            f"({type(cause).__name__}: {' '.join(str(cause).split())})."
        ) from error


def read_settings(model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> dict[str, Any]:
    """What config.json says; arguments are those of `from_pretrained`.

    Raises:
        ValueError: it names attention code on the Hub, which transformers would fetch and run unasked, and no
            `attn_implementation` is given, which comes before it.
    """
    where = {name: value for name, value in kwargs.items() if name in _ORIGIN}
    settings: dict[str, Any] = KDMCSEConfig.get_config_dict(model_name_or_path, **where)[0]
    chosen = kwargs.get("attn_implementation") is not None
    for name, value in nested_items(settings):
        # An underscore would come before what the caller chooses.
        if name in ATTENTION_NAMES and "/" in str(value) and (name.startswith("_") or not chosen):
            raise ValueError(
                f"The config of {str(model_name_or_path)!r} names code on the Hub, {name}={value!r}, and none is run "
                "unasked: take it out there, or load the model with `attn_implementation='sdpa'`."
            )
    return settings


def nested_items(settings: Any) -> Iterator[tuple[Any, Any]]:
    """Names and values at every depth of what a JSON file says."""
    for name, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
        yield name, value
        if isinstance(value, dict | list):
            yield from nested_items(value)


def _without_pooler(text_config: Any) -> dict[str, bool]:
    """`add_pooling_layer=False` for encoders that have it: their own pooler would be an untrained dead weight."""
    model_class: Any = AutoModel._model_mapping.get(type(text_config), None)
    if not inspect.isclass(model_class) or "add_pooling_layer" not in inspect.signature(model_class).parameters:
        return {}
    return {"add_pooling_layer": False}


def load_pretrained(auto_class: Any, model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
    """`from_pretrained`, which asks nobody whether to run code: it runs none without `trust_remote_code=True`.

    Raises:
        ValueError: there is no opening it without, or its weights cannot be read.
    """
    try:
        return auto_class.from_pretrained(model_name_or_path, **{"trust_remote_code": False, **kwargs})
    except Exception as error:
        name = str(model_name_or_path)
        if type(error).__name__ == "SafetensorError":  # by name, for this file imports no safetensors
            raise ValueError(
                f"The weights in {name!r} cannot be read ({type(error).__name__}: {error}). The file is damaged or was "
                "cut short: copy or download it again, or take an earlier checkpoint."
            ) from error
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            raise ValueError(
                f"{name!r} cannot be opened without code of its own, and none is run unasked. If you trust it, pass "
                "`trust_remote_code=True`; a SentenceEncoder or Teacher takes the model that was opened so."
            ) from error
        raise
