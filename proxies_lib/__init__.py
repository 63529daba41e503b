"""Small-scale proxies for large-scale Transformer training instabilities, as a library and notebooks.

P1 = Wortsman et al. 2023 (arXiv 2309.14322); P2 = Molybog et al. 2023 (arXiv 2304.09871).
Layers, lower ones never import higher ones:
config, settings → model → optim → data → train → store → sweep → analysis → plots → claims →
notebooks → cli.
"""

from proxies_lib import settings

settings.pin_environment()
