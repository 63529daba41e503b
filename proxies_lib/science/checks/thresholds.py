"""From where on an effect counts: fixed before the runs were made, and not moved after them.

A threshold that a single claim uses stands in the row of that claim.
"""

# Losses are in nats per token, and so is LR sensitivity S, a mean of differences of losses.
SMALL = 0.05  # a smaller difference of losses, or of S, is no improvement
EXPLODES = 0.5  # the loss rises by this much above the loss before: a spike

# Shares of the learning, ℓ0 − ℓ*. `analysis.FAILURE` is the share that a failed run loses.
SAME_SHAPE = 0.05  # curves of loss against LR that differ by less have the same shape

PAPER_TOP_LR = 0.3  # P1: with qk-layernorm the largest model still trains here

# max |attention logit|
PAPER_LOGIT = 1e4  # every run of P1 above it failed (Fig. 9)
CATASTROPHE = 1e3  # training without qk-layernorm passes it where it fails

PROBE = 0.02  # share of the training at which Fig. 9 looks: step 2e3 of 1e5

# Where a training is too short, or too far from ε, to test a claim.
DECAY_ACTS = 1.0  # below this λ · steps (10 in P1) weight decay has shrunk nothing by the end
FAR_FROM_EPS = 10.0  # at such a multiple of ε an update lost a sixth at most, at night
