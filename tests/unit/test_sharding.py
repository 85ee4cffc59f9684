import pytest
from tiny import ENCODER_CONFIGS

from kdmcse_hf import KDMCSEModel
from kdmcse_hf.sharding import layers_to_shard


@pytest.mark.parametrize("kind", ENCODER_CONFIGS)
def test_all_layers_are_sharded_each_by_itself_and_the_embeddings_are_not(kind: str, encoder_folder) -> None:
    model = KDMCSEModel.from_encoder(str(encoder_folder(kind)), image_embed_dim=4)
    names = layers_to_shard(model)
    sharded = [module for module in model.modules() if type(module).__name__ in names]
    assert len(sharded) == model.encoder.config.num_hidden_layers
    embeddings = model.get_input_embeddings()
    assert not any(part is embeddings for module in sharded for part in module.modules())
