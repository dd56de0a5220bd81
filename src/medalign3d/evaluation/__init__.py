"""Evaluation: candidate scoring and generation, baselines, visual questions, metrics."""
