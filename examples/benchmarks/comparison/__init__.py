"""Cells, contenders, training and tables of compare_generators.py."""
