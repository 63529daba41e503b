"""What the papers claim, a function per section: measures and thresholds, fixed before the runs.

A function returns the section's verdicts, rows of `claims.check`. A check reads as a row:

    name, figure, the statement that the paper makes,
    what is measured, its value per seed, below or above which threshold the statement holds

    section   function                   file
    01        attention_logit_growth     attention_logits
    02        z_loss                     output_logits
    03, 04    warmup, weight_decay       warmup_and_decay
    05, 06    width_vs_depth, mu_param   scaling
    07        predicting_logit_growth    prediction
    08        adamw_epsilon              epsilon
    09        additional_interventions   interventions
    10        adam_instability           instability

All but two take the section's runs (`report.collect`), their curves and the study, whether they
need the curves or not. Sections 07 and 10 judge what their notebooks computed on the way: a
prediction written down before its runs, a simulation, spikes.
"""

from proxies_lib.science.checks.attention_logits import attention_logit_growth
from proxies_lib.science.checks.epsilon import adamw_epsilon
from proxies_lib.science.checks.instability import TENSOR, adam_instability
from proxies_lib.science.checks.interventions import additional_interventions
from proxies_lib.science.checks.measures import (
    GRADIENT,
    KEY_GRADIENT,
    UPDATE,
    same_as_base,
    same_numbers_as_base,
)
from proxies_lib.science.checks.output_logits import z_loss
from proxies_lib.science.checks.prediction import predicting_logit_growth
from proxies_lib.science.checks.scaling import mu_param, width_vs_depth
from proxies_lib.science.checks.thresholds import PAPER_LOGIT, PROBE, SMALL
from proxies_lib.science.checks.warmup_and_decay import warmup, weight_decay

__all__ = [
    "GRADIENT",
    "KEY_GRADIENT",
    "PAPER_LOGIT",
    "PROBE",
    "SMALL",
    "TENSOR",
    "UPDATE",
    "adam_instability",
    "adamw_epsilon",
    "additional_interventions",
    "attention_logit_growth",
    "mu_param",
    "predicting_logit_growth",
    "same_as_base",
    "same_numbers_as_base",
    "warmup",
    "weight_decay",
    "width_vs_depth",
    "z_loss",
]
