"""What compare_generators.py and draw_evidence.py share: cells, contenders, training, results and tables."""
