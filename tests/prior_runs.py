"""Options of a prior's training that takes seconds."""

from dqcore.training.prior.run import PriorTraining

#: Sizes of a small tokenizer.
TINY = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}


def options(folder, out, **changes):
    """Of a run in ``out`` on the images and the tokenizer that the fixture ``folder`` made."""
    fields = {
        "data": folder / "images",
        "tokenizer": folder / "tokenizer",
        "out": out,
        "recipe": "paper",
        "preset": "dqtransformer-tiny",
        "image_size": 32,
        "steps": 6,
        "token_budget": 60,
        "log_every": 1,
        "checkpoint_every": 3,
        "device": "cpu",
        "learning_rate": 1e-3,
    }
    return PriorTraining(**(fields | changes))


def quiet(row):
    pass
