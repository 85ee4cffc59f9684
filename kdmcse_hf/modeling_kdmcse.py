"""The KDMCSE model: a text encoder and its training heads. Self-contained: this file travels with the weights."""

import inspect
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from .configuration_kdmcse import KDMCSEConfig


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
            encoder = AutoModel.from_config(config.text_config, **_without_pooler(config.text_config))
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
        self.post_init()

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
            model_name_or_path: a folder or Hub name.
            image_embed_dim, caption_embed_dim, projection_dim, normalize_teacher_embeds, pooling: as in
                [`KDMCSEConfig`]. For a KDMCSE checkpoint they must agree with the checkpoint's own.
            kwargs: passed to `from_pretrained` (`revision`, `token`, `attn_implementation`, ...).

        Raises:
            ValueError: the checkpoint's architecture differs from what was asked for, or its weights cannot be read.
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
        config_kwargs = {k: v for k, v in kwargs.items() if k not in ("dtype", "attn_implementation")}
        config = AutoConfig.from_pretrained(model_name_or_path, **config_kwargs)
        if config.model_type == cls.config_class.model_type:
            for name, value in wanted.items():
                found = getattr(config, name)
                if found != value and value is not None:
                    raise ValueError(
                        f"The checkpoint {str(model_name_or_path)!r} has {name}={found!r}, but {name}={value!r} was "
                        "asked for. Use the checkpoint's own value, or start again from a plain encoder."
                    )
            model: KDMCSEModel = _load(cls, model_name_or_path, **kwargs)
            return model
        encoder = _load(AutoModel, model_name_or_path, **kwargs, **_without_pooler(config))
        # The very config object that the encoder's layers hold, so that `set_attn_implementation` reaches them. A new
        # config would reset theirs unless it names one.
        attention = encoder.config._attn_implementation
        return cls(KDMCSEConfig(text_config=encoder.config, attn_implementation=attention, **wanted), encoder=encoder)

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
        pooled = self._pool(hidden.last_hidden_state, inputs["attention_mask"])

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

    def _pool(self, last_hidden_state: Tensor, attention_mask: Tensor | None) -> Tensor:
        if self.config.pooling == "cls":
            return last_hidden_state[:, 0]
        if attention_mask is None:
            return last_hidden_state.mean(dim=1)
        mask = attention_mask.unsqueeze(-1).to(last_hidden_state.dtype)
        return (last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)

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


def _without_pooler(text_config: Any) -> dict[str, bool]:
    """`add_pooling_layer=False` for encoders that have it: their own pooler would be an untrained dead weight."""
    model_class: Any = AutoModel._model_mapping.get(type(text_config), None)
    if not inspect.isclass(model_class) or "add_pooling_layer" not in inspect.signature(model_class).parameters:
        return {}
    return {"add_pooling_layer": False}


def _load(model_class: Any, model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
    try:
        return model_class.from_pretrained(model_name_or_path, **kwargs)
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # by name, for this file imports no safetensors
            raise
        raise ValueError(
            f"The weights in {str(model_name_or_path)!r} cannot be read ({type(error).__name__}: {error}). The file "
            "is damaged or was cut short: copy or download it again, or take an earlier checkpoint."
        ) from error
