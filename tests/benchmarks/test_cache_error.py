"""What caches of fewer bytes do to logits is measured on the logits that the model defines."""

import torch
from cache_error import logits_of

import dqcore


def test_exact_caches_give_the_logits_of_the_full_pass():
    layers = {"position_layers": 1, "content_layers": 1}
    config = dqcore.DQTransformerConfig(
        codebook_size=20, region_grid=(2, 3), num_granularities=2, dim=32, num_heads=2, **layers
    )
    prior = dqcore.DQTransformer(config).eval()
    codes = torch.randint(0, 20, (1, 4, 6))
    sequence = dqcore.pack_codes(codes, torch.tensor([[[0, 1, 0], [1, 1, 0]]]), num_granularities=2)
    with torch.inference_mode():
        contents, positions = logits_of(prior, sequence, "weights")
        out = prior(sequence)
        torch.testing.assert_close(contents, out.content_logits[:, :20], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(positions, out.position_logits, atol=1e-5, rtol=1e-5)
        assert not torch.equal(logits_of(prior, sequence, "int8")[0], contents)
