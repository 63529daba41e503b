"""Small-scale proxies for large-scale Transformer training instabilities.

A library and notebooks that train two papers' experiments again:
P1 = Wortsman et al. 2023 (arXiv 2309.14322); P2 = Molybog et al. 2023 (arXiv 2304.09871).

Layers; a lower one never imports a higher one:

    cli/        the command `proxies`
    site/       the site of `proxies report`
    pages       what commands write into README and docs/
    budget/     how fast, how much memory, what it costs
    science/    what the papers claim: protocols, analysis, checks, figures
    runs/       experiments: datasets, store, checkpoints, sweeps over processes and machines
    .           what one run is and how it trains; read config, model, optim, train, in this order
"""

from proxies_lib import settings

settings.pin_environment()
