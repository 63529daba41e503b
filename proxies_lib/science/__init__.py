"""What the papers claim: protocols, analysis, figures, verdicts. Imports the core and runs."""
