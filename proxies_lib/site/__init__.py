"""The report: a static site of what the project's tables, figures and notebooks hold."""
