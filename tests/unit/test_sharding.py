from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from tiny import ENCODER_CONFIGS

from kdmcse_hf import KDMCSEModel
from kdmcse_hf.sharding import layers_to_shard, set_up_sharding


@pytest.mark.parametrize("kind", ENCODER_CONFIGS)
def test_all_layers_are_sharded_each_by_itself_and_the_embeddings_are_not(kind: str, encoder_folder) -> None:
    model = KDMCSEModel.from_encoder(str(encoder_folder(kind)), image_embed_dim=4)
    names = layers_to_shard(model)
    sharded = [module for module in model.modules() if type(module).__name__ in names]
    assert len(sharded) == model.encoder.config.num_hidden_layers
    embeddings = model.get_input_embeddings()
    assert not any(part is embeddings for module in sharded for part in module.modules())


def test_gradients_are_added_up_in_float32_and_whole_models_are_saved(encoder_folder) -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, transformer_cls_names_to_wrap=["BertLayer"])
    plugin.set_mixed_precision("bf16")
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    set_up_sharding(SimpleNamespace(fsdp_plugin=plugin), KDMCSEModel.from_encoder(str(encoder_folder("bert"))))
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.transformer_cls_names_to_wrap == ["BertLayer"]


def test_the_first_fsdp_is_refused(encoder_folder) -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    with pytest.raises(ValueError, match="expected `fsdp_version: 2`"):
        set_up_sharding(SimpleNamespace(fsdp_plugin=plugin), KDMCSEModel.from_encoder(str(encoder_folder("bert"))))
