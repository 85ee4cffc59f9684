"""Configuration of a KDMCSE model. Self-contained: this file travels with the weights."""

from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig

POOLINGS = ("cls", "mean")


class KDMCSEConfig(PretrainedConfig):
    r"""Architecture of a [`KDMCSEModel`]: a text encoder, a text head and the heads towards a frozen teacher.

    Args:
        text_config (`PretrainedConfig` or `dict`, *optional*):
            Configuration of the text encoder, of any type that `AutoModel` knows. Defaults to BERT-base.
        projection_dim (`int`, *optional*, defaults to 256):
            Width P of the space in which captions meet the teacher's pictures and captions.
        image_embed_dim (`int`, *optional*):
            Width of the teacher's image features. `None`: the model has no image projection.
        caption_embed_dim (`int`, *optional*):
            Width of the teacher's caption features. `None`: the model has no caption projection.
        normalize_teacher_embeds (`bool`, *optional*, defaults to `False`):
            Whether the teacher's features are L2-normalised before the projections.
        pooling (`str`, *optional*, defaults to `"cls"`):
            Which vector is the sentence embedding: `"cls"` (the first token's last hidden state, before any head)
            or `"mean"` (the mean of the last hidden states over the attention mask).

    Raises:
        ValueError: a width that is not a positive integer, or an unknown pooling.
    """

    model_type = "kdmcse"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        projection_dim: int = 256,
        image_embed_dim: int | None = None,
        caption_embed_dim: int | None = None,
        normalize_teacher_embeds: bool = False,
        pooling: str = "cls",
        **kwargs: Any,
    ) -> None:
        widths = {
            "projection_dim": projection_dim,
            "image_embed_dim": image_embed_dim,
            "caption_embed_dim": caption_embed_dim,
        }
        for name, width in widths.items():
            if width is None and name != "projection_dim":
                continue
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise ValueError(f"`{name}` is {width!r}: expected a positive integer.")
        if pooling not in POOLINGS:
            raise ValueError(f"`pooling` is {pooling!r}: expected one of {', '.join(map(repr, POOLINGS))}.")
        if text_config is None:
            text_config = {}
        if isinstance(text_config, dict):
            text_config = dict(text_config)
            text_config = AutoConfig.for_model(text_config.pop("model_type", "bert"), **text_config)
        self.text_config = text_config
        self.projection_dim = projection_dim
        self.image_embed_dim = image_embed_dim
        self.caption_embed_dim = caption_embed_dim
        self.normalize_teacher_embeds = normalize_teacher_embeds
        self.pooling = pooling
        super().__init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width H of the sentence embedding."""
        return int(self.text_config.hidden_size)
