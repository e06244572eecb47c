"""Shared by compare_generators.py and draw_evidence.py: cells, contenders, training, results and tables."""
