"""The paper's tables and figures, measured: a file an experiment, over the training of both stages.

An experiment names its arms, measures each when it is trained, and says of each claim of the paper whether it holds.
"""

from dqcore.experiments import budget, headline, layers, learning, maps, priors, ratios, router
from dqcore.experiments.plan import Experiment, say_plan
from dqcore.experiments.results import read_results
from dqcore.experiments.runner import run_experiments
from dqcore.experiments.scales import SCALES
from dqcore.experiments.setting import Setting, find_photos, versions
from dqcore.experiments.store import read_summaries, write_summary

__all__ = [
    "EXPERIMENTS",
    "SCALES",
    "Experiment",
    "Setting",
    "find_photos",
    "headline",
    "read_results",
    "read_summaries",
    "run_experiments",
    "say_plan",
    "versions",
    "write_summary",
]

#: In the order of the report.
EXPERIMENTS = {
    name: Experiment(name, module.arms, module.measure, module.summarise)
    for name, module in {
        "ratios": ratios,
        "budget": budget,
        "maps": maps,
        "router": router,
        "learning": learning,
        "priors": priors,
        "layers": layers,
    }.items()
}
