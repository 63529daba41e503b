"""Experiments: corpora, the store, engines, sweeps. Imports the core only."""
